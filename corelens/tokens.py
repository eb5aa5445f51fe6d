"""Token maps: the role of every position of a prompt, and the pixels that a visual token stands for.

An attention pattern has an axis of positions and knows nothing about them. A `TokenMap` holds, for every position of
a batch, its role (question, image, padding, …) and, for visual tokens, which picture, which view of it, which cell of
the view's grid and which rectangle of the original picture they come from. Masks of positions are read from it by
name, and a region of pixels becomes one by `TokenMap.in_box`:

    positions   <s>   user   ▢ ▢ ▢ ▢ ▢ ▢    Which digit is red?    assistant
    role        STRUCTURAL   IMAGE          QUESTION               STRUCTURAL     [batch position]
    media       -1  -1       0 0 0 0 0 0    -1 -1 -1 -1            -1             [batch position]
    row column  -1  -1       a 2 x 3 grid   -1 -1 -1 -1            -1             [batch position]
    box         NaN          16 x 16 pixels NaN                    NaN            [batch position 4]

Read on: `corelens.inputs.prepare` builds the map, `corelens.inputs.token_geometry` knows how visual tokens tile a
picture, and `corelens.hooks.positions` turns names of positions into masks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from corelens.box_rules import BoxRule as BoxRule
from corelens.box_rules import grid_boxes as grid_boxes
from corelens.box_rules import published_tokens, tokens_in_box
from corelens.errors import check_choice, docs_link

Views = Literal["all", "tiles", "overview"]
"""Selection of views of a picture that has more than one; see `TokenMap.in_box`."""


class Box(NamedTuple):
    """A rectangle in pixels of the original picture; x runs right, y runs down, both from the top left corner."""

    left: float
    top: float
    right: float
    bottom: float


class Role(IntEnum):
    """Role of a position in the prompt."""

    PADDING = 0
    STRUCTURAL = 1
    """Chat template, picture delimiters, row breaks."""
    SYSTEM = 2
    CONTEXT = 3
    """Text that is not the question: earlier turns, text around pictures, answer options, instructions."""
    QUESTION = 4
    """Text of the question alone."""
    IMAGE = 5
    """One visual token of a picture."""
    VIDEO = 6
    """One visual token of a video."""
    ANSWER = 7
    """Text of an answer, where one follows the prompt (`corelens.causal.answers`)."""


@dataclass(frozen=True)
class TokenMap:
    """Role and address of every position of a batch of sequences.

    Media, which are pictures and videos, are counted from zero within each sample in the order of the prompt. Models
    encode a picture in one view, or in several: tiles, and often an overview. A video has a view for every frame, or
    for every pair of frames where the model merges two.

    Boolean masks are named after what they select: `question`, `image`, `last` and so on, all [batch position].
    """

    role: Int[Tensor, "batch position"]
    """A `Role`."""

    media: Int[Tensor, "batch position"]
    """Number of the picture or video; -1 where there is none."""

    view: Int[Tensor, "batch position"]
    """Number of its view: a tile or the overview of a picture, a frame of a video; -1 where there is none."""

    overview: Bool[Tensor, "batch position"]
    """True if the view shows the whole of a picture that also has tiles."""

    row: Int[Tensor, "batch position"]
    """Row in the view's grid of visual tokens; -1 where there is none, or where the model has no grid."""

    column: Int[Tensor, "batch position"]
    """Column in the same grid; -1 likewise."""

    box: Float[Tensor, "batch position 4"]
    """Left, top, right, bottom of the pixels that the position stands for; NaN where there are none. Reaches beyond
    the picture where the processor padded it."""

    seconds: Float[Tensor, "batch position 2"]
    """Begin and end of the view that the position stands for, in seconds of the original video: from its first
    sampled frame until that of the next view, or until the video ends. NaN outside videos."""

    sizes: tuple[tuple[tuple[int, int], ...], ...]
    """Width and height of all media of every sample, in pixels."""

    no_boxes: str = ""
    """Reason why visual tokens have no rectangles; empty where they have."""

    merge: int | None = None
    """Patches along a side of the square that becomes a token, in models that merge the patches of one grid over the
    whole picture; None in others."""

    prompts: tuple[str, ...] = ()
    """Digest of the text and media of every sample, by which it is known again; empty if `prepare` did not make it."""

    def __len__(self) -> int:
        return len(self.role)

    def __getitem__(self, sample: int) -> "TokenMap":
        """The map of one sample, still with a batch axis."""
        if not -len(self) <= sample < len(self):
            raise IndexError(f"there is no sample {sample}: the batch has {len(self)}.")
        tensors = {name: tensor[sample][None] for name, tensor in self.position_tensors().items()}
        return replace(self, **tensors, sizes=(self.sizes[sample],), prompts=self.prompts[sample:][:1])

    def __repr__(self) -> str:
        lines = []
        for sample in range(len(self)):
            role_counts = {role.name.lower(): int((self.role[sample] == role).sum()) for role in Role}
            shape_counts = Counter(self[sample]._shape_of(media) for media in range(len(self.sizes[sample])))
            shapes = ", ".join(f"{n} media of {shape}" if n > 1 else shape for shape, n in shape_counts.items())
            roles = ", ".join(f"{n} {name}" for name, n in role_counts.items() if n)
            lines.append(f"sample {sample}: {roles}" + (f" ({shapes})" if shapes else ""))
        return "TokenMap(" + "; ".join(lines) + ")"

    @property
    def question(self) -> Bool[Tensor, "batch position"]:
        """Text of the question, without instructions, answer options and the chat template around it."""
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
        """Text that is not the question: earlier turns, text around pictures, answer options, instructions."""
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
        """Padding of the shorter prompts of a batch."""
        return self.role == Role.PADDING

    @property
    def answer(self) -> Bool[Tensor, "batch position"]:
        """Text of a teacher-forced answer."""
        return self.role == Role.ANSWER

    @property
    def last(self) -> Bool[Tensor, "batch position"]:
        """The last position of each prompt, whose logits predict the first token of the answer."""
        positions = torch.arange(self.role.shape[1], device=self.role.device)
        last = torch.where(self.padding | self.answer, -1, positions).argmax(-1, keepdim=True)
        return positions == last

    @property
    def from_question(self) -> Bool[Tensor, "batch position"]:
        """The question and all that follows it: the end of the prompt and an answer."""
        return self.question.cumsum(-1).bool() & ~self.padding

    def to(self, device: torch.device | str) -> "TokenMap":
        """The same map on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.position_tensors().items()})

    def grid_shape(self, media: int = 0, view: int = 0) -> tuple[int, int]:
        """Rows and columns of the visual tokens of one view, for a map of one sample."""
        tokens = self._tokens_of(media, view)
        return int(self.row[tokens].max()) + 1, int(self.column[tokens].max()) + 1

    def grid(
        self, values: Shaped[Tensor, "*heads position"], media: int = 0, view: int = 0
    ) -> Shaped[Tensor, "*heads row column"]:
        """Values of the visual tokens of one view as a grid of rows and columns, for a map of one sample."""
        rows, columns = self.grid_shape(media, view)
        grid = values.new_zeros(*values.shape[:-1], rows, columns)
        tokens = self._tokens_of(media, view)
        grid[..., self.row[tokens], self.column[tokens]] = values[..., tokens[0]]
        return grid

    def media_tokens(self, media: int = 0, views: Views = "all") -> Bool[Tensor, "batch position"]:
        """All visual tokens of a picture or video, in all views or in some; see `in_box`."""
        check_choice("views", views, Views)
        tokens = self.visual & (self.media == media)
        if views == "all":
            return tokens
        has_both = (tokens & self.overview).any(-1, keepdim=True) & (tokens & ~self.overview).any(-1, keepdim=True)
        return tokens & (~has_both | (self.overview == (views == "overview")))

    def in_box(
        self,
        box: Box | Sequence[float | int],
        rule: BoxRule = "overlap",
        media: int = 0,
        views: Views = "all",
        seconds: tuple[float | int, float | int] | None = None,
    ) -> Bool[Tensor, "batch position"] | Float[Tensor, "batch position"]:
        """Select the visual tokens of a picture or video that lie in a region of its pixels.

        Args:
            box: Left, top, right, bottom in pixels of the original picture, the same for every sample of the batch.
            rule: `overlap`: the token's rectangle shares some area with the box. `centre`: its centre lies in the
                box. `cover`: more than half of it lies in the box. `fraction`: the share of it that lies in the box,
                as a number in [0, 1] instead of yes or no. `as_published`: the map that the paper prints for models
                that merge patches, which differs from where the tokens are; see `corelens.box_rules.published_tokens`.
            media: Number of the picture or video.
            views: A model that encodes a picture in tiles and in an overview holds the evidence twice: `all` selects
                it in both, `tiles` and `overview` in one of them. Pictures with a single view are not affected.
            seconds: Of a video, only views that show some of this time, from and to; None for the whole video. A view
                lasts from its first sampled frame until the next view begins.

        Raises:
            ValueError: If the box is empty, leaves the picture, is part of its first pixel as are fractions of it, or
                selects no token in some sample; if `seconds` is empty, leaves the video, or is given for a picture;
                if the rule is `as_published` and the model merges no patches of one grid.
            IndexError: If a sample has no such picture or video.
        """
        check_choice("rule", rule, BoxRule)
        left, top, right, bottom = box = Box(*box)
        for sample, sizes in enumerate(self.sizes):
            if not 0 <= media < len(sizes):
                raise IndexError(f"sample {sample} has no picture {media}: it has {len(sizes)}.")
            width, height = sizes[media]
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
        if rule == "as_published":
            selected = self._published(box, media, tokens)
        else:
            selected = tokens_in_box(self.box, box, rule) * tokens
        if empty := (~selected.bool().any(-1)).nonzero().flatten().tolist():
            no_frame = f", or no sampled frame shows {seconds} seconds" if seconds else ""
            way_out = " Try rule='overlap'." if rule != "overlap" else ""
            raise ValueError(
                f"{box} selects no token of {self._name(empty[0], media)} by the rule {rule!r} in sample(s) {empty}: "
                f"it is too small for the rule, or in a part of the picture that the model does not see"
                f"{no_frame}.{way_out} {docs_link('no-token')}"
            )
        return selected

    def _published(
        self, box: Box, media: int, tokens: Bool[Tensor, "batch position"]
    ) -> Bool[Tensor, "batch position"]:
        """Mask of those of the tokens whose numbers the paper prints for a box; views of a video have the same grid."""
        if self.merge is None:
            raise ValueError(
                "rule='as_published' is for models that merge the patches of one grid over the whole picture, as "
                "Qwen's do, and this model does not. Take rule='overlap'."
            )
        selected = torch.zeros_like(tokens)
        for sample in tokens.any(-1).nonzero().flatten().tolist():
            row, column, visual = self.row[sample], self.column[sample], tokens[sample]
            rows, columns = int(row[visual].max()) + 1, int(column[visual].max()) + 1
            numbers = published_tokens(box, self.sizes[sample][media], rows, columns, self.merge)
            selected[sample] = visual & torch.isin(row * columns + column, numbers.to(row.device))
        return selected

    def _overlaps_seconds(self, seconds: tuple[float | int, float | int], media: int) -> Bool[Tensor, "batch position"]:
        """Mask of the positions whose view shows some of this time, after checking that the video has it."""
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
        """The fields with an axis of positions, by name."""
        others = ("sizes", "no_boxes", "merge", "prompts")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in others}

    def _name(self, sample: int, media: int) -> str:
        video = (self.video[sample] & (self.media[sample] == media)).any()
        return f"{'video' if video else 'picture'} {media}"

    def _shape_of(self, media: int) -> str:
        """Grids of a medium's views as text, such as `2 of 4 x 4 + 3 x 5`, for a map of one sample."""
        tokens = self.media[0] == media
        if not (tokens & (self.row[0] >= 0)).any():
            return f"{int((tokens & (self.role[0] >= Role.IMAGE)).sum())} without a grid"
        counts: dict[tuple[int, int], int] = {}
        for view in range(int(self.view[0][tokens].max()) + 1):
            shape = self.grid_shape(media, view)
            counts[shape] = counts.get(shape, 0) + 1
        return " + ".join(f"{n} of " * (n > 1) + f"{rows} x {columns}" for (rows, columns), n in counts.items())

    def _tokens_of(self, media: int, view: int) -> Bool[Tensor, "1 position"]:
        """Mask of the visual tokens of one view, for a map of one sample."""
        if len(self) != 1:
            raise ValueError(f"this map holds {len(self)} samples; choose one first, e.g. tokens[0].")
        if not 0 <= media < len(self.sizes[0]):
            raise IndexError(f"there is no picture {media}: the sample has {len(self.sizes[0])}.")
        tokens = (self.media == media) & (self.view == view) & (self.row >= 0)
        if not tokens.any():
            raise IndexError(self.no_boxes or f"picture {media} has no view {view}.")
        return tokens
