"""Claim 4, necessity: without the CoRe heads the model cannot see, and without others it can."""

from collections.abc import Collection, Mapping

import numpy as np

from corelens.conditions import PLAIN, Conditions
from corelens.heads import HeadSet
from corelens.study.finding import Effect, Finding, estimate

CONTROLS = ("next-ranked", "random", "random, same layers")

RULE = (
    "Zeroing the top 5 % of heads, in prefill and decoding, costs at least 10 points of accuracy on questions about "
    "pictures, as does putting their mean in their place; at least twice what zeroing as many next-ranked heads, "
    "random heads and random heads of the same layers costs; and at least twice what it costs on text-only questions. "
    "Heads are chosen on other samples; intervals are over samples, paired. Bottom heads are reported and not in the "
    "rule: in the models shipped here, on which this rule was thought out, they do groundwork for everything. Other "
    "operations, phases and sufficiency are reported, too. Inferred."
)


def necessity(
    zeroed: Conditions[HeadSet], others: Mapping[str, Conditions[HeadSet]], texts: Collection[str]
) -> Finding:
    """Whether the top heads are needed to see.

    Args:
        zeroed: Accuracy with heads zeroed: `top` and `CONTROLS`.
        others: By the operation or phase that differs; `mean` is in the rule.
        texts: Which data sets are text-only.
    """
    top = _costs(zeroed, "top", texts)
    effects = [_cost("cost of zeroing the top heads", zeroed, "top", texts, needed=True)]
    if "mean" in others:
        effects.append(_cost("cost of the mean in their place", others["mean"], "top", texts, needed=True))
    for control in CONTROLS:
        if control in zeroed.conditions:
            more = top - 2 * _costs(zeroed, control, texts)
            effects.append(_estimated(f"cost of top less twice that of {control}", more, at_least=0.0))
    if asked := [name for name in dict.fromkeys(zeroed.datasets) if name in texts]:
        text = np.concatenate([-zeroed.compared("top", name).differences for name in asked])
        both, of_text = np.concatenate([top, text]), np.arange(len(top) + len(text)) >= len(top)
        effects.append(
            estimate(
                "cost of top less twice that on text",
                lambda i: float(both[i[~of_text[i]]].mean() - 2 * both[i[of_text[i]]].mean()),
                of_text.tolist(),
                at_least=0.0,
            )
        )
    if "bottom" in zeroed.conditions:
        effects.append(_cost("cost of zeroing the bottom heads", zeroed, "bottom", texts))
    for name, found in others.items():
        if name == "mean":
            continue  # stands above
        effects += [_cost(f"{name}: cost of {one}", found, one, texts) for one in found.conditions if one != PLAIN]
    plain = accuracy(zeroed, PLAIN, texts)
    notes = [f"With nothing removed the model answers {plain:.1%} of {len(top)} questions about pictures."]
    if "sufficiency" in others:
        notes.append("Blinding heads hides all visual tokens from them: what is left to see goes through the others.")
    if plain < 0.1:
        notes.append("A model that answers hardly any question has nothing to lose: the claim cannot hold of it.")
    return Finding("Necessity: the top heads are needed to see", RULE, tuple(effects), tuple(notes))


def accuracy(found: Conditions[HeadSet], condition: str, texts: Collection[str]) -> float:
    """Mean accuracy on questions about pictures."""
    own = [name for name in found.datasets if name not in texts]
    return float(np.mean([np.mean(found.accuracies(condition, name)) for name in own]))


def _costs(found: Conditions[HeadSet], condition: str, texts: Collection[str]) -> np.ndarray:
    """What a condition costs each sample that has pictures, one data set after the other."""
    own = [name for name in dict.fromkeys(found.datasets) if name not in texts]
    return np.concatenate([-found.compared(condition, name).differences for name in own])


def _cost(
    name: str, found: Conditions[HeadSet], condition: str, texts: Collection[str], needed: bool = False
) -> Effect:
    return _estimated(name, _costs(found, condition, texts), 0.1 if needed else None)


def _estimated(name: str, per_sample: np.ndarray, at_least: float | None = None) -> Effect:
    return estimate(name, lambda i: float(per_sample[i].mean()), [""] * len(per_sample), at_least)
