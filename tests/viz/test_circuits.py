"""The figure of faithfulness, by its data."""

from typing import Any

import pytest
import torch

from corelens.metrics.circuits import CircuitCurves
from corelens.viz import faithfulness_curves


def test_every_ranking_has_a_line_and_random_orders_a_band():
    one = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [2.0, 2.0]]])
    random = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [0.5], [2.0]]]).expand(2, 3, 2)
    curves = CircuitCurves((0, 2, 8), {"ram": one, "random": random}, "logit margin", "resample", ("a", "b"))
    figure: Any = faithfulness_curves(curves)
    line, band, mean = figure.data
    assert [line.name, mean.name] == ["ram, 0.88", "random, 0.56"]
    assert list(line.x) == [0, 0.25, 1]
    assert list(line.y) == [0, 1, 1]
    assert list(line.customdata) == [0, 2, 8]
    assert list(mean.y) == [0, 0.375, 1]
    assert list(band.y) == [0, 0.25, 1, 1, 0.5, 0]
    assert [shape.y0 for shape in figure.layout.shapes] == [1]


def test_a_seventh_ranking_is_dashed_and_none_is_refused():
    values = torch.tensor([[[0.0], [1.0], [2.0]]])
    many: Any = faithfulness_curves(CircuitCurves((0, 2, 8), dict.fromkeys("abcdefg", values), "kl", "zero", ("a",)))
    assert [line.line.dash for line in many.data] == ["solid"] * 6 + ["dash"]
    with pytest.raises(ValueError, match="there are no rankings"):
        faithfulness_curves(CircuitCurves((0, 8), {}, "kl", "zero", ("a",)))
