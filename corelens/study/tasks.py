"""Tasks: whether different kinds of questions need different heads."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.data import Sample
from corelens.experiments.conditions import BASELINE, ConditionResults
from corelens.heads import HeadSet
from corelens.metrics import sample_groups
from corelens.scores import HeadScores
from corelens.study.verdict import Finding, Measurement, Source, estimate_mean, not_measured, sources

TASK_METRICS = ("ram", "ram_last")
SHARE = 0.1
MIN_SAMPLES = 4

SIGNIFICANT = 0.05
"""Largest p-value of the dip test of a data set whose samples are parted by the heads that they use."""

TaskGroups = Mapping[tuple[str, str], str]
"""Name of each sample's task, by data set and id."""

CLAIM = "Tasks: different kinds of questions need different heads"

RULE = (
    "A ranking over all questions is a mean, and hides heads that one kind of question needs and others do not. Tasks "
    "are the kinds of questions of each data set, where it names them, else two groups of its samples that differ in "
    "the heads with high scores, by the question's tokens or the last one, where a dip test finds them (p at most "
    "0.05); with four or more samples to choose "
    "heads and to test them. The top 10 % of heads are found by each task alone and zeroed in all. In its own task "
    "their loss costs at least 10 points of accuracy, and at least twice what the loss of the heads of other tasks "
    "costs there: heads are ranked by the paper's metric, and those ranked by the last token are reported. Tasks count "
    "alike. The rule is corelens's own: the paper does not part questions by kind."
)


