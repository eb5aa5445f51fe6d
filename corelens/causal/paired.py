"""Differences between two conditions on the same samples."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor


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
        """Bootstrap interval of the mean difference over samples (bias-corrected and accelerated)."""
        differences = self.differences
        if len(differences) < 2:
            raise ValueError(f"an interval needs at least two samples, and there is {len(differences)}.")
        if np.ptp(differences) == 0:
            return self.mean, self.mean
        result = stats.bootstrap((differences,), np.mean, confidence_level=level, rng=np.random.default_rng(seed))
        return float(result.confidence_interval.low), float(result.confidence_interval.high)

    def p_value(self, seed: int = 0) -> float:
        """P-value of a paired permutation test: how often random signs of the differences give as large a mean."""
        result = stats.permutation_test(
            (self.differences,), np.mean, permutation_type="samples", rng=np.random.default_rng(seed)
        )
        return float(result.pvalue)
