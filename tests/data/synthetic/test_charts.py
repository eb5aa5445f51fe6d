"""Bar charts: boxes hold their bars and nothing else."""

from dataclasses import replace

import numpy as np

from corelens.data.synthetic.charts import draw_chart, draw_contents
from tests.helpers.pictures import around, changed


def test_changing_a_value_of_a_chart_changes_pixels_of_its_bar_alone():
    chart = draw_contents(np.random.default_rng(0))
    before, boxes = draw_chart(chart)
    for label, value in chart.values.items():
        taller = 98 if value < 60 else 3
        after, moved = draw_chart(replace(chart, values={**chart.values, label: taller}))
        both, difference = around(boxes[label], moved[label]), changed(before, after)
        assert (difference.left, difference.right) == (both.left, both.right)
        assert difference.top == both.top
        assert difference.bottom == max(boxes[label].top, moved[label].top)
    assert len(set(chart.values.values())) == len(chart.values)


def test_bars_are_as_high_as_their_values():
    chart = draw_contents(np.random.default_rng(3))
    _, boxes = draw_chart(chart)
    heights = {label: boxes[label].bottom - boxes[label].top for label in chart.values}
    per_unit = [heights[label] / value for label, value in chart.values.items()]
    assert max(per_unit) - min(per_unit) < 0.1
