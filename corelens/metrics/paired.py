"""Differences between two conditions on the same samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from corelens.metrics.bootstrap import bootstrap_means, group_rows


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """One number per sample under two conditions; lists and arrays become tensors.

    Raises:
        ValueError: If there is not one number for each sample under both conditions, or not one group.
    """

    before: Float[Tensor, "sample"] | Bool[Tensor, "sample"]
    after: Float[Tensor, "sample"] | Bool[Tensor, "sample"]

    groups: Sequence[object] = ()
    """Group of each sample, such as its picture, where several share one: they are not independent. Empty if each is
    its own."""

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            values = torch.as_tensor(getattr(self, name)).detach().cpu().double()
            if values.ndim != 1 or not len(values):
                raise ValueError(f"{name} has the shape {list(values.shape)}: it needs one number for every sample.")
            if missing := (~values.isfinite()).nonzero().flatten().tolist():
                raise ValueError(
                    f"{name} has no finite number for {len(missing)} of {len(values)} samples, the first of them "
                    f"number {missing[0]}: leave these samples out of both conditions."
                )
            object.__setattr__(self, name, values)
        if len(self.before) != len(self.after):
            raise ValueError(
                f"before has {len(self.before)} samples and after has {len(self.after)}: pairs need the same samples."
            )
        group_rows(self.groups, len(self.before))  # an error if there is not one for each sample

    @property
    def differences(self) -> np.ndarray:
        """After minus before, for each sample."""
        return (self.after - self.before).numpy()

    @property
    def n_groups(self) -> int:
        """Number of groups of samples; of samples if each is its own."""
        return len(set(self.groups)) or len(self.before)

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(self.differences.mean())

    def interval(self, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval of the mean difference over samples, in their groups.

        Drawn from are also a loss and a gain, since few samples may hold none of what is rare: of one if all numbers
        are between zero and one, as scores of answers are, else of the largest change. See
        `corelens.metrics.bootstrap_means`.

        Raises:
            ValueError: If there are fewer than two samples, or groups of them.
        """
        differences = self.differences
        if self.n_groups < 2:
            unit = "groups of samples" if self.groups else "samples"
            raise ValueError(f"an interval needs at least two {unit}, and there is {self.n_groups}.")
        both = np.concatenate([self.before.double().numpy(), self.after.double().numpy()])
        are_scores = bool(((both >= 0) & (both <= 1)).all())
        largest = 1.0 if are_scores else float(np.abs(differences).max())
        rng, extremes = np.random.default_rng(seed), (-largest, largest)
        means = bootstrap_means(torch.from_numpy(differences), 2_000, rng, extremes, self.groups).numpy()
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return min(float(low), self.mean), max(float(high), self.mean)

    def p_value(self, seed: int = 0) -> float:
        """P-value of a paired permutation test: how often random signs of the differences give as large a mean.

        A group has one sign: conditions are exchanged for all of its samples together.
        """
        differences = self.differences
        totals = np.array([differences[rows].sum() for rows in group_rows(self.groups, len(differences))])
        result = stats.permutation_test((totals,), np.mean, permutation_type="samples", rng=np.random.default_rng(seed))
        return float(result.pvalue)
