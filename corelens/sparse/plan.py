"""Head plans: the tokens that each attention head may attend to, given by hand or derived from a ranking.

If a few heads fetch the evidence, the others need not read the whole prompt. A `HeadPlan` gives every query head of a
model one of five rules. `HeadPlan.layer` translates it into a `LayerPlan`, which also gives the part of the KV cache
that the layer stores: a KV head is stored for all positions unless all its query heads stream tokens or are off.

    query heads          0       1         2          3           4         5
    rules              Full    Full    Streaming  Streaming   Streaming    Off
    KV heads           [---- 0 ----]   [-------- 1 -------]   [------ 2 ------]
    stored positions        all            first, last            first, last

Here `full_kv_heads` is `(0,)` and `window_kv_heads` is `(1, 2)`. With `granularity="kv_group"` the rule of the most
permissive head of a group applies to all its heads that are not off. Read on in `rules` (the rules of heads), `resolve`
(a plan on a model), `apply` (passes and `generate` under a plan), `attention` (head outputs by rule), `cache_layer`
(stored keys and values) and `cost_model` (the prompt length from which a plan pays).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from corelens.errors import check_choice
from corelens.files import parse_json, write_file
from corelens.heads import Head, HeadSet
from corelens.sparse.rules import (
    Full,
    HeadRule,
    Off,
    Streaming,
    StreamingBlocks,
    TopBlocks,
    describe_rule,
    permissiveness_order,
    rule_from_json,
    rule_to_json,
)

Granularity = Literal["kv_group", "query"]


@dataclass(frozen=True)
class HeadPlan:
    """A rule for each head of a model.

    Examples:
        >>> plan = hybrid(HeadSet.parse("L0H1, L2H3"), sink=4, window=32)
        >>> plan.rule(Head(0, 1)), plan.rule(Head(0, 2))
        (Full(), Streaming(sink=4, window=32, keep_text=False))
    """

    rules: Mapping[Head, HeadRule]
    """Rules of the heads that have one of their own."""

    default: HeadRule
    """Rule of all other heads."""

    granularity: Granularity = "kv_group"
    """`kv_group`: a more permissive head lifts the heads that share its keys, which costs no memory. `query`: heads
    follow their own rule, also where the keys are stored anyway for a neighbour, as in the paper (algorithm 3)."""

    dense_layers: frozenset[int] = field(default=frozenset())
    """Layers whose heads all attend to everything."""

    name: str = "by hand"
    """Origin of the plan, as it appears in tables and files."""

    def __post_init__(self) -> None:
        check_choice("granularity", self.granularity, Granularity)
        object.__setattr__(self, "rules", {Head(*head): rule for head, rule in self.rules.items()})
        object.__setattr__(self, "dense_layers", frozenset(self.dense_layers))

    def rule(self, head: Head) -> HeadRule:
        """Return the rule of a head, before heads that share keys are lifted."""
        return Full() if head.layer in self.dense_layers else self.rules.get(head, self.default)

    def layer(self, layer: int, n_heads: int, n_kv_heads: int) -> "LayerPlan":
        """Return the plan of one layer.

        Raises:
            ValueError: If streaming heads of the layer keep different tokens.
        """
        rules = [self.rule(Head(layer, head)) for head in range(n_heads)]
        if self.granularity == "kv_group":
            group_size = n_heads // n_kv_heads
            for first in range(0, n_heads, group_size):
                group = slice(first, first + group_size)
                active = [rule for rule in rules[group] if not isinstance(rule, Off)]
                rules[group] = [
                    rule if isinstance(rule, Off) else min(active, key=permissiveness_order) for rule in rules[group]
                ]
        return LayerPlan(tuple(rules), n_kv_heads)

    def __str__(self) -> str:
        counts = sorted(Counter(self.rules.values()).items(), key=lambda item: permissiveness_order(item[0]))
        parts = [f"{n} heads {describe_rule(rule)}" for rule, n in counts]
        return f"{self.name}: " + ", ".join([*parts, f"all others {describe_rule(self.default)}"])

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-serializable values."""
        heads_by_rule: dict[HeadRule, list[str]] = {}
        for head, rule in self.rules.items():
            heads_by_rule.setdefault(rule, []).append(str(head))
        return {
            "name": self.name,
            "granularity": self.granularity,
            "dense_layers": sorted(self.dense_layers),
            "default": rule_to_json(self.default),
            "rules": [rule_to_json(rule) | {"heads": heads} for rule, heads in heads_by_rule.items()],
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan to a JSON file."""
        write_file(path, json.dumps(self.to_json(), indent=1))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "HeadPlan":
        """Read a plan from a file that `save` wrote.

        Raises:
            ValueError: If the file holds something else.
        """
        try:
            saved = parse_json(Path(path).read_bytes())
            return cls(
                {Head.parse(head): rule_from_json(rule) for rule in saved["rules"] for head in rule["heads"]},
                rule_from_json(saved["default"]),
                saved["granularity"],
                frozenset(saved["dense_layers"]),
                saved["name"],
            )
        except (KeyError, TypeError, ValueError) as cause:
            raise ValueError(f"{path} does not hold a head plan: {cause}") from cause


def hybrid(
    core: HeadSet | Iterable[Head],
    sink: int = 128,
    window: int = 2048,
    *,
    keep_text: bool = False,
    granularity: Granularity = "kv_group",
    dense_layers: Iterable[int] = (),
) -> HeadPlan:
    """Return corelens's own plan: some heads attend to everything, all others to the first and the last tokens.

    It saves time in the prefill and in decoding, and memory. The plan of the paper is `published`.

    Args:
        core: Heads that attend to everything.
        sink: Number of first tokens that the other heads attend to.
        window: Number of last tokens that the other heads attend to.
        keep_text: True if the other heads also attend to all text of the prompt, so that they drop only pictures and
            videos.
        granularity: See `HeadPlan`.
        dense_layers: Layers whose heads all attend to everything, e.g. the first two.
    """
    rule = Streaming(sink, window, keep_text)
    name = f"hybrid of {_source(core)}"
    return HeadPlan(dict.fromkeys(core, Full()), rule, granularity, frozenset(dense_layers), name)


def published(core: HeadSet | Iterable[Head]) -> HeadPlan:
    """Return the plan of the paper: some heads attend to everything, all others, in the prompt, to 4 and 32 blocks.

    Every query head follows its own rule. Decoding attends to everything, and the cache is whole. Up to 4,608 tokens it
    is full attention.

    Source:
        Algorithm 3 (appendix G.2); `StreamingBlocks` says what its kernel computes.

    Args:
        core: Heads that attend to everything: of the paper, the first 20 to 300 by retrieval attention mass.
    """
    return HeadPlan(dict.fromkeys(core, Full()), StreamingBlocks(), "query", name=f"published plan of {_source(core)}")


def _source(core: HeadSet | Iterable[Head]) -> str:
    return core.name if isinstance(core, HeadSet) else "by hand"


@dataclass(frozen=True)
class RuleGroup:
    """Query heads of a layer that follow one rule and read the same cache, full or window."""

    rule: HeadRule
    heads: tuple[int, ...]
    """Numbers of the query heads."""

    kv_indices: tuple[int, ...]
    """Index, within that cache, of the KV heads that they read; each serves equally many of the heads, in order."""


@dataclass(frozen=True)
class LayerPlan:
    """Rules of the heads of one layer, and the keys and values that are therefore stored."""

    rules: tuple[HeadRule, ...]
    """By query head."""

    n_kv_heads: int

    def __post_init__(self) -> None:
        if len(kinds := {rule for rule in self.rules if isinstance(rule, Streaming)}) > 1:
            both = " and ".join(describe_rule(rule) for rule in sorted(kinds, key=permissiveness_order)[:2])
            raise ValueError(f"streaming heads of one layer must keep the same tokens, and some are {both}.")
        if len(self.rules) % self.n_kv_heads:
            raise ValueError(f"{len(self.rules)} query heads cannot share {self.n_kv_heads} KV heads evenly.")

    @property
    def group_size(self) -> int:
        """Number of query heads that share a KV head."""
        return len(self.rules) // self.n_kv_heads

    @property
    def streaming(self) -> Streaming | None:
        """Rule of the layer's streaming heads; None without any."""
        return next((rule for rule in self.rules if isinstance(rule, Streaming)), None)

    @cached_property
    def full_kv_heads(self) -> tuple[int, ...]:
        """KV heads that are stored for all positions."""
        return self._kv_heads_with(Full, TopBlocks, StreamingBlocks)

    @cached_property
    def window_kv_heads(self) -> tuple[int, ...]:
        """KV heads that are stored for the first and the last positions only."""
        return tuple(sorted(set(self._kv_heads_with(Streaming)) - set(self.full_kv_heads)))

    @cached_property
    def full_groups(self) -> tuple[RuleGroup, ...]:
        """Query heads that read the full cache, by rule."""
        return self._rule_groups(self.full_kv_heads)

    @cached_property
    def window_groups(self) -> tuple[RuleGroup, ...]:
        """Query heads that read the window cache; one group or none."""
        return self._rule_groups(self.window_kv_heads)

    @cached_property
    def off_heads(self) -> tuple[int, ...]:
        """Query heads whose output is zero."""
        return tuple(head for head, rule in enumerate(self.rules) if isinstance(rule, Off))

    @cached_property
    def full_cache_streaming(self) -> tuple[bool, ...]:
        """True for each query head that reads the full cache although its own rule is streaming."""
        return tuple(isinstance(self.rules[head], Streaming) for head in self.query_heads(self.full_kv_heads))

    def query_heads(self, kv_heads: tuple[int, ...]) -> tuple[int, ...]:
        """Return the query heads that share the given KV heads, in order."""
        return tuple(kv_head * self.group_size + member for kv_head in kv_heads for member in range(self.group_size))

    def _kv_heads_with(self, *kinds: type[HeadRule]) -> tuple[int, ...]:
        """KV heads that a query head with such a rule reads."""
        return tuple(
            sorted({head // self.group_size for head, rule in enumerate(self.rules) if isinstance(rule, kinds)})
        )

    def _rule_groups(self, kv_heads: Sequence[int]) -> tuple[RuleGroup, ...]:
        groups = []
        for rule in sorted(set(self.rules) - {Off()}, key=permissiveness_order):
            heads = [
                head
                for head, head_rule in enumerate(self.rules)
                if head_rule == rule and head // self.group_size in kv_heads
            ]
            if not heads:
                continue
            indices = [kv_heads.index(head // self.group_size) for head in heads]
            even = len(set(Counter(indices).values())) == 1
            groups.append(RuleGroup(rule, tuple(heads), tuple(dict.fromkeys(indices)) if even else tuple(indices)))
        return tuple(groups)
