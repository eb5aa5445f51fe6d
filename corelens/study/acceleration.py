"""Claim 5, acceleration: with CoRe heads alone seeing everything, the model is faster and answers as well."""

import numpy as np

from corelens.accelerating import Accelerated
from corelens.conditions import PLAIN
from corelens.study.finding import Effect, Finding, estimate_mean, unknown
from corelens.study.outcomes import lowest_accuracy, per_sample
from corelens.study.timing import Timing

PLAN = "core 5%"

RULE = (
    "With the top 5 % of heads seeing everything and all others the first and last tokens, the prompt is read at least "
    "1.5 times as fast (digests of the paper say 1.8 to 2.3), the model loses at most 5 points of the accuracy that it "
    "has, which is at least 25 % on every data set, and loses no more than with as many random heads. Data sets count "
    "alike; intervals of accuracy are over samples, and over draws of random heads; of speed, the slowest and the "
    "fastest of the rounds. Inferred."
)


def acceleration(found: Accelerated, measured: Timing) -> Finding:
    """Whether the plan that follows the scores is faster and as good.

    Args:
        found: Accuracy under plans, among them `PLAN` and its control.
        measured: Speeds.
    """
    names = list(dict.fromkeys(found.datasets))
    control, change, above = PLAN.replace("core", "random"), "change of accuracy", "accuracy above random heads'"

    def less(name: str, of: list[str], other: str, at_least: float | None = None) -> Effect:
        return estimate_mean(name, *per_sample(found, of, PLAN, other), (-1, 1), at_least)

    effects = [
        speed_up(measured, PLAN, at_least=1.5),
        lowest_accuracy("accuracy with nothing changed, on the hardest data set", found, names, at_least=0.25),
        less(change, names, PLAIN, at_least=-0.05),
        less(above, names, control, at_least=0.0) if control in found.conditions else unknown(above, 0.0),
    ]
    # Where prompts are as short as what all heads see, a plan changes nothing.
    for name in names if len(names) > 1 else ():
        effects.append(less(f"{change}, {name}", [name], PLAIN))
        if control in found.conditions:
            effects.append(less(f"{above}, {name}", [name], control))
    notes = [
        f"Speed is that of reading a prompt of {measured.positions:,} positions, the longest, on {measured.device}; "
        f"short prompts leave little to save, so that a claim about long ones can only be tested on long ones.",
        f"Of the attention of the prompt's last token, the plan keeps {found.kept_attention(PLAN):.0%}.",
    ]
    return Finding("Acceleration: CoRe heads alone see everything", RULE, tuple(effects), tuple(notes))


def speed_up(measured: Timing, plan: str, at_least: float | None = None) -> Effect:
    """How many times as fast as the model as it is a prompt is read."""
    ratios = [speeds[PLAIN].prefill / speeds[plan].prefill for speeds in measured.rounds]
    return Effect("speed-up of reading", float(np.median(ratios)), min(ratios), max(ratios), at_least)
