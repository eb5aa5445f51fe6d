"""Claim 5, acceleration: with CoRe heads alone seeing everything, the model is faster and answers as well."""

from typing import Any

import numpy as np

from corelens.accelerating import Accelerated
from corelens.conditions import PLAIN, Conditions
from corelens.study.finding import Effect, Finding, estimate
from corelens.study.timing import Timing

PLAN = "core 5%"

RULE = (
    "With the top 5 % of heads seeing everything and all others the first and last tokens, the prompt is read at least "
    "1.5 times as fast (digests of the paper say 1.8 to 2.3), the model loses at most 5 points of the accuracy that it "
    "has, which is at least 25 %, and loses no more than with as many random heads. Intervals of accuracy are over "
    "samples; of speed, the slowest and the fastest of the rounds. Inferred."
)


def acceleration(found: Accelerated, measured: Timing) -> Finding:
    """Whether the plan that follows the scores is faster and as good.

    Args:
        found: Accuracy under plans, among them `PLAN` and its control.
        measured: Speeds.
    """
    plain, core = _scores(found, PLAIN), _scores(found, PLAN)
    strata = [""] * len(plain)
    effects = [
        speed_up(measured, PLAN, at_least=1.5),
        estimate("accuracy of the model as it is", lambda i: float(plain[i].mean()), strata, at_least=0.25),
        estimate("change of accuracy", lambda i: float((core - plain)[i].mean()), strata, at_least=-0.05),
    ]
    against = {"change of accuracy": core - plain}
    if (control := PLAN.replace("core", "random")) in found.conditions:
        apart = against["accuracy above random heads'"] = core - _scores(found, control)
        effects.append(estimate("accuracy above random heads'", lambda i: float(apart[i].mean()), strata, at_least=0.0))
    # Where prompts are as short as what all heads see, a plan changes nothing.
    names = dict.fromkeys(found.datasets) if len(set(found.datasets)) > 1 else ()
    for dataset in names:
        of = np.array(found.datasets) == dataset
        effects += [
            estimate(f"{what}, {dataset}", lambda i, own=own[of]: float(own[i].mean()), [""] * int(of.sum()))
            for what, own in against.items()
        ]
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


def accuracy(found: Conditions[Any], plan: str) -> float:
    """Over all samples."""
    return float(_scores(found, plan).mean())


def _scores(found: Conditions[Any], plan: str) -> np.ndarray:
    """Of each sample, the mean over draws; what cannot be read is not right."""
    return found.values[plan].nan_to_num().mean(1).double().numpy()
