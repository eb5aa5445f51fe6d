"""Data sets by name."""

import pytest

from corelens.data import load


def test_worlds_have_names_and_errors_for_unknown_names_list_the_known_ones():
    assert [sample.id for sample in load("charts", 2, seed=7)] == ["charts-7-0", "charts-7-1"]
    with pytest.raises(ValueError, match=r"'chart' is not a data set of corelens; these are refcocog, .*haystacks"):
        load("chart", 2)
    with pytest.raises(ValueError, match=r"charts: .*'depth'.*it takes .*seed"):
        load("charts", 2, depth=3)
    with pytest.raises(ValueError, match=r"'scenes' is not a data set .* are in corelens\.toy"):
        load("scenes", 2)
