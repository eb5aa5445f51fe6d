"""Heads by task, from made-up scores and accuracies, and cross-ablation of a shipped model."""

from dataclasses import replace

import pytest
import torch

from corelens import ConditionResults, HeadScores, HeadSet, Sample
from corelens.study.tasks import (
    cost_matrix,
    groups_by_heads,
    task_conditions,
    task_groups,
    tasks,
    unnamed,
)

TASKS = ("digit", "colour")


def samples(n: int, start: int = 0) -> list[Sample]:
    """Samples of two tasks in turn."""
    return [Sample(f"s{i}", "q", "a", about={"task": TASKS[i % 2]}) for i in range(start, start + n)]


def results(own: float, other: float, n: int = 160) -> ConditionResults[HeadSet]:
    """Accuracy 1 with nothing changed, `own` without the heads of a question's task, `other` without the other's."""
    values = {"plain": torch.ones(n, 1)}
    for metric in ("ram", "ram_last"):
        for task in TASKS:
            rates = torch.tensor([own if TASKS[i % 2] == task else other for i in range(n)])
            values[f"{metric}, scenes: {task}"] = (torch.rand(n) < rates).float()[:, None]
    names = tuple(sample.id for sample in samples(n))
    sets = {name: [HeadSet.parse("L0H0" if "digit" in name else "L1H0")] for name in values}
    return ConditionResults(sets, values, names, ("scenes",) * n, {})


GROUPS = {("scenes", sample.id): f"scenes: {sample.about['task']}" for sample in samples(160)}


@pytest.mark.parametrize(
    ("own", "other", "verdict"),
    [(0.0, 1.0, "supported"), (0.0, 0.0, "not supported"), (1.0, 1.0, "not supported"), (0.5, 0.8, "inconclusive")],
)
def test_a_task_needs_its_own_heads_and_not_those_of_others(own: float, other: float, verdict: str):
    ablations = results(own, other)
    finding = tasks(ablations, GROUPS)
    assert finding.verdict == verdict
    assert finding.measurements[0].value == pytest.approx(1 - own, abs=0.2)
    assert finding.notes[0] == "By ram, two tasks share 0% of their heads."
    costs = cost_matrix(ablations, GROUPS, "ram")
    diagonal = [costs[f"scenes: {task}"][f"scenes: {task}"] for task in TASKS]
    assert sum(diagonal) / 2 == pytest.approx(finding.measurements[0].value)


def test_heads_of_a_task_are_those_of_its_samples_alone():
    values = torch.zeros(8, 2, 10)
    values[0::2, 0, 3], values[1::2, 1, 4] = 1.0, 1.0
    scores = HeadScores(values, "ram", tuple(s.id for s in samples(8)), datasets=("scenes",) * 8)
    groups = task_groups({"scenes": samples(8)}, {"scenes": samples(8, 8)})
    conditions = task_conditions({"ram": scores, "ram_last": replace(scores, metric="ram_last")}, groups)
    assert [str(sets[0])[:4] for sets in conditions.values()] == ["L0H3", "L1H4"] * 2
    assert all(len(sets[0]) == 2 for sets in conditions.values())


def test_data_sets_without_tasks_are_parted_by_the_heads_that_score_high():
    def scores(datasets: tuple[str, ...], start: int) -> HeadScores:
        values = 0.1 * torch.rand(len(datasets), 2, 10)
        for row, dataset in enumerate(datasets):
            if dataset == "apart":  # every third sample uses another head
                values[row, int(row % 3 == 0), 3] = 1.0
        return HeadScores(values, "ram", tuple(f"s{start + i}" for i in range(len(datasets))), datasets=datasets)

    def by_metric(last: HeadScores) -> dict[str, HeadScores]:
        return {"ram": replace(last, values=torch.rand(last.values.shape)), "ram_last": last}

    datasets = ("apart",) * 30 + ("alike",) * 30
    # By the other metric no head is special.
    groups, notes = groups_by_heads(by_metric(scores((*datasets, *["named"] * 5), 0)), by_metric(scores(datasets, 100)))
    assert {dataset for dataset, _ in groups} == {"apart"}
    for start in (0, 100):
        found = [groups["apart", f"s{start + i}"] for i in range(30)]
        assert found == ["group 1" if i % 3 == 0 else "group 2" for i in range(30)]
    assert notes[0].startswith("apart names no tasks; by heads, its samples fall into two groups (dip test, p = ")
    assert notes[1].startswith("alike names no tasks; by heads, its samples do not fall into groups (dip test, p = ")
    few, said = groups_by_heads(by_metric(scores(("few",) * 3, 0)), by_metric(scores(("few",) * 3, 100)))
    assert few == {}
    assert said == ["few names no tasks, and was not parted: 6 samples and 40 heads with a score in all: too few to "
                    "test for groups."]  # fmt: skip

    halves = [{"apart": [Sample(f"s{start + i}", "q", "a") for i in range(30)]} for start in (0, 100)]
    assert unnamed(halves[0]) == ["apart"]
    assert {*task_groups(*halves, groups).values()} == {"apart: group 1", "apart: group 2"}
    assert {*task_groups(*halves).values()} == {"apart"}


def test_tasks_need_samples_in_both_halves_and_a_name():
    few = samples(8)[:7]  # three of one task
    assert {*task_groups({"scenes": few}, {"scenes": samples(8, 8)}).values()} == {"scenes: digit"}
    unnamed = {"plain": [replace(sample, about={}) for sample in samples(8)]}
    assert {*task_groups(unnamed, unnamed).values()} == {"plain"}
    assert task_conditions({}, task_groups(unnamed, unnamed)) == {}
    finding = tasks(None, {})
    assert finding.verdict == "inconclusive"
    assert finding.notes == ("There are no two tasks of enough samples.",)
