"""Differences between two conditions on the same samples."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from corelens.metrics import bootstrap_means


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """One number per sample under two conditions."""

    before: Float[Tensor, "sample"] | Bool[Tensor, "sample"]
    after: Float[Tensor, "sample"] | Bool[Tensor, "sample"]

    @property
    def differences(self) -> np.ndarray:
        """After minus before, for each sample."""
        return self.after.double().numpy() - self.before.double().numpy()

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(self.differences.mean())

    def interval(self, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval of the mean difference over samples.

        Drawn from are also a loss and a gain, since few samples may hold none of what is rare: of one if all numbers
        are between zero and one, as scores of answers are, else of the largest change. See
        `corelens.metrics.bootstrap_means`.

        Raises:
            ValueError: If there are fewer than two samples.
        """
        differences = self.differences
        if len(differences) < 2:
            raise ValueError(f"an interval needs at least two samples, and there is {len(differences)}.")
        both = np.concatenate([self.before.double().numpy(), self.after.double().numpy()])
        are_scores = bool(((both >= 0) & (both <= 1)).all())
        largest = 1.0 if are_scores else float(np.abs(differences).max())
        means = bootstrap_means(
            torch.from_numpy(differences), 2_000, np.random.default_rng(seed), (-largest, largest)
        ).numpy()
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return min(float(low), self.mean), max(float(high), self.mean)

    def p_value(self, seed: int = 0) -> float:
        """P-value of a paired permutation test: how often random signs of the differences give as large a mean."""
        result = stats.permutation_test(
            (self.differences,), np.mean, permutation_type="samples", rng=np.random.default_rng(seed)
        )
        return float(result.pvalue)
