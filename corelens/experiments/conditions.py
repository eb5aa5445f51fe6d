"""Scores of the same questions under several conditions, and their paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from corelens.experiments.run_folder import RunFolder
from corelens.heads import HeadSet
from corelens.metrics.paired import PairedDifference

Condition = TypeVar("Condition")

BASELINE = "plain"
"""Name of the condition that all others are compared with."""

MATCHED = "write-matched"
"""Name of the condition with random heads that write as much as the top ones."""


@dataclass(frozen=True)
class ConditionResults(Generic[Condition]):
    """Scores of answers under each of several conditions."""

    conditions: Mapping[str, Sequence[Condition]]
    """The baseline first; a list of several where they are drawn at random, one for each seed."""

    values: Mapping[str, Float[Tensor, "sample _draw"]]
    """Scores by condition, from zero to one; NaN where no answer can be read."""

    samples: tuple[str, ...]
    datasets: tuple[str, ...]
    skipped: Mapping[str, str]
    """Reasons of the samples that were skipped, by id."""

    groups: tuple[str, ...] = field(default=(), kw_only=True)
    """The group of every sample, such as its picture, where several share one; empty if each is its own."""

    n_writing: Mapping[str, Sequence[int]] = field(default_factory=dict, kw_only=True)
    """Number of heads that write anything, in each draw of a condition; empty if it was not measured."""

    def accuracies(self, condition: str, dataset: str) -> list[float]:
        """Mean score under each draw of a condition; an answer that cannot be read scores zero."""
        return self._values(condition, dataset).nan_to_num().mean(0).tolist()

    def unreadable(self, condition: str, dataset: str) -> float:
        """Share of outputs that cannot be read as an answer."""
        return self._values(condition, dataset).isnan().float().mean().item()

    def n_groups(self, dataset: str) -> int:
        """Number of groups of samples of a data set; of samples if each is its own."""
        rows = self._rows(dataset)
        return len({self.groups[row] for row in rows}) if self.groups else len(rows)

    def paired_difference(self, condition: str, dataset: str) -> PairedDifference:
        """Scores of each sample under the baseline and under a condition (the mean over its draws)."""
        before, after = (self._values(name, dataset).nan_to_num().mean(1) for name in (BASELINE, condition))
        return PairedDifference(before, after, [self.groups[row] for row in self._rows(dataset)] if self.groups else ())

    def summary(self, dataset: str) -> dict[str, dict[str, Any]]:
        """Accuracy under every condition, and its difference from the baseline, ready for JSON."""
        return {condition: self._condition_summary(condition, dataset) for condition in self.conditions}

    def summary_by_dataset(self) -> dict[str, dict[str, Any]]:
        """Number of samples and `summary` of every data set, ready for JSON."""
        return {
            dataset: {"samples": self.datasets.count(dataset), "conditions": self.summary(dataset)}
            for dataset in dict.fromkeys(self.datasets)
        }

    def _condition_summary(self, condition: str, dataset: str) -> dict[str, Any]:
        accuracies = self.accuracies(condition, dataset)
        summary: dict[str, Any] = {
            "accuracy": round(sum(accuracies) / len(accuracies), 4),
            "unreadable": round(self.unreadable(condition, dataset), 4),
        }
        if len(accuracies) > 1:
            summary["of each draw"] = [round(accuracy, 4) for accuracy in accuracies]
        if condition in self.n_writing:
            summary["heads that write"] = list(self.n_writing[condition])
        if condition != BASELINE:
            difference = self.paired_difference(condition, dataset)
            summary["change"] = round(difference.mean, 4)
            if difference.n_groups > 1:
                summary["interval"] = [round(bound, 4) for bound in difference.interval()]
                summary["p"] = round(difference.p_value(), 4)
        return summary

    def _values(self, condition: str, dataset: str) -> Float[Tensor, "sample _draw"]:
        return self.values[condition][self._rows(dataset)]

    def _rows(self, dataset: str) -> list[int]:
        return [row for row, name in enumerate(self.datasets) if name == dataset]


def read_conditions(run: RunFolder) -> ConditionResults[Any]:
    """Load the results of an ablation or of a sparse evaluation from its run folder; plans stay JSON."""
    results = run.read_all()
    saved: Mapping[str, list[Any]] = run.manifest.get("conditions") or run.manifest["plans"]
    conditions = {
        name: [HeadSet.parse(draw) if isinstance(draw, str) else draw for draw in draws]
        for name, draws in saved.items()
    }
    values = {name: results.values[name] for name in conditions}
    return ConditionResults(
        conditions,
        values,
        results.samples,
        results.datasets,
        results.skipped,
        groups=results.groups,
        n_writing=run.manifest.get("heads that write", {}),
    )


def low_to_high(values: Sequence[float | int], digits: int = 0) -> str:
    """Lowest and highest of some numbers, such as `0 to 2`, or the one that they all are; empty without numbers."""
    bounds = [f"{value:.{digits}f}" for value in (min(values), max(values))] if values else []
    return " to ".join(dict.fromkeys(bounds))
