"""Finished ablations: accuracy by dose, and the numbers of a run in a few words."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from corelens.experiments.conditions import BASELINE, MATCHED, ConditionResults
from corelens.heads import HeadSet

KINDS = ("top", "next-ranked", "random", "random, same layers", "bottom")
"""Kinds of head sets that `HeadScores.controls` returns."""


@dataclass(frozen=True)
class AblationCurve:
    """Accuracy by dose, the number or share of heads ablated, for every kind of head set."""

    doses: tuple[float | int, ...]
    """Whole numbers are numbers of heads, fractions are shares of all heads."""

    heads: dict[str, list[list[HeadSet]]]
    """By kind, then dose, then seed; kinds that are not random have one set, impossible ones none."""

    accuracy: dict[str, list[list[float]]]
    """In the same order."""

    plain: float | None = None
    """Accuracy with nothing ablated."""

    def mean(self, kind: str) -> list[float]:
        """Mean over seeds, by dose; NaN where the kind is impossible."""
        return [float(np.mean(values)) if values else float("nan") for values in self.accuracy[kind]]

    def sd(self, kind: str) -> list[float]:
        """Standard deviation over seeds, by dose; zero for kinds that are not random."""
        return [float(np.std(values)) if values else float("nan") for values in self.accuracy[kind]]


def dose_curve(results: ConditionResults[HeadSet], dataset: str) -> AblationCurve | None:
    """Curve of a data set over the doses of `dose_conditions`; None if conditions have no doses."""
    kinds = (*KINDS, MATCHED)
    by_dose: dict[str, dict[str, str]] = {}
    for condition in results.conditions:
        kind, _, dose = condition.rpartition(" ")
        if kind in kinds:
            by_dose.setdefault(dose, {})[kind] = condition
    if not by_dose:
        return None
    names = {kind: [conditions.get(kind) for conditions in by_dose.values()] for kind in kinds}
    return AblationCurve(
        tuple(float(dose[:-1]) / 100 if dose.endswith("%") else int(dose) for dose in by_dose),
        {kind: [list(results.conditions[name]) if name else [] for name in of] for kind, of in names.items()},
        {kind: [results.accuracies(name, dataset) if name else [] for name in of] for kind, of in names.items()},
        results.accuracies(BASELINE, dataset)[0],
    )


def ablation_summary(results: ConditionResults[HeadSet]) -> dict[str, Any]:
    """Head sets, accuracies and skipped samples of an ablation, ready for JSON."""
    return {
        "heads": {name: [str(heads) for heads in sets] for name, sets in results.conditions.items()},
        "data": {
            dataset: {**summary, "write-matched draws as costly as top": matched_as_costly(results, dataset)}
            for dataset, summary in results.summary_by_dataset().items()
        },
        "skipped": dict(results.skipped),
    }


def matched_as_costly(results: ConditionResults[HeadSet], dataset: str) -> dict[str, tuple[int, int]]:
    """Number of write-matched draws that cost as much accuracy as the top heads or more, and of all, by dose."""
    counts = {}
    for condition in results.conditions:
        kind, _, dose = condition.rpartition(" ")
        if kind == MATCHED:
            (top,), draws = (results.accuracies(name, dataset) for name in (f"top {dose}", condition))
            counts[dose] = sum(accuracy <= top for accuracy in draws), len(draws)
    return counts
