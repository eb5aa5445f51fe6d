"""What the explorer's user has chosen: one value that is synchronised, linked to and undone as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Literal, get_args

from corelens.data import Evidence
from corelens.heads import Head
from corelens.tokens import Box

ReplaceWith = Literal["zero", "mean"]
Order = Literal["layer", "score"]
Blind = Literal["all", "chosen"]
Phase = Literal["before", "after"]


@dataclass(frozen=True)
class ExplorerState:
    """Everything that decides what the explorer shows; the same state always shows the same."""

    sample: str = ""
    """The id of the sample asked about; empty for own pictures, or none."""

    pictures: tuple[str, ...] = ()
    """The ids of own pictures, in place of a sample's."""

    question: str | None = None
    """An own question; None for the sample's."""

    evidence: tuple[Evidence, ...] | None = None
    """Own evidence; None for the sample's."""

    heads: tuple[Head, ...] = ()
    """The heads whose attention is shown, the one in focus first."""

    token: int | None = None
    """The position that looks; None for the last of the prompt."""

    metric: str = "ram"
    """What colours the heads."""

    order: Order = "layer"
    """How the heads stand: by layer and number, or highest first."""

    ablated: tuple[Head, ...] = ()
    """Heads that are ablated from the question on."""

    how: ReplaceWith = "zero"
    """What stands in for what they find."""

    regions: tuple[Evidence, ...] = ()
    """Parts of pictures that heads may not look at from the question on."""

    blind: Blind = "all"
    """Which heads may not: all, or those that are shown."""

    moment: Phase = "after"
    """Whether heads and maps are shown with these changes or before them."""

    @property
    def changes(self) -> tuple[Any, ...]:
        """What of it decides about interventions; equal for states whose interventions are."""
        closed = (self.regions, self.blind, frozenset(self.heads) if self.blind == "chosen" else None)
        return (frozenset(self.ablated), self.how if self.ablated else None, *(closed if self.regions else ()))

    @property
    def shown_changes(self) -> tuple[Any, ...]:
        """What of it decides about the interventions that heads and maps are shown with."""
        return self.changes if self.moment == "after" else ExplorerState().changes

    def json(self) -> dict[str, Any]:
        """The state as JSON; heads are written as in L4H2."""
        made = {field.name: getattr(self, field.name) for field in fields(self)}
        made |= {name: [str(head) for head in made[name]] for name in ("heads", "ablated")}
        made |= {
            name: None if made[name] is None else [_written(region) for region in made[name]]
            for name in ("evidence", "regions")
        }
        return made | {"pictures": list(self.pictures)}

    @classmethod
    def parse(cls, given: Any) -> "ExplorerState":
        """The state that some JSON describes; what it leaves out is as in a new state.

        Raises:
            ValueError: If it describes none; names the field. Whether a model has such heads, and a prompt such
                positions, is seen when it is looked at.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"a state is a JSON object, not {type(given).__name__}.")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(map(str, given)) - known):
            raise ValueError(f"a state has no {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
        read: dict[str, Any] = {}
        for name, value in given.items():
            try:
                read[name] = _READERS[name](value)
            except (TypeError, ValueError) as cause:
                raise ValueError(f"the state's {name} is wrong: {cause}") from cause
        return cls(**read)


def _written(region: Evidence) -> dict[str, Any]:
    box = None if region.box is None else list(region.box)
    return {"media": region.media, "box": box, "seconds": None if region.seconds is None else list(region.seconds)}


def _region(value: Any) -> Evidence:
    if not isinstance(value, Mapping) or not set(value) <= {"media", "box", "seconds"}:
        raise ValueError("a region is an object with media, box and seconds.")
    box, seconds = value.get("box"), None
    if value.get("seconds") is not None:
        start, end = _numbers(value["seconds"], 2)
        seconds = (start, end)
    return Evidence(None if box is None else Box(*_numbers(box, 4)), _whole(value.get("media", 0)), seconds)


def _numbers(value: Any, n: int) -> list[float]:
    numbers = [float(number) for number in _list(value) if isinstance(number, int | float)]
    if len(numbers) != n or len(value) != n or not all(map(isfinite, numbers)):
        raise ValueError(f"{value!r} is not a list of {n} numbers.")
    return numbers


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number.")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text.")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is not a list.")
    return list(value)


def _heads(value: Any) -> tuple[Head, ...]:
    return tuple(dict.fromkeys(Head.parse(_text(one)) for one in _list(value)))


def _regions(value: Any) -> tuple[Evidence, ...]:
    return tuple(_region(one) for one in _list(value))


def _one_of(choices: Any) -> Any:
    def read(value: Any) -> Any:
        if value not in get_args(choices):
            raise ValueError(f"{value!r} is not one of {', '.join(get_args(choices))}.")
        return value

    return read


_READERS: dict[str, Any] = {
    "sample": _text,
    "pictures": lambda value: tuple(_text(one) for one in _list(value)),
    "question": lambda value: None if value is None else _text(value),
    "evidence": lambda value: None if value is None else _regions(value),
    "heads": _heads,
    "token": lambda value: None if value is None else _whole(value),
    "metric": _text,
    "order": _one_of(Order),
    "ablated": _heads,
    "how": _one_of(ReplaceWith),
    "regions": _regions,
    "blind": _one_of(Blind),
    "moment": _one_of(Phase),
}
