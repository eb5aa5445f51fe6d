"""Tasks: whether different kinds of questions need different heads."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from corelens.data import Sample
from corelens.experiments.conditions import BASELINE, ConditionResults
from corelens.heads import HeadSet
from corelens.scores import HeadScores
from corelens.study.verdict import Finding, Measurement, Source, estimate_mean, not_measured, sources

TASK_METRICS = ("ram", "ram_last")
SHARE = 0.1
MIN_SAMPLES = 4

TaskGroups = Mapping[tuple[str, str], str]
"""Name of each sample's task, by data set and id."""

CLAIM = "Tasks: different kinds of questions need different heads"

RULE = (
    "A ranking over all questions is a mean, and hides heads that one kind of question needs and others do not. Tasks "
    "are the kinds of questions of each data set, where it names them, with four or more samples to choose heads and "
    "to test them. The top 10 % of heads are found by each task alone and zeroed in all. In its own task their loss "
    "costs at least 10 points of accuracy, and at least twice what the loss of the heads of other tasks costs there: "
    "heads are ranked by the paper's metric, and those ranked by the last token are reported. Tasks count alike. The "
    "rule is corelens's own: the paper does not part questions by kind."
)


def task_groups(scanned: Mapping[str, Sequence[Sample]], tested: Mapping[str, Sequence[Sample]]) -> TaskGroups:
    """Return the task of each sample of two halves; samples of tasks that are too small are left out."""
    tasks = [
        {(name, sample.id): _task(name, sample) for name, samples in half.items() for sample in samples}
        for half in (scanned, tested)
    ]
    sizes = [Counter(of_half.values()) for of_half in tasks]
    return {
        sample: task
        for of_half in tasks
        for sample, task in of_half.items()
        if min(size[task] for size in sizes) >= MIN_SAMPLES
    }


def _task(dataset: str, sample: Sample) -> str:
    return f"{dataset}: {sample.about['task']}" if sample.about.get("task") else dataset


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


def tasks(ablations: ConditionResults[HeadSet] | None, groups: TaskGroups) -> Finding:
    """Test whether the heads of each task are needed in it and not in others.

    Args:
        ablations: Accuracy with the heads of `task_conditions` zeroed; None if there are none.
        groups: As returned by `task_groups`.
    """
    own, less_others = "cost of the heads of its own task", "that, less twice the cost of the heads of other tasks"
    if ablations is None:
        needs = not_measured(own, 0.1), not_measured(less_others, 0.0)
        return Finding(CLAIM, RULE, needs, ("There are no two tasks of enough samples.",))
    measurements: list[Measurement] = []
    reported: list[Measurement] = []
    notes = []
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