def unnamed(samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Names of the data sets that name no task."""
    return [name for name, dataset in samples.items() if not any(sample.about.get("task") for sample in dataset)]


def groups_by_heads(
    scanned: Mapping[str, HeadScores], tested: Mapping[str, HeadScores]
) -> tuple[TaskGroups, list[str]]:
    """Part the samples of data sets that name no tasks by the heads that score high on them, whatever is answered.

    Args:
        scanned: Scores by each of `TASK_METRICS`, of the samples that choose heads.
        tested: The same of the samples that test them, of these data sets alone.

    Returns:
        `group 1` or `group 2` for each sample of data sets that fall apart, and what the test says of each data set.
    """
    groups: dict[tuple[str, str], str] = {}
    notes = []
    for name in dict.fromkeys(tested[TASK_METRICS[0]].datasets):
        halves = [{metric: half[metric].for_dataset(name) for metric in TASK_METRICS} for half in (scanned, tested)]
        try:
            found = sample_groups(torch.cat([_profiles(half.values()) for half in halves]))
        except ValueError as cause:
            notes.append(f"{name} names no tasks, and was not parted: {cause}")
            continue
        apart = found.p_value <= SIGNIFICANT
        outcome = "fall into two groups" if apart else "do not fall into groups"
        notes.append(f"{name} names no tasks; by heads, its samples {outcome} (dip test, p = {found.p_value:.2g}).")
        if apart:
            ids = [sample for half in halves for sample in half[TASK_METRICS[0]].samples]
            groups |= {
                (name, sample): f"group {2 - is_first}"
                for sample, is_first in zip(ids, found.first.tolist(), strict=True)
            }
    return groups, notes


def _profiles(scores: Iterable[HeadScores]) -> Float[Tensor, "sample layer head"]:
    """Scores by several metrics, one after another along the layers, each divided by the total of its sample."""
    return torch.cat([of.values / of.values.nansum((1, 2), keepdim=True) for of in scores], 1)


def task_groups(
    scanned: Mapping[str, Sequence[Sample]], tested: Mapping[str, Sequence[Sample]], by_heads: TaskGroups | None = None
) -> TaskGroups:
    """Return the task of each sample of two halves; samples of tasks that are too small are left out.

    Args:
        scanned: The samples that choose heads.
        tested: The samples that test them.
        by_heads: Groups of samples that name no task.
    """
    tasks = [
        {
            (name, sample.id): _task(name, sample.about.get("task") or (by_heads or {}).get((name, sample.id)))
            for name, samples in half.items()
            for sample in samples
        }
        for half in (scanned, tested)
    ]
    sizes = [Counter(of_half.values()) for of_half in tasks]
    return {
        sample: task
        for of_half in tasks
        for sample, task in of_half.items()
        if min(size[task] for size in sizes) >= MIN_SAMPLES
    }


def _task(dataset: str, task: str | None) -> str:
    return f"{dataset}: {task}" if task else dataset


def task_conditions(scores: Mapping[str, HeadScores], groups: TaskGroups) -> dict[str, list[HeadSet]]:
    """Heads of each task by each of `TASK_METRICS`, as conditions such as `ram, scenes: digit`; none of a single task.

    Args:
        scores: Scores by metric, of the samples that choose heads.
        groups: As returned by `task_groups`.
    """
    names = dict.fromkeys(groups.values())
    return {
        f"{metric}, {task}": [scores[metric].select(_rows(scores[metric], groups, task)).top(SHARE)]
        for metric in TASK_METRICS
        for task in names
        if len(names) > 1
    }


def _rows(results: HeadScores | ConditionResults[HeadSet], groups: TaskGroups, task: str) -> list[int]:
    """Numbers of the samples of a task."""
    samples = zip(results.datasets, results.samples, strict=True)
    return [number for number, sample in enumerate(samples) if groups.get(sample) == task]


def tasks(ablations: ConditionResults[HeadSet] | None, groups: TaskGroups, about_groups: Sequence[str] = ()) -> Finding:
    """Test whether the heads of each task are needed in it and not in others.

    Args:
        ablations: Accuracy with the heads of `task_conditions` zeroed; None if there are none.
        groups: As returned by `task_groups`.
        about_groups: What was found of data sets that name no tasks.
    """
    own, less_others = "cost of the heads of its own task", "that, less twice the cost of the heads of other tasks"
    if ablations is None:
        needs = not_measured(own, 0.1), not_measured(less_others, 0.0)
        return Finding(CLAIM, RULE, needs, ("There are no two tasks of enough samples.", *about_groups))
    measurements: list[Measurement] = []
    reported: list[Measurement] = []
    notes = [*about_groups]
    origins = sources(ablations)
    for metric in TASK_METRICS:
        heads = {name: sets[0] for name, sets in ablations.conditions.items() if name.startswith(f"{metric}, ")}
        names = [name.removeprefix(f"{metric}, ") for name in heads]
        rows = {task: _rows(ablations, groups, task) for task in names}
        costs = {
            task: {other: _costs(ablations, f"{metric}, {other}", rows[task]) for other in names} for task in names
        }
        samples = {task: [Source(task, origins[row].group) for row in rows[task]] for task in names}
        strata = [sample for task in names for sample in samples[task]]
        of_own = np.concatenate([costs[task][task] for task in names])
        of_others = np.concatenate(
            [np.mean([costs[task][other] for other in names if other != task], axis=0) for task in names]
        )
        label, needed = ("", True) if metric == "ram" else (f", by {metric}", False)
        measurements += [
            estimate_mean(f"{own}{label}", of_own, strata, (-1, 1), 0.1 if needed else None),
            estimate_mean(f"{less_others}{label}", of_own - 2 * of_others, strata, (-3, 3), 0.0 if needed else None),
        ]
        reported += [
            estimate_mean(f"{task}, by {metric}: cost of its own heads", costs[task][task], samples[task], (-1, 1))
            for task in names
        ]
        shared = np.mean([len({*one} & {*other}) / len(one) for one, other in combinations(heads.values(), 2)])
        notes.append(f"By {metric}, two tasks share {shared:.0%} of their heads.")
    return Finding(CLAIM, RULE, (*measurements, *reported), tuple(notes))


def cost_matrix(ablations: ConditionResults[HeadSet], groups: TaskGroups, metric: str) -> dict[str, dict[str, float]]:
    """Mean cost of the heads of each task, in each task: by heads, then questions."""
    names = [name.removeprefix(f"{metric}, ") for name in ablations.conditions if name.startswith(f"{metric}, ")]
    return {
        heads: {
            task: float(_costs(ablations, f"{metric}, {heads}", _rows(ablations, groups, task)).mean())
            for task in names
        }
        for heads in names
    }


def _costs(ablations: ConditionResults[HeadSet], condition: str, rows: Sequence[int]) -> np.ndarray:
    """Loss of accuracy on some samples: [sample 1]."""
    plain, ablated = (
        ablations.values[name].nan_to_num().double().numpy()[list(rows)] for name in (BASELINE, condition)
    )
    return plain - ablated
