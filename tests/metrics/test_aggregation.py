"""Aggregation over samples, by hand."""

import pytest
import torch
from torch import nan
from torch.testing import assert_close

from corelens.metrics import aggregate
from corelens.metrics.aggregation import Aggregation


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    values = torch.tensor([1.0, 2.0, 3.0, 10.0, nan]).view(5, 1, 1)
    assert aggregate(values, "median").item() == 2.5
    assert aggregate(values[:3], "median").item() == 2.0
    assert aggregate(values[4:], "median").isnan().all()


def test_aggregations_by_hand():
    values = torch.tensor([[[1.0, 2.0, 5.0, nan]], [[3.0, 2.0, 6.0, nan]], [[8.0, 2.0, nan, nan]]])
    datasets = ("x", "x", "y")
    assert_close(aggregate(values, "mean"), torch.tensor([[4.0, 2.0, 5.5, nan]]), equal_nan=True)
    assert_close(aggregate(values, "median"), torch.tensor([[3.0, 2.0, 5.5, nan]]), equal_nan=True)
    assert_close(aggregate(values, "frequency", fraction=0.34), torch.tensor([[2 / 3, 1 / 3, 1, nan]]), equal_nan=True)
    assert_close(aggregate(values, "rank"), torch.tensor([[-1.0, -4 / 3, 0.0, nan]]), equal_nan=True)
    assert_close(aggregate(values, "max", datasets), torch.tensor([[8.0, 2.0, 5.5, nan]]), equal_nan=True)
    x = torch.tensor([2.0, 2.0, 5.5])
    y = torch.tensor([8.0, 2.0])
    z_x, z_y = (x - x.mean()) / x.std(correction=0), (y - y.mean()) / y.std(correction=0)
    expected = torch.stack([(z_x[0] + z_y[0]) / 2, (z_x[1] + z_y[1]) / 2, z_x[2], torch.tensor(nan)])[None]
    assert_close(aggregate(values, "z_score", datasets), expected, equal_nan=True)


ALIKE = [
    # Of x, the mean of samples with 1 and 3; of y, 8.
    ("mean", [(2 + 8) / 2, 2.0, 5.5]),
    ("median", [(2 + 8) / 2, 2.0, 5.5]),
    # Of x, the last of three heads in one sample and the second in the other; of y, the first of two.
    ("rank", [(-1.5 + 0) / 2, (-1.5 - 1) / 2, 0.0]),
    ("frequency", [(0 + 1) / 2, 0.0, 1.0]),
    ("max", [8.0, 2.0, 5.5]),
]


@pytest.mark.parametrize(("how", "expected"), ALIKE)
def test_data_sets_count_alike_however_many_samples_they_have(how: Aggregation, expected: list[float]):
    values = torch.tensor([[[1.0, 2.0, 5.0]], [[3.0, 2.0, 6.0]], [[8.0, 2.0, nan]]])
    aggregated = aggregate(values, how, ("x", "x", "y"), fraction=0.3)
    assert_close(aggregated, torch.tensor([expected]))
    again = aggregate(values[[0, 0, 0, 1, 1, 1, 2]], how, ("x",) * 6 + ("y",), fraction=0.3)
    assert_close(again, aggregated)
    with pytest.raises(ValueError, match="2 data sets were given for 3 samples"):
        aggregate(values, how, ("x", "y"))
