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
