"""Plans: what each head may attend to, given by hand or from a ranking, and what that means for a model's layers."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from corelens.heads import Head, HeadSet


@dataclass(frozen=True)
class Full:
    """The head attends to everything before it."""


@dataclass(frozen=True)
class Streaming:
    """The head attends to the last tokens, to the first, and, if asked, to all text of the prompt.

    Source: StreamingLLM (sinks and window); 128 and 2,048 are what Elastic Attention, of the authors' laboratory, uses.
    That the paper's own acceleration does the same is inferred.
    """

    sink: int = 128
    """How many of the first tokens, padding left out."""

    window: int = 2048
    """How many of the last tokens, the attending one among them."""

    keep_text: bool = False
    """Whether every token of the prompt that is not a part of a picture or video stays in sight."""

    def __post_init__(self) -> None:
        if self.sink < 0 or self.window < 1:
            raise ValueError(
                f"a streaming head needs sink >= 0 and window >= 1, and these are {self.sink} and {self.window}."
            )


@dataclass(frozen=True)
class TopBlocks:
    """In the prompt the head attends to the key blocks that hold most attention, by an estimate; then to everything.

    Source: XAttention (antidiagonal scores).
    """

    top_p: float = 0.9
    """Share of the estimated attention that the chosen blocks hold."""

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], and is {self.top_p}.")


@dataclass(frozen=True)
class Off:
    """The head contributes nothing."""


HeadRule = Full | Streaming | TopBlocks | Off
"""What a head may attend to."""

Granularity = Literal["kv_group", "query"]

RULES: dict[str, type[HeadRule]] = {rule.__name__.lower(): rule for rule in (Full, TopBlocks, Streaming, Off)}


@dataclass(frozen=True)
class HeadPlan:
    """What each head of a model may attend to.

    Examples:
        >>> plan = hybrid(HeadSet.parse("L0H1, L2H3"), sink=4, window=32)
        >>> plan.rule(Head(0, 1)), plan.rule(Head(0, 2))
        (Full(), Streaming(sink=4, window=32, text=False))
    """

    rules: Mapping[Head, HeadRule]
    """Of the heads that are named."""

    default: HeadRule
    """Of all other heads."""

    granularity: Granularity = "kv_group"
    """`kv_group`: a head that sees more lifts the heads that share its keys, which costs no memory. `query`: heads
    follow their own rule, also where the keys are kept anyway for a neighbour; the paper's meaning (inferred)."""

    dense_layers: frozenset[int] = field(default=frozenset())
    """Layers whose heads all attend to everything."""

    name: str = "by hand"
    """How it was made, as it appears in tables and files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", {Head(*head): rule for head, rule in self.rules.items()})
        object.__setattr__(self, "untouched", frozenset(self.dense_layers))
        if self.granularity not in get_args(Granularity):
            raise ValueError(f"granularity is 'kv_group' or 'query', not {self.granularity!r}.")

    def rule(self, head: Head) -> HeadRule:
        """The rule of a head, before heads that share keys are lifted."""
        return Full() if head.layer in self.dense_layers else self.rules.get(head, self.default)

    def layer(self, layer: int, n_heads: int, n_kv_heads: int) -> "LayerPlan":
        """What the plan means for a layer.

        Raises:
            ValueError: If streaming heads of the layer keep different tokens.
        """
        rules = [self.rule(Head(layer, head)) for head in range(n_heads)]
        if self.granularity == "kv_group":
            group = n_heads // n_kv_heads
            for first in range(0, n_heads, group):
                own = [rule for rule in rules[first : first + group] if not isinstance(rule, Off)]
                rules[first : first + group] = [
                    rule if isinstance(rule, Off) else min(own, key=_sees) for rule in rules[first : first + group]
                ]
        return LayerPlan(tuple(rules), n_kv_heads)

    def __str__(self) -> str:
        named = Counter(self.rules.values())
        parts = [f"{n} heads {_said(rule)}" for rule, n in sorted(named.items(), key=lambda item: _sees(item[0]))]
        return f"{self.name}: " + ", ".join([*parts, f"all others {_said(self.default)}"])

    def to_json(self) -> dict[str, Any]:
        """The plan, ready for JSON."""
        by_rule: dict[HeadRule, list[str]] = {}
        for head, rule in self.rules.items():
            by_rule.setdefault(rule, []).append(str(head))
        return {
            "name": self.name,
            "granularity": self.granularity,
            "untouched": sorted(self.dense_layers),
            "others": _written(self.default),
            "rules": [_written(rule) | {"heads": heads} for rule, heads in by_rule.items()],
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "HeadPlan":
        """Reads what `save` wrote.

        Raises:
            ValueError: If the file holds something else.
        """
        try:
            saved = json.loads(Path(path).read_text())
            rules = {Head.parse(head): _read(rule) for rule in saved["rules"] for head in rule["heads"]}
            return cls(
                rules, _read(saved["others"]), saved["granularity"], frozenset(saved["untouched"]), saved["name"]
            )
        except (KeyError, TypeError, ValueError) as cause:
            raise ValueError(f"{path} does not hold a head plan: {cause}") from cause


@dataclass(frozen=True)
class RuleGroup:
    """Query heads of a layer that follow one rule, and which of the stored keys they read."""

    rule: HeadRule
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    """By number within their store; each serves equally many of the heads, in order."""


@dataclass(frozen=True)
class LayerPlan:
    """What the heads of one layer may attend to, and which keys and values are therefore kept."""

    rules: tuple[HeadRule, ...]
    """By query head."""

    n_kv_heads: int

    def __post_init__(self) -> None:
        if len(kinds := {rule for rule in self.rules if isinstance(rule, Streaming)}) > 1:
            both = " and ".join(_said(rule) for rule in sorted(kinds, key=_sees)[:2])
            raise ValueError(f"streaming heads of one layer must keep the same tokens, and some are {both}.")
        if len(self.rules) % self.n_kv_heads:
            raise ValueError(f"{len(self.rules)} query heads cannot share {self.n_kv_heads} heads of keys evenly.")

    @property
    def group(self) -> int:
        """How many query heads share a head of keys."""
        return len(self.rules) // self.n_kv_heads

    @property
    def streaming(self) -> Streaming | None:
        """The rule of its streaming heads."""
        return next((rule for rule in self.rules if isinstance(rule, Streaming)), None)

    @cached_property
    def whole(self) -> tuple[int, ...]:
        """The heads of keys that are kept for all positions."""
        return self._keys_of(Full, TopBlocks)

    @cached_property
    def window(self) -> tuple[int, ...]:
        """The heads of keys that are kept for the first and the last positions only."""
        return tuple(sorted(set(self._keys_of(Streaming)) - set(self.whole)))

    @cached_property
    def of_whole(self) -> tuple[RuleGroup, ...]:
        """The heads that read keys of all positions."""
        return self._parts(self.whole)

    @cached_property
    def of_window(self) -> tuple[RuleGroup, ...]:
        """The heads that read keys of the first and the last positions; one part or none."""
        return self._parts(self.window)

    @cached_property
    def off(self) -> tuple[int, ...]:
        """The heads that contribute nothing."""
        return tuple(head for head, rule in enumerate(self.rules) if isinstance(rule, Off))

    @cached_property
    def streams_of_whole(self) -> tuple[bool, ...]:
        """Which of the heads that read keys of all positions are streaming themselves."""
        return tuple(isinstance(self.rules[head], Streaming) for head in self.readers(self.whole))

    def readers(self, store: tuple[int, ...]) -> tuple[int, ...]:
        """The query heads that read some heads of keys, in order."""
        return tuple(kv * self.group + head for kv in store for head in range(self.group))

    def _keys_of(self, *kinds: type[HeadRule]) -> tuple[int, ...]:
        return tuple(sorted({head // self.group for head, rule in enumerate(self.rules) if isinstance(rule, kinds)}))

    def _parts(self, store: Sequence[int]) -> tuple[RuleGroup, ...]:
        parts = []
        for rule in sorted(set(self.rules) - {Off()}, key=_sees):
            heads = [head for head, own in enumerate(self.rules) if own == rule and head // self.group in store]
            if not heads:
                continue
            kv_heads = [store.index(head // self.group) for head in heads]
            even = len(set(Counter(kv_heads).values())) == 1
            parts.append(RuleGroup(rule, tuple(heads), tuple(dict.fromkeys(kv_heads)) if even else tuple(kv_heads)))
        return tuple(parts)


def hybrid(
    core: HeadSet | Iterable[Head],
    sink: int = 128,
    window: int = 2048,
    *,
    text: bool = False,
    granularity: Granularity = "kv_group",
    untouched: Iterable[int] = (),
) -> HeadPlan:
    """The plan of the paper: CoRe heads attend to everything, all others to the first and the last tokens.

    Args:
        core: The heads that keep seeing everything.
        sink: How many of the first tokens the others see.
        window: How many of the last tokens the others see.
        text: Whether the others also see all text of the prompt, so that only pictures and videos fade.
        granularity: See `HeadPlan`.
        untouched: Layers whose heads all attend to everything, e.g. the first two.
    """
    named = core.name if isinstance(core, HeadSet) else "by hand"
    return HeadPlan(
        dict.fromkeys(core, Full()),
        Streaming(sink, window, text),
        granularity,
        frozenset(untouched),
        f"hybrid of {named}",
    )


def _sees(rule: HeadRule) -> tuple[float | int, ...]:
    """Sorts rules: those that see most come first."""
    return (list(RULES.values()).index(type(rule)), *(-setting for setting in astuple(rule)))


def _said(rule: HeadRule) -> str:
    match rule:
        case Full():
            return "full"
        case Streaming(sink, window, text):
            return f"streaming (first {sink}, last {window}{', text' if text else ''})"
        case TopBlocks(top_p):
            return f"top blocks (p = {top_p:g})"
        case Off():
            return "off"


def _written(rule: HeadRule) -> dict[str, Any]:
    return {"kind": type(rule).__name__.lower(), **asdict(rule)}


def _read(saved: Mapping[str, Any]) -> HeadRule:
    settings = {name: value for name, value in saved.items() if name not in ("kind", "heads")}
    return RULES[saved["kind"]](**settings)
