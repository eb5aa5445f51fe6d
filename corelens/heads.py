"""Heads, sets of heads and scores of heads: the words everything else speaks."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import reduce
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


class Head(NamedTuple):
    """One attention head of the decoder; sorts by layer, then head.

    Examples:
        >>> print(Head(4, 2), Head.parse("L4H2") == Head(4, 2))
        L4H2 True
    """

    layer: int
    """Absolute number of the decoder layer, from zero."""

    head: int
    """Number of the query head in its layer, from zero."""

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """The head that `text` names, e.g. `L4H2`."""
        match = re.fullmatch(r"L(\d+)H(\d+)", text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a head; write layer and head as in L4H2.")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class HeadSet:
    """Some heads, in order, and how they were chosen.

    Examples:
        >>> HeadSet.parse("L4H2, L1H3").by_layer()
        {4: [2], 1: [3]}
    """

    heads: tuple[Head, ...]
    """Without repetition; the order is the order of choice, e.g. best first."""

    name: str = "chosen by hand"
    """How they were chosen, as it appears in tables and files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(Head(*head) for head in self.heads))
        if repeated := sorted({str(head) for head in self.heads if self.heads.count(head) > 1}):
            raise ValueError(f"{', '.join(repeated)} appears more than once; a head set names each head once.")

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __contains__(self, head: object) -> bool:
        return head in self.heads

    def __str__(self) -> str:
        return ", ".join(map(str, self.heads))

    def by_layer(self) -> dict[int, list[int]]:
        """Head numbers by layer."""
        layers: dict[int, list[int]] = {}
        for layer, head in self.heads:
            layers.setdefault(layer, []).append(head)
        return layers

    @classmethod
    def parse(cls, text: str) -> "HeadSet":
        """The set that `text` lists, e.g. `L4H2, L3H7`."""
        return cls(tuple(Head.parse(part) for part in re.split(r"[,\s]+", text.strip()) if part))

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the set as JSON."""
        Path(path).write_text(json.dumps({"name": self.name, "heads": [str(head) for head in self.heads]}, indent=1))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "HeadSet":
        """Reads what `save` wrote."""
        saved = json.loads(Path(path).read_text())
        if not isinstance(saved, dict) or not {"name", "heads"} <= saved.keys():
            raise ValueError(f"{path} does not hold a head set: it needs the keys `name` and `heads`.")
        return cls(tuple(Head.parse(head) for head in saved["heads"]), saved["name"])


@dataclass(frozen=True)
class HeadScores:
    """One number per sample and head, and what the number means.

    Sets of heads are chosen by the mean over samples. Every fraction is of all heads and rounds up: five percent of 96
    heads are five heads.
    """

    values: Float[Tensor, "sample layer head"]
    """Higher means more of `metric`."""

    metric: str
    """Name of the metric as it appears in figures and files."""

    samples: tuple[str, ...]
    """The id of every sample, in the order of `values`."""

    model: str = ""
    """Which model was measured."""

    choices: dict[str, Any] = field(default_factory=dict)
    """Every choice that shaped the numbers: query tokens, evidence rule, data and the like."""

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.values):
            raise ValueError(f"{len(self.samples)} sample ids were given for {len(self.values)} rows of scores.")
        if not len(self.values):
            raise ValueError("there is no sample: head scores need at least one.")

    @property
    def mean(self) -> Float[Tensor, "layer head"]:
        """Mean over samples."""
        return reduce(self.values, "sample layer head -> layer head", "mean")

    def ranked(self) -> list[Head]:
        """All heads, highest mean first; ties in order of layer and head."""
        n_heads = self.values.shape[-1]
        order = self.mean.flatten().argsort(descending=True, stable=True)
        return [Head(*divmod(index, n_heads)) for index in order.tolist()]

    def top(self, fraction: float = 0.05) -> HeadSet:
        """The heads with the highest means."""
        n = self._count(fraction)
        return HeadSet(tuple(self.ranked()[:n]), self._describe("top", n))

    def next(self, fraction: float = 0.05) -> HeadSet:
        """As many heads as `top`, ranked right after them: the control for "any high-scoring head would do"."""
        n = self._count(fraction, at_most=0.5)
        return HeadSet(tuple(self.ranked()[n : 2 * n]), self._describe("next", n))

    def bottom(self, fraction: float = 0.05) -> HeadSet:
        """As many heads as `top`, with the lowest means, lowest first."""
        n = self._count(fraction)
        return HeadSet(tuple(self.ranked()[::-1][:n]), self._describe("bottom", n))

    def random(self, seed: int, fraction: float = 0.05) -> HeadSet:
        """As many heads as `top`, drawn from all others."""
        n = self._count(fraction, at_most=0.5)
        others = sorted(self.ranked()[n:])
        drawn = np.random.default_rng(seed).choice(len(others), n, replace=False)
        return HeadSet(tuple(others[index] for index in drawn), f"{n} random heads outside the top {n}, seed {seed}")

    def layer_matched_random(self, seed: int, fraction: float = 0.05) -> HeadSet:
        """For every head of `top`, another of the same layer that is not in it: the control for depth."""
        top = self.top(fraction)
        rng = np.random.default_rng(seed)
        n_heads = self.values.shape[-1]
        drawn: list[Head] = []
        for layer, chosen in sorted(top.by_layer().items()):
            others = [head for head in range(n_heads) if head not in chosen]
            if len(others) < len(chosen):
                raise ValueError(
                    f"layer {layer} has {n_heads} heads and {len(chosen)} of them are in the top {len(top)}: too few "
                    f"others to draw from. Take a smaller fraction than {fraction}."
                )
            drawn += [Head(layer, int(head)) for head in rng.choice(others, len(chosen), replace=False)]
        name = f"{len(top)} random heads in the layers of the top {len(top)}, seed {seed}"
        return HeadSet(tuple(drawn), name)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a safetensors file that holds the values and everything said about them."""
        about = {name: value for name, value in asdict(self).items() if name != "values"}
        save_file({"values": self.values.contiguous()}, path, metadata={"corelens": json.dumps(about)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "HeadScores":
        """Reads what `save` wrote."""
        with safe_open(path, "pt") as file:  # pyright: ignore[reportAbstractUsage]
            metadata = file.metadata() or {}
            if "corelens" not in metadata:
                raise ValueError(f"{path} does not hold head scores: it was not written by HeadScores.save.")
            about = json.loads(metadata["corelens"])
            return cls(values=file.get_tensor("values"), **about | {"samples": tuple(about["samples"])})

    def _count(self, fraction: float, at_most: float = 1.0) -> int:
        if not 0 < fraction <= at_most:
            raise ValueError(f"fraction={fraction} is outside (0, {at_most:g}]; 0.05 means five percent of all heads.")
        # Rounding first: 0.07 * 100 is 7.000000000000001 in floating point, and seven heads are meant.
        return math.ceil(round(fraction * self.mean.numel(), 9))

    def _describe(self, which: str, n: int) -> str:
        return f"{which} {n} of {self.mean.numel()} heads by {self.metric}"
