"""Claim 4, necessity: without the CoRe heads the model cannot see, and without others it can."""

from collections.abc import Collection, Mapping

from corelens.experiments.conditions import BASELINE, ConditionResults
from corelens.heads import HeadSet
from corelens.study.verdict import Finding, Measurement, estimate_mean, lowest_accuracy, not_measured, per_sample

CONTROLS = ("next-ranked", "random", "random, same layers")

RULE = (
    "The model has an accuracy of at least 25 % on every data set and 50 % on text, so that there is something to "
    "lose. Zeroing the top 5 % of heads, in prefill and decoding, costs at least 10 points of accuracy on questions "
    "about pictures, as does putting their mean in their place; at least twice what zeroing as many next-ranked heads, "
    "random heads and random heads of the same layers costs; and at least twice what it costs on text-only questions. "
    "Heads are chosen on other samples; data sets count alike; intervals are over samples, paired, and over draws of "
    "random heads. Bottom heads are "
    "reported and not in the rule: in the models shipped here, on which this rule was thought out, they do groundwork "
    "for everything. Other operations, phases and sufficiency are reported, too. Inferred."
)


def necessity(
    zeroed: ConditionResults[HeadSet], others: Mapping[str, ConditionResults[HeadSet]], texts: Collection[str]
) -> Finding:
    """Whether the top heads are needed to see.

    Args:
        zeroed: Accuracy with heads zeroed: `top` and `CONTROLS`.
        others: By the operation or phase that differs; `mean` is in the rule.
        texts: Which data sets are text-only.
    """
    own = [name for name in dict.fromkeys(zeroed.datasets) if name not in texts]
    asked = [name for name in dict.fromkeys(zeroed.datasets) if name in texts]

    def cost(name: str, found: ConditionResults[HeadSet], condition: str, at_least: float | None = None) -> Measurement:
        costs, datasets = per_sample(found, own, BASELINE, condition)
        return estimate_mean(name, costs, datasets, (-1, 1), at_least)

    effects = [lowest_accuracy("accuracy with nothing changed, on the hardest data set", zeroed, own, at_least=0.25)]
    text = "accuracy on text with nothing changed, on the hardest task"
    effects.append(lowest_accuracy(text, zeroed, asked, at_least=0.5) if asked else not_measured(text, 0.5))
    effects.append(cost("cost of zeroing the top heads", zeroed, "top", 0.1))
    mean = "cost of the mean in their place"
    effects.append(cost(mean, others["mean"], "top", 0.1) if "mean" in others else not_measured(mean, 0.1))
    top, datasets = per_sample(zeroed, own, BASELINE, "top")
    for control in CONTROLS:
        name = f"cost of top less twice that of {control}"
        if control not in zeroed.conditions:
            effects.append(not_measured(name, 0.0))
            continue
        more = top - 2 * per_sample(zeroed, own, BASELINE, control)[0]
        effects.append(estimate_mean(name, more, datasets, (-2, 2), at_least=0.0))
    name = "cost of top less twice that on text"
    if asked:
        both, datasets = per_sample(zeroed, [*own, *asked], BASELINE, "top")
        weights = dict.fromkeys(own, 1 / len(own)) | dict.fromkeys(asked, -2 / len(asked))
        effects.append(estimate_mean(name, both, datasets, (-1, 1), 0.0, weights))
    else:
        effects.append(not_measured(name, 0.0))
    if "bottom" in zeroed.conditions:
        effects.append(cost("cost of zeroing the bottom heads", zeroed, "bottom"))
    for how, found in others.items():
        if how == "mean":
            continue  # stands above
        effects += [cost(f"{how}: cost of {one}", found, one) for one in found.conditions if one != BASELINE]
    notes = []
    if "sufficiency" in others:
        notes.append("Blinding heads hides all visual tokens from them: what is left to see goes through the others.")
    return Finding("Necessity: the top heads are needed to see", RULE, tuple(effects), tuple(notes))
