"""Heads and sets of heads, as every other module names them."""

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from corelens.errors import docs_link
from corelens.files import parse_json, write_file


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
        """Parse the name of a head, e.g. `L4H2`.

        Raises:
            ValueError: If `text` is not such a name.
        """
        match = re.fullmatch(r"L([0-9]{1,6})H([0-9]{1,6})", text.strip())
        if match is None:
            raise ValueError(f"{text!r:.80} is not a head; write layer and head as in L4H2.")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class HeadSet:
    """Heads in order, with a name for how they were chosen.

    Examples:
        >>> HeadSet.parse("L4H2, L1H3").by_layer()
        {4: [2], 1: [3]}
    """

    heads: tuple[Head, ...]
    """Without repetition, in the order of choice, e.g. best first."""

    name: str = "chosen by hand"
    """Method of choice, as it appears in tables and files."""

    def __post_init__(self) -> None:
        if strings := [head for head in self.heads if isinstance(head, str)]:
            named = f"{', '.join(strings)!r:.80}"
            raise TypeError(f"heads are not strings: parse {named} by HeadSet.parse. {docs_link('head')}")
        object.__setattr__(self, "heads", tuple(map(as_head, self.heads)))
        if repeated := sorted(head for head, count in Counter(self.heads).items() if count > 1):
            more = f" and {len(repeated) - 5} more" if len(repeated) > 5 else ""
            raise ValueError(
                f"{', '.join(map(str, repeated[:5]))}{more} appears more than once; a head set holds each head once."
            )

    @cached_property
    def _members(self) -> frozenset[Head]:
        return frozenset(self.heads)

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __contains__(self, head: object) -> bool:
        return isinstance(head, Hashable) and head in self._members

    def __str__(self) -> str:
        return ", ".join(map(str, self.heads))

    def by_layer(self) -> dict[int, list[int]]:
        """Head numbers by layer."""
        layers: dict[int, list[int]] = {}
        for layer, head in self.heads:
            layers.setdefault(layer, []).append(head)
        return layers

    def __or__(self, other: "HeadSet") -> "HeadSet":
        """Heads of either set: these in their order, then the others in theirs."""
        return HeadSet(tuple(dict.fromkeys((*self, *other))), f"{self.name} or {other.name}")

    def __and__(self, other: "HeadSet") -> "HeadSet":
        """Heads of both sets, in the order of this one."""
        return HeadSet(tuple(head for head in self if head in other), f"{self.name} and {other.name}")

    def __sub__(self, other: "HeadSet") -> "HeadSet":
        """Heads of this set that are not in the other."""
        return HeadSet(tuple(head for head in self if head not in other), f"{self.name} without {other.name}")

    @classmethod
    def parse(cls, text: str) -> "HeadSet":
        """Parse a list of heads, e.g. `L4H2, L3H7`."""
        return cls(tuple(Head.parse(part) for part in re.split(r"[,\s]+", text.strip()) if part))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the set as JSON."""
        write_file(path, json.dumps({"name": self.name, "heads": [str(head) for head in self.heads]}, indent=1))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "HeadSet":
        """Read a set that `save` wrote.

        Raises:
            ValueError: If the file holds something else.
        """
        try:
            saved = parse_json(Path(path).read_bytes())
            if not isinstance(saved, dict) or not {"name", "heads"} <= saved.keys():
                raise ValueError("it needs the keys `name` and `heads`")
            if not isinstance(saved["name"], str) or not isinstance(saved["heads"], list):
                raise ValueError('its `name` must be a text, and its `heads` a list such as ["L4H2"]')
            if wrong := [head for head in saved["heads"] if not isinstance(head, str)]:
                raise ValueError(f'{wrong[0]!r:.80} is not a head; write layer and head as in "L4H2"')
            return cls(tuple(map(Head.parse, saved["heads"])), saved["name"])
        except ValueError as cause:
            raise ValueError(f"{path} does not hold a head set: {cause}") from cause


def as_head(given: Any) -> Head:
    """Layer and number of a head as plain integers: those of numpy and torch have other hashes and names."""
    try:
        layer, head = (-1 if isinstance(number, bool) else index(number) for number in given)
    except (TypeError, ValueError):
        layer, head = -1, -1
    if min(layer, head) < 0:
        raise ValueError(
            f"{given!r:.80} is not a head, which is two whole numbers from zero, layer and head, as in (4, 2). "
            f"{docs_link('head')}"
        )
    return Head(layer, head)
