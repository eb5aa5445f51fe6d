"""Necessity from made-up accuracies."""

import torch

from corelens import ConditionResults, HeadSet
from corelens.study import necessity


def condition_results(**accuracies: float) -> ConditionResults[HeadSet]:
    """Results on forty questions about pictures and forty text questions, by accuracy of each condition.

    `NAME__text=ACCURACY`, after `NAME=ACCURACY`, sets the accuracy on text only.
    """
    values: dict[str, torch.Tensor] = {}
    for name, accuracy in accuracies.items():
        condition, _, only_text = name.partition("__")
        correct = (torch.arange(40) < round(40 * accuracy)).float()
        both = torch.cat([values[condition][:40, 0], correct]) if only_text else correct.repeat(2)
        values[condition] = both[:, None]
    no_heads = HeadSet(())
    datasets = ("scenes",) * 40 + ("copy",) * 40
    return ConditionResults({name: [no_heads] for name in values}, values, tuple(map(str, range(80))), datasets, {})


def test_necessity_needs_a_cost_that_neither_controls_nor_text_share():
    controls = {"plain": 0.9, "next-ranked": 0.9, "write-matched": 0.9}
    needed = condition_results(**controls, top=0.1, top__text=0.9)
    mean = {"mean": needed}
    doses = {"random 5": 0.9, "bottom 5": 0.9, "random 10": 0.9, "bottom 10": 0.9}
    masked = condition_results(plain=0.9, **{"top 5": 0.9, "top 10": 0.1}, **doses)
    assert necessity(needed, mean, masked, ["copy"]).verdict == "supported"
    text_lost = condition_results(**controls, top=0.1, top__text=0.1)
    assert necessity(text_lost, mean, masked, ["copy"]).verdict == "not supported"
    for control in ("next-ranked", "write-matched"):
        control_lost = condition_results(**controls | {control: 0.1}, top=0.1, top__text=0.9)
        assert necessity(control_lost, mean, masked, ["copy"]).verdict == "not supported"
    nothing_lost = condition_results(plain=0.9, top=0.9)
    assert necessity(needed, {"mean": nothing_lost}, masked, ["copy"]).verdict == "not supported"
    assert necessity(condition_results(plain=0.0, top=0.0), {}, masked, []).verdict == "cannot be tested"
    # A model that hardly answers has nothing to lose, and one that cannot read is no control.
    hardly_answers = condition_results(**dict.fromkeys(controls, 0.1), top=0.0)
    assert necessity(hardly_answers, mean, masked, ["copy"]).verdict == "cannot be tested"
    # Of two options, six of ten right answers are near to guessing.
    near_chance = condition_results(**dict.fromkeys(controls, 0.6), top=0.0, plain__text=0.9, top__text=0.9)
    assert necessity(near_chance, mean, masked, ["copy"]).verdict == "supported"
    assert necessity(near_chance, mean, masked, ["copy"], {"scenes": 0.5}).verdict in (
        "inconclusive",
        "cannot be tested",
    )
    cannot_read = condition_results(**controls, top=0.1, plain__text=0.0, top__text=0.0)
    assert necessity(cannot_read, mean, masked, ["copy"]).verdict == "cannot be tested"
    # The paper's mask counts at its largest number of heads, and against random and bottom heads.
    harmless_mask = condition_results(plain=0.9, **{"top 5": 0.1, "top 10": 0.9}, **doses)
    assert necessity(needed, mean, harmless_mask, ["copy"]).verdict == "not supported"
    for control in ("random 10", "bottom 10"):
        control_masked = condition_results(plain=0.9, **{"top 5": 0.9, "top 10": 0.1}, **doses | {control: 0.1})
        assert necessity(needed, mean, control_masked, ["copy"]).verdict == "not supported"
    assert necessity(needed, mean, condition_results(plain=0.9), ["copy"]).verdict == "inconclusive"
    # A need that was not measured is not met.
    without_controls = condition_results(plain=0.9, top=0.1, top__text=0.9)
    finding = necessity(without_controls, mean, masked, ["copy"])
    assert finding.verdict == "inconclusive"
    assert finding.notes[0].startswith("No heads outside the top write as much")
    assert necessity(needed, mean, masked, ["copy"]).notes[0].startswith("0 of 1 draws of write-matched heads cost")
    assert necessity(needed, {}, masked, ["copy"]).verdict == "inconclusive"
    assert necessity(needed, mean, masked, []).verdict == "inconclusive"
