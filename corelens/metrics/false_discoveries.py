"""Number of heads that have an effect, where many are tested: some would pass each test by chance."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy.stats import false_discovery_control, t
from torch import Tensor

from corelens.metrics.aggregation import dataset_rows
from corelens.metrics.bootstrap import group_numbers


def mean_p_values(
    values: Float[Tensor, "sample *unit"], groups: Sequence[object] = (), datasets: Sequence[str] = ()
) -> Float[Tensor, "*unit"]:
    r"""P-values of means that are not zero: two-sided t-tests over samples, such as the drops of an answer by a head.

    $$t = \sum_d \bar x_d \Big/ \sqrt{\sum_d v_d},\quad
    v_d = \frac{G_d}{G_d - 1} \sum_g \Big(\sum_{i \in g} x_i - \bar x_d\Big)^2 \Big/ n_d^2$$
    over data sets d, which count alike, and the groups g of their samples. Degrees of freedom are those of Welch and
    Satterthwaite: of one data set, the number of groups less one.

    Args:
        values: Value of each sample; NaN where it has none.
        groups: Group of each sample, such as its picture; each is its own if there are none.
        datasets: Data set of each sample; one for all by default.

    Returns:
        One where all values are zero; NaN where a data set has values in one group alone, or values that do not vary.
    """
    numbers, parts = torch.from_numpy(group_numbers(groups, len(values))), []
    for rows in dataset_rows(datasets, len(values)):
        flat = values[rows][:, None].flatten(1).double().cpu()
        scored, mean = ~flat.isnan(), flat.nanmean(0)
        residuals = torch.zeros(len(values), flat.shape[1], dtype=torch.double)
        residuals.index_add_(0, numbers[rows], (flat - mean).nan_to_num())
        of_group = torch.zeros_like(residuals).index_add_(0, numbers[rows], scored.double())
        n_groups, n = (of_group > 0).sum(0), scored.sum(0)
        variance = n_groups / (n_groups - 1) * residuals.square().sum(0) / n.square()
        # A data set that has no value of a unit says nothing of it.
        parts.append([torch.where(n > 0, part, 0) for part in (mean, variance, variance.square() / (n_groups - 1), n)])
    mean, variance, of_freedom, n_scored = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
    p_values = 2 * t.sf((mean / variance.sqrt()).abs().numpy(), (variance.square() / of_freedom).numpy())
    # No group says anything else than zero, and there are two or more.
    unchanged = (values.nan_to_num() == 0)[:, None].flatten(1).all(0).cpu() & (of_freedom == 0) & (n_scored > 0)
    return torch.where(unchanged, 1.0, torch.as_tensor(p_values)).reshape(values.shape[1:])


def false_discovery_rates(p_values: Float[Tensor, "*unit"]) -> Float[Tensor, "*unit"]:
    r"""Smallest false discovery rate at which each of many tests is a discovery; NaN where there is no p-value.

    $$q_{(i)} = \min_{j \ge i} \frac{m}{j}\, p_{(j)}$$ of m p-values in rising order. Of the heads with a rate of 0.05
    or less, no more than one in twenty is expected to have no effect. Of a thousand heads without any, fifty have a
    p-value of 0.05 or less. It holds for tests that are independent or rise and fall together, as those of heads on
    the same samples mostly do.

    Source:
        Benjamini and Hochberg 1995; Benjamini and Yekutieli 2001 for dependent tests.

    Examples:
        >>> false_discovery_rates(torch.tensor([0.01, 0.04, 0.03, torch.nan]))
        tensor([0.0300, 0.0400, 0.0400,    nan])
    """
    rates, known = p_values.clone(), ~p_values.isnan()
    rates[known] = torch.as_tensor(false_discovery_control(p_values[known].cpu().numpy())).to(p_values)
    return rates
