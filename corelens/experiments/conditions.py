"""The same questions under several conditions, scored and compared sample by sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from corelens.causal import PairedDifference
from corelens.data import BoxUnit, score
from corelens.experiments.resumable import DatasetSample
from corelens.experiments.run_folder import RunFolder
from corelens.heads import HeadSet

Condition = TypeVar("Condition")

BASELINE = "plain"
"""What the condition is called that all others are compared with."""


@dataclass(frozen=True)
class ConditionResults(Generic[Condition]):
    """How good answers are under each of several conditions."""

    conditions: Mapping[str, Sequence[Condition]]
    """The plain one first; several of a kind where they are drawn by chance, one for each seed."""

    values: Mapping[str, Float[Tensor, "sample _draw"]]
    """Scores by condition, from zero to one; NaN for what cannot be read as an answer."""

    samples: tuple[str, ...]
    datasets: tuple[str, ...]
    skipped: Mapping[str, str]
    """Samples that could not be asked, by id, and why."""

    def accuracies(self, condition: str, dataset: str) -> list[float]:
        """Mean score under each draw of a condition; what cannot be read is not right."""
        return self._of(condition, dataset).nan_to_num().mean(0).tolist()

    def unreadable(self, condition: str, dataset: str) -> float:
        """Share of what was said that cannot be read as an answer."""
        return self._of(condition, dataset).isnan().float().mean().item()

    def paired_difference(self, condition: str, dataset: str) -> PairedDifference:
        """Each sample under the plain condition and under another, there the mean over its draws."""
        before, after = (self._of(name, dataset).nan_to_num().mean(1) for name in (BASELINE, condition))
        return PairedDifference(before, after)

    def summary(self, dataset: str) -> dict[str, dict[str, Any]]:
        """Accuracy under every condition, and how far it is from the plain one, ready for JSON."""
        return {condition: self._measured(condition, dataset) for condition in self.conditions}

    def _measured(self, condition: str, dataset: str) -> dict[str, Any]:
        accuracies = self.accuracies(condition, dataset)
        said: dict[str, Any] = {
            "accuracy": round(sum(accuracies) / len(accuracies), 4),
            "unreadable": round(self.unreadable(condition, dataset), 4),
        }
        if len(accuracies) > 1:
            said["of each draw"] = [round(one, 4) for one in accuracies]
        if condition != BASELINE:
            compared = self.paired_difference(condition, dataset)
            said["change"] = round(compared.mean, 4)
            if len(compared.differences) > 1:
                said["interval"] = [round(bound, 4) for bound in compared.interval()]
                said["p"] = round(compared.p_value(), 4)
        return said

    def _of(self, condition: str, dataset: str) -> Float[Tensor, "sample _draw"]:
        return self.values[condition][[index for index, own in enumerate(self.datasets) if own == dataset]]


def read_conditions(run: RunFolder) -> ConditionResults[Any]:
    """What an ablation or an acceleration kept in its folder; plans as JSON."""
    whole = run.read_all()
    written: Mapping[str, list[Any]] = run.manifest.get("conditions") or run.manifest["plans"]
    conditions = {
        name: [HeadSet.parse(one) if isinstance(one, str) else one for one in own] for name, own in written.items()
    }
    values = {name: whole.values[name] for name in conditions}
    return ConditionResults(conditions, values, whole.samples, whole.datasets, whole.skipped)


def check_scoring(samples: DatasetSample, box_unit: BoxUnit | None) -> None:
    """Raises a ValueError if the answer to some sample cannot be scored."""
    for _, sample in samples:
        if sample.scoring != "box" or box_unit is None:  # to score a box reads its picture
            score(sample, "")
