"""Positions with addresses: what every position of a sequence is, and which pixels it stands for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from corelens.errors import docs_link

BoxRule = Literal["overlap", "centre", "cover", "fraction"]
"""How a region of pixels becomes positions; see `TokenMap.in_box`."""

Views = Literal["all", "tiles", "overview"]
"""Which views of a picture that is seen more than once; see `TokenMap.in_box`."""


class Box(NamedTuple):
    """A rectangle in pixels of the original picture; x runs right, y runs down, both from the top left corner."""

    left: float
    top: float
    right: float
    bottom: float


class Role(IntEnum):
    """What a position is for."""

    PADDING = 0
    STRUCTURAL = 1
    """Chat template, picture delimiters, row breaks."""
    SYSTEM = 2
    CONTEXT = 3
    """Text of earlier turns."""
    QUESTION = 4
    """Text of the last user turn."""
    IMAGE = 5
    """One visual token of a picture."""
    VIDEO = 6
    """One visual token of a video."""
    ANSWER = 7
    """Text of an answer, where one follows the prompt (`corelens.causal.answers`)."""


@dataclass(frozen=True)
class TokenMap:
    """What every position of a batch of sequences is.

    Media, which are pictures and videos, are counted from zero within each sample in the order of the prompt. Models
    see a picture in one view, or in several: tiles, and often an overview. A video has a view for every frame, or for
    every pair of frames where the model merges two.

    Boolean masks are named after what they select: `question`, `image`, `last` and so on, all [batch position].
    """

    role: Int[Tensor, "batch position"]
    """A `Role`."""

    media: Int[Tensor, "batch position"]
    """Which picture or video; -1 where there is none."""

    view: Int[Tensor, "batch position"]
    """Which view of it: a tile or the overview of a picture, a frame of a video; -1 where there is none."""

    overview: Bool[Tensor, "batch position"]
    """Whether the view shows the whole of a picture that also has tiles."""

    row: Int[Tensor, "batch position"]
    """Row in the view's grid of visual tokens; -1 where there is none, or where the model has no grid."""

    column: Int[Tensor, "batch position"]

    box: Float[Tensor, "batch position 4"]
    """Left, top, right, bottom of the pixels that the position stands for; NaN where there are none. Reaches beyond
    the picture where the processor padded it."""

    seconds: Float[Tensor, "batch position 2"]
    """When the view that the position stands for begins and ends, in seconds of the original video: from its first
    sampled frame until that of the next view, or until the video ends. NaN outside videos."""

    sizes: tuple[tuple[tuple[int, int], ...], ...]
    """Width and height of all media of every sample, in pixels."""

    no_boxes: str = ""
    """Why visual tokens have no rectangles; empty where they have."""

    def __len__(self) -> int:
        return len(self.role)

    def __getitem__(self, sample: int) -> "TokenMap":
        """The map of one sample, still with a batch axis."""
        if not -len(self) <= sample < len(self):
            raise IndexError(f"there is no sample {sample}: the batch has {len(self)}.")
        chosen = {name: tensor[sample][None] for name, tensor in self.position_tensors().items()}
        return replace(self, **chosen, sizes=(self.sizes[sample],))

    def __repr__(self) -> str:
        lines = []
        for sample in range(len(self)):
            counts = {role.name.lower(): int((self.role[sample] == role).sum()) for role in Role}
            alike = Counter(self[sample]._shape_of(media) for media in range(len(self.sizes[sample])))
            shapes = ", ".join(f"{n} media of {shape}" if n > 1 else shape for shape, n in alike.items())
            said = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
            lines.append(f"sample {sample}: {said}" + (f" ({shapes})" if shapes else ""))
        return "TokenMap(" + "; ".join(lines) + ")"

    @property
    def question(self) -> Bool[Tensor, "batch position"]:
        """Text of the last user turn, without the chat template around it."""
        return self.role == Role.QUESTION

    @property
    def image(self) -> Bool[Tensor, "batch position"]:
        """Visual tokens of pictures, without the tokens that delimit them."""
        return self.role == Role.IMAGE

    @property
    def video(self) -> Bool[Tensor, "batch position"]:
        """Visual tokens of videos, without the tokens that delimit them."""
        return self.role == Role.VIDEO

    @property
    def system(self) -> Bool[Tensor, "batch position"]:
        """Text of the system prompt."""
        return self.role == Role.SYSTEM

    @property
    def context(self) -> Bool[Tensor, "batch position"]:
        """Text of earlier turns."""
        return self.role == Role.CONTEXT

    @property
    def visual(self) -> Bool[Tensor, "batch position"]:
        """Visual tokens of pictures and videos."""
        return self.image | self.video

    @property
    def structural(self) -> Bool[Tensor, "batch position"]:
        """Chat template, picture delimiters, row breaks."""
        return self.role == Role.STRUCTURAL

    @property
    def padding(self) -> Bool[Tensor, "batch position"]:
        """What fills shorter prompts of a batch up."""
        return self.role == Role.PADDING

    @property
    def answer(self) -> Bool[Tensor, "batch position"]:
        """Text that the model is made to answer."""
        return self.role == Role.ANSWER

    @property
    def last(self) -> Bool[Tensor, "batch position"]:
        """The last position of each prompt: the one that says the first word of the answer."""
        position = torch.arange(self.role.shape[1], device=self.role.device)
        final = torch.where(self.padding | self.answer, -1, position).argmax(-1, keepdim=True)
        return position == final

    @property
    def from_question(self) -> Bool[Tensor, "batch position"]:
        """The question and all that follows it: the end of the prompt and an answer."""
        return self.question.cumsum(-1).bool() & ~self.padding

    def to(self, device: torch.device | str) -> "TokenMap":
        """The same map on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.position_tensors().items()})

    def grid_shape(self, media: int = 0, view: int = 0) -> tuple[int, int]:
        """Rows and columns of the visual tokens of one view, for a map of one sample."""
        chosen = self._tokens_of(media, view)
        return int(self.row[chosen].max()) + 1, int(self.column[chosen].max()) + 1

    def grid(
        self, values: Shaped[Tensor, "*heads position"], media: int = 0, view: int = 0
    ) -> Shaped[Tensor, "*heads row column"]:
        """Values of the visual tokens of one view laid out as they stand in it, for a map of one sample."""
        rows, columns = self.grid_shape(media, view)
        laid_out = values.new_zeros(*values.shape[:-1], rows, columns)
        chosen = self._tokens_of(media, view)
        laid_out[..., self.row[chosen], self.column[chosen]] = values[..., chosen[0]]
        return laid_out

    def media_tokens(self, media: int = 0, views: Views = "all") -> Bool[Tensor, "batch position"]:
        """All visual tokens of a picture or video, in all views or in some; see `in_box`."""
        if views not in ("all", "tiles", "overview"):
            raise ValueError(f"views={views!r} is not known; the views are all, tiles and overview.")
        tokens = self.visual & (self.media == media)
        if views == "all":
            return tokens
        twice = (tokens & self.overview).any(-1, keepdim=True) & (tokens & ~self.overview).any(-1, keepdim=True)
        return tokens & (~twice | (self.overview == (views == "overview")))

    def in_box(
        self,
        box: Box | Sequence[float | int],
        rule: BoxRule = "overlap",
        media: int = 0,
        views: Views = "all",
        seconds: tuple[float | int, float | int] | None = None,
    ) -> Bool[Tensor, "batch position"] | Float[Tensor, "batch position"]:
        """Which visual tokens of a picture or video lie in a region of its pixels.

        Args:
            box: Left, top, right, bottom in pixels of the original picture, the same for every sample of the batch.
            rule: `overlap`: the token's rectangle shares some area with the box. `centre`: its centre lies in the
                box. `cover`: more than half of it lies in the box. `fraction`: the share of it that lies in the box,
                as a number in [0, 1] instead of yes or no.
            media: Which picture or video.
            views: A model that sees a picture in tiles and in an overview holds the evidence twice: `all` selects it
                in both, `tiles` and `overview` in one of them. Pictures seen only once are not affected.
            seconds: Of a video, only views that show some of this time, from and to; None for the whole video. A view
                lasts from its first sampled frame until the next view begins.

        Raises:
            ValueError: If the box is empty, leaves the picture, is part of its first pixel as are fractions of it, or
                selects no token in some sample; if `seconds` is empty, leaves the video, or is given for a picture.
            IndexError: If a sample has no such picture or video.
        """
        if rule not in ("overlap", "centre", "cover", "fraction"):
            raise ValueError(f"rule={rule!r} is not known; the rules are overlap, centre, cover and fraction.")
        left, top, right, bottom = box = Box(*box)
        for sample, pictures in enumerate(self.sizes):
            if not 0 <= media < len(pictures):
                raise IndexError(f"sample {sample} has no picture {media}: it has {len(pictures)}.")
            width, height = pictures[media]
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise ValueError(
                    f"{box} is not a region of {self._name(sample, media)} of sample {sample}, which is {width} x "
                    f"{height} pixels: it needs 0 <= left < right <= {width} and 0 <= top < bottom <= {height}. "
                    f"{docs_link('outside')}"
                )
            if right <= 1 < width and bottom <= 1 < height:
                raise ValueError(
                    f"{box} is part of a single pixel of {self._name(sample, media)}, which is {width} x {height} "
                    f"pixels. If these are fractions of the picture, multiply left and right by {width}, top and "
                    f"bottom by {height}. {docs_link('outside')}"
                )
        tokens = self.media_tokens(media, views)
        if self.box[tokens].isnan().any():
            raise ValueError(f"a region cannot be turned into tokens: {self.no_boxes}")
        if seconds is not None:
            tokens &= self._overlaps_seconds(seconds, media)
        x0, y0, x1, y1 = self.box.unbind(-1)
        width = torch.minimum(x1, torch.tensor(right)) - torch.maximum(x0, torch.tensor(left))
        height = torch.minimum(y1, torch.tensor(bottom)) - torch.maximum(y0, torch.tensor(top))
        covered = width.clamp(min=0) * height.clamp(min=0) / ((x1 - x0) * (y1 - y0))
        covered = torch.where(tokens, covered, 0)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        selected = {
            "overlap": covered > 0,
            "centre": tokens & (left <= x) & (x < right) & (top <= y) & (y < bottom),
            "cover": covered > 0.5,
            "fraction": covered,
        }[rule]
        if empty := (~selected.bool().any(-1)).nonzero().flatten().tolist():
            unseen = f", or no sampled frame shows {seconds} seconds" if seconds else ""
            way_out = " Try rule='overlap'." if rule != "overlap" else ""
            raise ValueError(
                f"{box} selects no token of {self._name(empty[0], media)} by the rule {rule!r} in sample(s) {empty}: "
                f"it is too small for the rule, or in a part of the picture that the model does not see"
                f"{unseen}.{way_out} {docs_link('no-token')}"
            )
        return selected

    def _overlaps_seconds(self, seconds: tuple[float | int, float | int], media: int) -> Bool[Tensor, "batch position"]:
        """Tokens of a video whose view shows some of this time, after checking that the video has it."""
        start, end = seconds
        for sample in range(len(self)):
            name = self._name(sample, media)
            if name.startswith("picture"):
                raise ValueError(f"seconds={seconds} was given, but {name} of sample {sample} is no video.")
            duration = float(self.seconds[sample, self.media[sample] == media, 1].nan_to_num(-1).max())
            # The map holds float32.
            if not 0 <= start < end <= duration * (1 + 1e-6):
                raise ValueError(
                    f"seconds={seconds} is not a part of {name} of sample {sample}, which lasts {duration:g} seconds: "
                    f"it needs 0 <= from < to <= {duration:g}."
                )
        return (self.seconds[..., 0] < end) & (self.seconds[..., 1] > start)

    def position_tensors(self) -> dict[str, Tensor]:
        """What is kept by position."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("sizes", "no_boxes")}

    def _name(self, sample: int, media: int) -> str:
        video = (self.video[sample] & (self.media[sample] == media)).any()
        return f"{'video' if video else 'picture'} {media}"

    def _shape_of(self, media: int) -> str:
        tokens = self.media[0] == media
        if not (tokens & (self.row[0] >= 0)).any():
            return f"{int((tokens & (self.role[0] >= Role.IMAGE)).sum())} without a grid"
        counts: dict[tuple[int, int], int] = {}
        for view in range(int(self.view[0][tokens].max()) + 1):
            shape = self.grid_shape(media, view)
            counts[shape] = counts.get(shape, 0) + 1
        return " + ".join(f"{n} of " * (n > 1) + f"{rows} x {columns}" for (rows, columns), n in counts.items())

    def _tokens_of(self, media: int, view: int) -> Bool[Tensor, "1 position"]:
        if len(self) != 1:
            raise ValueError(f"this map holds {len(self)} samples; choose one first, e.g. tokens[0].")
        if not 0 <= media < len(self.sizes[0]):
            raise IndexError(f"there is no picture {media}: the sample has {len(self.sizes[0])}.")
        chosen = (self.media == media) & (self.view == view) & (self.row >= 0)
        if not chosen.any():
            raise IndexError(self.no_boxes or f"picture {media} has no view {view}.")
        return chosen


def grid_boxes(region: Box, rows: int, columns: int) -> Float[Tensor, "token 4"]:
    """The rectangles of a grid of visual tokens that tile a region, row by row."""
    x = torch.linspace(region.left, region.right, columns + 1)
    y = torch.linspace(region.top, region.bottom, rows + 1)
    corners = [
        rearrange(edge.expand(rows, columns), "row column -> (row column)")
        for edge in (x[:-1], y[:-1, None], x[1:], y[1:, None])
    ]
    return torch.stack(corners, -1)
