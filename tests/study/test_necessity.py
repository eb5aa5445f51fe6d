"""Necessity from made-up accuracies."""

import pytest
import torch

from corelens import ConditionResults, HeadSet
from corelens.study import necessity


def condition_results(dataset: str = "scenes", **accuracies: float) -> ConditionResults[HeadSet]:
    """Results on forty questions of a data set, by accuracy of each condition."""
    values = {name: (torch.arange(40) < round(40 * accuracy)).float()[:, None] for name, accuracy in accuracies.items()}
    no_heads = HeadSet(())
    return ConditionResults(
        {name: [no_heads] for name in values}, values, tuple(map(str, range(40))), (dataset,) * 40, {}
    )


def test_necessity_needs_a_cost_that_neither_controls_nor_text_share():
    controls = {"plain": 0.9, "next-ranked": 0.9, "write-matched": 0.9}
    needed, kept = condition_results(**controls, top=0.1), condition_results("copy", plain=0.9, top=0.9)
    mean = {"mean": needed}
    doses = {"random 5": 0.9, "bottom 5": 0.9, "random 10": 0.9, "bottom 10": 0.9}
    masked = condition_results(plain=0.9, **{"top 5": 0.9, "top 10": 0.1}, **doses)
    assert necessity(needed, kept, mean, masked).verdict == "supported"
    text_lost = condition_results("copy", plain=0.9, top=0.1)
    assert necessity(needed, text_lost, mean, masked).verdict == "not supported"
    for control in ("next-ranked", "write-matched"):
        control_lost = condition_results(**controls | {control: 0.1}, top=0.1)
        assert necessity(control_lost, kept, mean, masked).verdict == "not supported"
    nothing_lost = condition_results(plain=0.9, top=0.9)
    assert necessity(needed, kept, {"mean": nothing_lost}, masked).verdict == "not supported"
    # The paper's mask counts at its largest number of heads, and against random and bottom heads.
    harmless_mask = condition_results(plain=0.9, **{"top 5": 0.1, "top 10": 0.9}, **doses)
    assert necessity(needed, kept, mean, harmless_mask).verdict == "not supported"
    for control in ("random 10", "bottom 10"):
        control_masked = condition_results(plain=0.9, **{"top 5": 0.9, "top 10": 0.1}, **doses | {control: 0.1})
        assert necessity(needed, kept, mean, control_masked).verdict == "not supported"
    # A need that was not measured is not met.
    assert necessity(needed, kept, mean, condition_results(plain=0.9)).verdict == "inconclusive"
    assert necessity(needed, kept, {}, masked).verdict == "inconclusive"
    assert necessity(needed, None, mean, masked).verdict == "inconclusive"
    without_controls = necessity(condition_results(plain=0.9, top=0.1), kept, mean, masked)
    assert without_controls.verdict == "inconclusive"
    assert without_controls.notes[0].startswith("No heads outside the top write as much")
    assert necessity(needed, kept, mean, masked).notes[0].startswith("0 of 1 draws of write-matched heads cost")


def test_necessity_cannot_be_tested_where_there_is_nothing_to_lose():
    controls = {"plain": 0.9, "next-ranked": 0.9, "write-matched": 0.9}
    kept = condition_results("copy", plain=0.9, top=0.9)
    for accuracy in (0.0, 0.1):
        answers = condition_results(**dict.fromkeys(controls, accuracy), top=0.0)
        assert necessity(answers, kept, {"mean": answers}, answers).verdict == "cannot be tested"
    # A model that cannot read is no control.
    seen, cannot_read = condition_results(**controls, top=0.1), condition_results("copy", plain=0.0, top=0.0)
    assert necessity(seen, cannot_read, {"mean": seen}, seen).verdict == "cannot be tested"
    # Of two options, six of ten right answers are near to guessing; of open answers they are not.
    guessed = condition_results(**dict.fromkeys(controls, 0.55), top=0.0)
    assert necessity(guessed, kept, {"mean": guessed}, guessed).measurements[0].met
    premise = necessity(guessed, kept, {"mean": guessed}, guessed, {"scenes": 0.5}).measurements[0]
    assert premise.value == pytest.approx(0.1)
    assert not premise.met
