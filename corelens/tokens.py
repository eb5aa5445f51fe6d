"""Positions with addresses: what every position of a sequence is, and which pixels it stands for."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Rule = Literal["overlap", "centre", "cover", "fraction"]
"""How a region of pixels becomes positions; see `TokenMap.inside`."""


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
    """One visual token."""


@dataclass(frozen=True)
class TokenMap:
    """What every position of a batch of sequences is; pictures are counted from zero within each sample.

    Boolean masks are named after what they select: `question`, `image`, `last` and so on, all [batch position].
    """

    role: Int[Tensor, "batch position"]
    """A `Role`."""

    media: Int[Tensor, "batch position"]
    """Which picture; -1 where there is none."""

    row: Int[Tensor, "batch position"]
    """Row in the picture's grid of visual tokens; -1 where there is none, or where the model has no grid."""

    column: Int[Tensor, "batch position"]

    box: Float[Tensor, "batch position 4"]
    """Left, top, right, bottom of the pixels that the position stands for; NaN where there are none."""

    sizes: tuple[tuple[tuple[int, int], ...], ...]
    """Width and height of every picture of every sample, in pixels."""

    def __len__(self) -> int:
        return len(self.role)

    def __getitem__(self, sample: int) -> "TokenMap":
        """The map of one sample, still with a batch axis."""
        if not -len(self) <= sample < len(self):
            raise IndexError(f"there is no sample {sample}: the batch has {len(self)}.")
        chosen = [getattr(self, field.name)[sample][None] for field in fields(self) if field.name != "sizes"]
        return TokenMap(*chosen, sizes=(self.sizes[sample],))

    def __repr__(self) -> str:
        lines = []
        for sample in range(len(self)):
            counts = {role.name.lower(): int((self.role[sample] == role).sum()) for role in Role}
            grids = [self[sample].grid_shape(media) for media in range(len(self.sizes[sample]))]
            shapes = ", ".join(f"{rows} x {columns}" for rows, columns in grids)
            said = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
            lines.append(f"sample {sample}: {said}" + (f" ({shapes})" if shapes else ""))
        return "TokenMap(" + "; ".join(lines) + ")"

    @property
    def question(self) -> Bool[Tensor, "batch position"]:
        """Text of the last user turn, without the chat template around it."""
        return self.role == Role.QUESTION

    @property
    def image(self) -> Bool[Tensor, "batch position"]:
        """Visual tokens, without the tokens that delimit pictures."""
        return self.role == Role.IMAGE

    @property
    def system(self) -> Bool[Tensor, "batch position"]:
        """Text of the system prompt."""
        return self.role == Role.SYSTEM

    @property
    def context(self) -> Bool[Tensor, "batch position"]:
        """Text of earlier turns."""
        return self.role == Role.CONTEXT

    @property
    def structural(self) -> Bool[Tensor, "batch position"]:
        """Chat template, picture delimiters, row breaks."""
        return self.role == Role.STRUCTURAL

    @property
    def padding(self) -> Bool[Tensor, "batch position"]:
        return self.role == Role.PADDING

    @property
    def last(self) -> Bool[Tensor, "batch position"]:
        """The last position of each sample that is not padding: the one that says the first word of the answer."""
        position = torch.arange(self.role.shape[1], device=self.role.device)
        final = torch.where(self.padding, -1, position).argmax(-1, keepdim=True)
        return position == final

    def to(self, device: torch.device | str) -> "TokenMap":
        """The same map on another device."""
        moved = [getattr(self, field.name).to(device) for field in fields(self) if field.name != "sizes"]
        return TokenMap(*moved, sizes=self.sizes)

    def grid_shape(self, media: int = 0) -> tuple[int, int]:
        """Rows and columns of a picture's visual tokens, for a map of one sample."""
        chosen = self._tokens_of(media)
        return int(self.row[chosen].max()) + 1, int(self.column[chosen].max()) + 1

    def grid(self, values: Shaped[Tensor, "position"], media: int = 0) -> Shaped[Tensor, "row column"]:
        """Values of a picture's visual tokens laid out as they stand in the picture, for a map of one sample."""
        rows, columns = self.grid_shape(media)
        laid_out = values.new_zeros(rows, columns)
        chosen = self._tokens_of(media)
        laid_out[self.row[chosen], self.column[chosen]] = values[chosen[0]]
        return laid_out

    def inside(
        self, box: Box | Sequence[float | int], rule: Rule = "overlap", media: int = 0
    ) -> Bool[Tensor, "batch position"] | Float[Tensor, "batch position"]:
        """Which visual tokens of a picture lie in a region of its pixels.

        Args:
            box: Left, top, right, bottom in pixels of the original picture, the same for every sample of the batch.
            rule: `overlap`: the token's rectangle shares some area with the box. `centre`: its centre lies in the
                box. `cover`: more than half of it lies in the box. `fraction`: the share of it that lies in the box,
                as a number in [0, 1] instead of yes or no.
            media: Which picture.

        Raises:
            ValueError: If the box is empty, leaves the picture, or selects no token in some sample.
            IndexError: If a sample has no such picture.
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
                    f"{box} is not a region of picture {media} of sample {sample}, which is {width} x {height} pixels: "
                    f"it needs 0 <= left < right <= {width} and 0 <= top < bottom <= {height}."
                )
        tokens = self.image & (self.media == media)
        if self.box[tokens].isnan().any():
            raise ValueError(
                "where this model's visual tokens stand in the picture is not known, so a region cannot be "
                "turned into tokens."
            )
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
            raise ValueError(
                f"{box} selects no token of picture {media} by the rule {rule!r} in sample(s) {empty}: it is too small "
                f"for the rule, or in a part of the picture that the model does not see. Try rule='overlap'."
            )
        return selected

    def _tokens_of(self, media: int) -> Bool[Tensor, "1 position"]:
        if len(self) != 1:
            raise ValueError(f"this map holds {len(self)} samples; choose one first, e.g. tokens[0].")
        if not 0 <= media < len(self.sizes[0]):
            raise IndexError(f"there is no picture {media}: the sample has {len(self.sizes[0])}.")
        return self.image & (self.media == media)


def grid_boxes(region: Box, rows: int, columns: int) -> Float[Tensor, "token 4"]:
    """The rectangles of a grid of visual tokens that tile a region, row by row."""
    x = torch.linspace(region.left, region.right, columns + 1)
    y = torch.linspace(region.top, region.bottom, rows + 1)
    corners = [
        rearrange(edge.expand(rows, columns), "row column -> (row column)")
        for edge in (x[:-1], y[:-1, None], x[1:], y[1:, None])
    ]
    return torch.stack(corners, -1)
