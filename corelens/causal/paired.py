"""Differences between two conditions on the same samples."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """One number per sample under two conditions; lists and arrays become tensors.

    Raises:
        ValueError: If there is not one number for each sample under both conditions.
    """

    before: Float[Tensor, "sample"] | Bool[Tensor, "sample"]
    after: Float[Tensor, "sample"] | Bool[Tensor, "sample"]

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

    @property
    def differences(self) -> np.ndarray:
        """After minus before, for each sample."""
        return (self.after - self.before).numpy()

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
