"""The state of the explorer: one value that is synchronised, linked to and undone as a whole."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    GetPydanticSchema,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

from corelens.data import Evidence
from corelens.heads import Head
from corelens.tokens import Box

ReplaceWith = Literal["zero", "mean"]
Order = Literal["layer", "score"]
HiddenFrom = Literal["all", "chosen"]
Moment = Literal["before", "after"]

MAX_QUESTION = 10_000
"""Most letters of a question: the page shows every token of it, and the model runs for nobody else meanwhile."""

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class _RegionFields:
    """JSON fields of a region."""

    __pydantic_config__ = _STRICT

    media: int = 0
    box: Box | None = None
    seconds: tuple[float, float] | None = None

    def evidence(self) -> Evidence:
        return Evidence(self.box, self.media, self.seconds)

    @staticmethod
    def of(region: Evidence) -> dict[str, Any]:
        return {"media": region.media, "box": region.box, "seconds": region.seconds}


_Region = Annotated[
    Evidence,
    GetPydanticSchema(lambda _, handler: handler(_RegionFields)),
    AfterValidator(_RegionFields.evidence),
    PlainSerializer(_RegionFields.of),
]
_Head = Annotated[Head, PlainValidator(lambda value: Head.parse(str(value))), PlainSerializer(str)]
_Heads = Annotated[tuple[_Head, ...], AfterValidator(lambda heads: tuple(dict.fromkeys(heads)))]


@dataclass(frozen=True)
class ExplorerState:
    """Everything that decides what the explorer shows; equal states show the same."""

    __pydantic_config__ = _STRICT

    sample: str = ""
    """Id of the sample; empty for uploaded pictures, or none."""

    pictures: tuple[str, ...] = ()
    """Ids of uploaded pictures, which replace a sample's."""

    question: str | None = None
    """Question typed by the user; None for the sample's."""

    evidence: tuple[_Region, ...] | None = None
    """Evidence marked by the user; None for the sample's."""

    heads: _Heads = ()
    """Heads whose attention is shown, the one in focus first."""

    token: int | None = None
    """Position of the query token; None for the last of the prompt."""

    metric: str = "ram"
    """Metric that colours the heads."""

    order: Order = "layer"
    """Order of the heads: by layer and number, or highest first."""

    ablated: _Heads = ()
    """Heads that are ablated from the question on."""

    how: ReplaceWith = "zero"
    """Replacement of ablated heads' outputs."""

    regions: tuple[_Region, ...] = ()
    """Parts of pictures that are masked from attention from the question on."""

    blind: HiddenFrom = "all"
    """Heads that `regions` are masked for: all, or those that are shown."""

    moment: Moment = "after"
    """Phase that heads and maps show: with these changes, or before them."""

    wall: bool = False
    """True for thumbnails of all heads' attention in the place of their values."""

    @property
    def changes(self) -> tuple[Any, ...]:
        """Key of the interventions; equal for states whose interventions are equal."""
        masking = (self.regions, self.blind, frozenset(self.heads) if self.blind == "chosen" else None)
        return (frozenset(self.ablated), self.how if self.ablated else None, *(masking if self.regions else ()))

    @property
    def shown_changes(self) -> tuple[Any, ...]:
        """Key of the interventions that heads and maps are shown with."""
        return self.changes if self.moment == "after" else ExplorerState().changes

    def json(self) -> dict[str, Any]:
        """Return the state as JSON; heads are written as in L4H2."""
        return _adapter.dump_python(self, mode="json")

    @classmethod
    def parse(cls, state: Any) -> "ExplorerState":
        """Read a state from JSON; fields that are left out keep their defaults.

        Raises:
            ValueError: If it is no state; names the field. Heads and positions are checked against a model and a prompt
                only when the state is shown.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"a state is a JSON object, not {type(state).__name__}.")
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(map(str, state)) - names):
            raise ValueError(f"a state has no {', '.join(unknown)}; it has {', '.join(sorted(names))}.")
        question = state.get("question")
        if isinstance(question, str) and len(question) > MAX_QUESTION:
            raise ValueError(f"the question has {len(question)} letters; {MAX_QUESTION} can be explored at most.")
        try:
            # As text, since strict validation of Python objects takes no list for a tuple.
            return _adapter.validate_json(json.dumps(dict(state)))
        except TypeError as cause:
            raise ValueError(f"a state is JSON: {cause}.") from cause
        except ValidationError as cause:
            raise ValueError(_message(cause)) from cause


_adapter = TypeAdapter(ExplorerState)


def _message(cause: ValidationError) -> str:
    """Name the field, the value and the way out of the first error."""
    error = cause.errors()[0]
    field = ".".join(map(str, error["loc"])) or "JSON"
    reason = error.get("ctx", {}).get("error")
    if not isinstance(reason, ValueError):
        reason = f"{error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}."
    return f"the state's {field} is wrong: {reason}"
