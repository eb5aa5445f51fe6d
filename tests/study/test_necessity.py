"""Necessity from made-up accuracies."""

import numpy as np
import pytest
import torch

from corelens import ConditionResults, HeadSet
from corelens.study import Measurement
from corelens.study.necessity import necessity, power, reliability, samples_for_power
from corelens.study.verdict import estimate_mean
from tests.helpers.studies import head_scores

RELIABLE = Measurement(
    "share of the top heads that another half of the samples chooses, too", 0.9, 0.8, 1.0, 0.5, of_premise=True
)


def condition_results(dataset: str = "scenes", **accuracies: float) -> ConditionResults[HeadSet]:
    """Results on forty questions of a data set, by accuracy of each condition."""
    values = {name: (torch.arange(40) < round(40 * accuracy)).float()[:, None] for name, accuracy in accuracies.items()}
    no_heads = HeadSet(())
    return ConditionResults(
        {name: [no_heads] for name in values}, values, tuple(map(str, range(40))), (dataset,) * 40, {}
    )


def test_necessity_needs_a_cost_that_neither_controls_nor_text_share():
    controls = {"plain": 0.9, "next-ranked": 0.9, "write-matched": 0.9, "bottom": 0.9}
    needed, kept = condition_results(**controls, top=0.1), condition_results("copy", plain=0.9, top=0.9)
    mean = {"mean": needed}
    doses = {"random 5": 0.9, "bottom 5": 0.9, "random 10": 0.9, "bottom 10": 0.9}
    masked = condition_results(plain=0.9, **{"top 5": 0.9, "top 10": 0.1}, **doses)
    assert necessity(needed, kept, mean, masked, RELIABLE).verdict == "supported"
    text_lost = condition_results("copy", plain=0.9, top=0.1)
    assert necessity(needed, text_lost, mean, masked, RELIABLE).verdict == "not supported"
    for control in ("next-ranked", "write-matched", "bottom"):
        control_lost = condition_results(**controls | {control: 0.1}, top=0.1)
        assert necessity(control_lost, kept, mean, masked, RELIABLE).verdict == "not supported"
    nothing_lost = condition_results(plain=0.9, top=0.9)
    assert necessity(needed, kept, {"mean": nothing_lost}, masked, RELIABLE).verdict == "not supported"
    # The paper's mask counts at its largest number of heads, and against random and bottom heads.
    harmless_mask = condition_results(plain=0.9, **{"top 5": 0.1, "top 10": 0.9}, **doses)
    assert necessity(needed, kept, mean, harmless_mask, RELIABLE).verdict == "not supported"
    for control in ("random 10", "bottom 10"):
        control_masked = condition_results(plain=0.9, **{"top 5": 0.9, "top 10": 0.1}, **doses | {control: 0.1})
        assert necessity(needed, kept, mean, control_masked, RELIABLE).verdict == "not supported"
    # A need that was not measured is not met.
    assert necessity(needed, kept, mean, condition_results(plain=0.9), RELIABLE).verdict == "inconclusive"
    assert necessity(needed, kept, {}, masked, RELIABLE).verdict == "inconclusive"
    assert necessity(needed, None, mean, masked, RELIABLE).verdict == "inconclusive"
    results = condition_results(plain=0.9, top=0.1, bottom=0.9, **{"next-ranked": 0.9})
    without_controls = necessity(results, kept, mean, masked, RELIABLE, no_controls="L1H2 writes 3.")
    assert without_controls.verdict == "inconclusive"
    assert without_controls.notes[0].startswith("There are no write-matched heads")
    assert without_controls.notes[0].endswith("L1H2 writes 3.")
    assert (
        necessity(needed, kept, mean, masked, RELIABLE).notes[0].startswith("0 of 1 draws of write-matched heads cost")
    )


def test_necessity_cannot_be_tested_where_there_is_nothing_to_lose():
    controls = {"plain": 0.9, "next-ranked": 0.9, "write-matched": 0.9, "bottom": 0.9}
    kept = condition_results("copy", plain=0.9, top=0.9)
    for accuracy in (0.0, 0.1):
        answers = condition_results(**dict.fromkeys(controls, accuracy), top=0.0)
        assert necessity(answers, kept, {"mean": answers}, answers, RELIABLE).verdict == "cannot be tested"
    # A model that cannot read is no control.
    seen, cannot_read = condition_results(**controls, top=0.1), condition_results("copy", plain=0.0, top=0.0)
    assert necessity(seen, cannot_read, {"mean": seen}, seen, RELIABLE).verdict == "cannot be tested"
    # Of two options, six of ten right answers are near to guessing; of open answers they are not.
    guessed = condition_results(**dict.fromkeys(controls, 0.55), top=0.0)
    assert necessity(guessed, kept, {"mean": guessed}, guessed, RELIABLE).measurements[0].met
    premise = necessity(guessed, kept, {"mean": guessed}, guessed, RELIABLE, {"scenes": 0.5}).measurements[0]
    assert premise.value == pytest.approx(0.1)
    assert not premise.met


def test_necessity_cannot_be_tested_with_heads_that_chance_chose():
    """Half of the samples must choose the heads of the other half."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(40, 10, 16, generator=generator)
    steady = noise.clone()
    steady[:, 1, :8] += 1
    controls = {"plain": 0.9, "next-ranked": 0.9, "write-matched": 0.9, "bottom": 0.9}
    needed, kept = condition_results(**controls, top=0.1), condition_results("copy", plain=0.9, top=0.9)
    masked = condition_results(plain=0.9, **{"top 5": 0.1, "random 5": 0.9, "bottom 5": 0.9})
    for values, verdict in ((steady, "supported"), (noise, "cannot be tested")):
        chosen_again = reliability(head_scores(values), 0.05)
        assert necessity(needed, kept, {"mean": needed}, masked, chosen_again).verdict == verdict
    assert not reliability(head_scores(noise[:1]), 0.05).met


def test_a_cost_is_seen_as_often_as_its_power_says():
    """On 60 and 150 simulated questions, of which a fifth is lost; the run's own interval decides."""
    rng = np.random.default_rng(0)
    for n_samples in (60, 150):
        lost = rng.random((200, n_samples, 1)) < 0.2
        seen = [
            estimate_mean("cost", costs.astype(float), [""] * n_samples, (-1, 1), 0.1).met is True for costs in lost
        ]
        assert np.mean(seen) == pytest.approx(power(n_samples, 0.2, 0.1), abs=0.12)
    n_enough = samples_for_power(0.2, 0.1)
    assert power(n_enough - 1, 0.2, 0.1) < 0.8 <= power(n_enough, 0.2, 0.1)
