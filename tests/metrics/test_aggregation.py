"""Aggregation over samples, by hand."""

import torch
from torch import nan
from torch.testing import assert_close

from corelens.metrics import aggregate


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    values = torch.tensor([1.0, 2.0, 3.0, 10.0, nan]).view(5, 1, 1)
    assert aggregate(values, "median").item() == 2.5
    assert aggregate(values[:3], "median").item() == 2.0
    assert aggregate(values[4:], "median").isnan().all()


def test_aggregations_by_hand():
    values = torch.tensor([[[1.0, 2.0, 5.0, nan]], [[3.0, 2.0, 6.0, nan]], [[8.0, 2.0, nan, nan]]])
    groups = ("x", "x", "y")
    assert_close(aggregate(values, "mean"), torch.tensor([[4.0, 2.0, 5.5, nan]]), equal_nan=True)
    assert_close(aggregate(values, "median"), torch.tensor([[3.0, 2.0, 5.5, nan]]), equal_nan=True)
    assert_close(aggregate(values, "frequency", fraction=0.34), torch.tensor([[2 / 3, 1 / 3, 1, nan]]), equal_nan=True)
    assert_close(aggregate(values, "rank"), torch.tensor([[-1.0, -4 / 3, 0.0, nan]]), equal_nan=True)
    assert_close(aggregate(values, "max", groups), torch.tensor([[8.0, 2.0, 5.5, nan]]), equal_nan=True)
    x = torch.tensor([2.0, 2.0, 5.5])
    y = torch.tensor([8.0, 2.0])
    z_x, z_y = (x - x.mean()) / x.std(correction=0), (y - y.mean()) / y.std(correction=0)
    expected = torch.stack([(z_x[0] + z_y[0]) / 2, (z_x[1] + z_y[1]) / 2, z_x[2], torch.tensor(nan)])[None]
    assert_close(aggregate(values, "z_score", groups), expected, equal_nan=True)
