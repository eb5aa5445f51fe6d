"""Faithfulness of circuits, and the areas by which rankings are scored over circuits of all sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.metrics.bootstrap import bootstrap_means


def faithfulness(
    kept: Float[Tensor, "*shape"], full: Float[Tensor, "*#shape"], empty: Float[Tensor, "*#shape"]
) -> Float[Tensor, "*shape"]:
    r"""Compute the share of what a model does beyond its ablated self that a circuit does alone.

    $$f = \frac{m(C) - m(\emptyset)}{m(M) - m(\emptyset)}$$

    Args:
        kept: Means of a metric with all but the circuit ablated.
        full: Those of the whole model.
        empty: Those with everything ablated.

    Returns:
        Zero for what the empty circuit does and one for what the model does; less or more where a circuit does worse
        or better than these.

    Raises:
        ValueError: If the whole model and the empty circuit do alike, or one of the means is not finite.

    Source:
        MIB (Mueller et al. 2025, arXiv 2504.13151), the circuit localization track.

    Examples:
        >>> faithfulness(torch.tensor([1.0, 4.0, 6.0]), full=torch.tensor(5.0), empty=torch.tensor(1.0))
        tensor([0.0000, 0.7500, 1.2500])
    """
    if not all(bool(means.isfinite().all()) for means in (kept, full, empty)):
        raise ValueError("the metric is not finite in every pass, so that no circuit can be compared.")
    if bool((full == empty).any()):
        raise ValueError(
            f"the metric is {float(full[full == empty].flatten()[0]):g} for the whole model and with everything "
            f"ablated: there is nothing that a circuit could do."
        )
    return (kept - empty) / (full - empty)


def circuit_performance_ratio(
    faithfulness: Float[Tensor, "*curve size"], shares: Float[Tensor, "size"]
) -> Float[Tensor, "*curve"]:
    """Compute CPR, the area under faithfulness over the share of the model that a circuit is; higher is better.

    Args:
        faithfulness: That of circuits of growing size.
        shares: Their sizes, as shares of all units, here of heads.

    Raises:
        ValueError: If the shares do not rise.

    Source:
        MIB (Mueller et al. 2025, arXiv 2504.13151); its published code sums trapezoids over shares from 0.001 to 1. Of
        heads there are few, and our curves begin with none at all, where faithfulness is zero.

    Examples:
        >>> circuit_performance_ratio(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.5, 1.0]))
        tensor(0.7500)
    """
    _check_rising(shares)
    return torch.trapezoid(faithfulness, shares)


def circuit_model_distance(
    faithfulness: Float[Tensor, "*curve size"], shares: Float[Tensor, "size"]
) -> Float[Tensor, "*curve"]:
    """Compute CMD, the area between faithfulness and one; lower is better, and zero is best.

    A circuit that does better than the model is as far from it as one that does worse by as much.

    Args:
        faithfulness: As for `circuit_performance_ratio`.
        shares: As there.

    Raises:
        ValueError: If the shares do not rise.

    Source:
        As there. Trapezoids are those of the distances at the sizes, as in MIB's code, also where the curve crosses one
        between two of them.

    Examples:
        >>> circuit_model_distance(torch.tensor([0.0, 1.5, 1.0]), torch.tensor([0.0, 0.5, 1.0]))
        tensor(0.5000)
    """
    _check_rising(shares)
    return torch.trapezoid((1 - faithfulness).abs(), shares)


def _check_rising(shares: Float[Tensor, "size"]) -> None:
    if not bool((shares.diff() > 0).all()):
        raise ValueError(f"shares={[round(share, 4) for share in shares.tolist()]} do not rise from each to the next.")


AREAS = {"cpr": circuit_performance_ratio, "cmd": circuit_model_distance}
"""Areas by their abbreviation."""

N_RESAMPLES = 2_000
"""Draws of a bootstrap interval."""


@dataclass(frozen=True, eq=False)
class CircuitCurves:
    """A metric with only the first heads of a ranking left, by their number, for several rankings."""

    sizes: tuple[int, ...]
    """Numbers of heads that are kept, from zero to all."""

    values: Mapping[str, Float[Tensor, "draw size sample"]]
    """By ranking: the metric with all heads but the first so many ablated; several draws where an order is random."""

    metric: str
    """Label of the metric."""

    method: str
    """Replacement of the output of ablated heads."""

    samples: tuple[str, ...]

    groups: tuple[str, ...] = ()
    """The group of every sample, such as its picture; empty if each is its own."""

    @property
    def shares(self) -> Float[Tensor, "size"]:
        """Sizes as shares of all heads."""
        return torch.tensor(self.sizes, dtype=torch.double) / self.sizes[-1]

    def faithfulness(self, ranking: str) -> Float[Tensor, "draw size"]:
        """Faithfulness of the circuits of a ranking, from zero without heads to one with all."""
        return _of_curve(self.values[ranking].double().mean(-1))

    def area(self, ranking: str, area: Literal["cpr", "cmd"]) -> Float[Tensor, "draw"]:
        """CPR or CMD of a ranking."""
        return AREAS[area](self.faithfulness(ranking), self.shares)

    def interval(self, ranking: str, area: Literal["cpr", "cmd"], level: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap interval of CPR or CMD over samples, of the mean over draws."""
        values = self.values[ranking].permute(2, 0, 1)
        drawn = bootstrap_means(values, N_RESAMPLES, np.random.default_rng(0), groups=self.groups)
        areas = AREAS[area](_of_curve(drawn), self.shares).mean(-1)
        low, high = areas.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=areas.dtype)).tolist()
        return low, high

    def table(self) -> list[dict[str, Any]]:
        """Rows with `ranking`, `cpr` and `cmd`, and faithfulness by number of heads, in the mean over draws."""
        return [
            {"ranking": name}
            | {area: float(self.area(name, area).mean()) for area in ("cpr", "cmd")}
            | dict(zip(map(str, self.sizes), self.faithfulness(name).mean(0).tolist(), strict=True))
            for name in self.values
        ]


def _of_curve(means: Float[Tensor, "*curve size"]) -> Float[Tensor, "*curve size"]:
    """Faithfulness along curves from the empty circuit to the whole model."""
    return faithfulness(means, full=means[..., -1:], empty=means[..., :1])
