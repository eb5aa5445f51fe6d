"""Heads and head sets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import corelens as cl
from corelens import Head, HeadSet


@given(st.integers(0, 999), st.integers(0, 999))
def test_heads_print_parse_and_sort(layer: int, head: int):
    assert Head.parse(str(Head(layer, head))) == Head(layer, head)
    assert sorted([Head(layer + 1, 0), Head(layer, head)])[0] == Head(layer, head)


@pytest.mark.parametrize("text", ["", "L1", "H1L1", "l1h1", "L-1H2", "L1H2x"])
def test_what_is_not_a_head(text: str):
    with pytest.raises(ValueError, match="is not a head; write layer and head as in L4H2"):
        Head.parse(text)


def test_sets_keep_their_order_and_survive_saving(tmp_path: Path):
    heads = HeadSet.parse("L4H2, L3H7 L4H0")
    assert (str(heads), len(heads), Head(3, 7) in heads) == ("L4H2, L3H7, L4H0", 3, True)
    assert heads.by_layer() == {4: [2, 0], 3: [7]}
    heads.save(tmp_path / "heads.json")
    assert HeadSet.load(tmp_path / "heads.json") == heads
    with pytest.raises(ValueError, match="L1H1 appears more than once"):
        HeadSet.parse("L1H1, L2H2, L1H1")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="does not hold a head set"):
        HeadSet.load(tmp_path / "other.json")


def test_strings_in_the_place_of_heads_raise_an_error_that_names_parse(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
    with pytest.raises(TypeError, match=r"parse 'L2H10, L3H0' by HeadSet\.parse"):
        cl.ablate(["L2H10", "L3H0"])  # pyright: ignore[reportArgumentType]


def test_sets_unite_and_intersect():
    one, other = HeadSet.parse("L4H2, L3H7, L1H1"), HeadSet.parse("L0H0, L1H1, L4H2")
    assert str(one | other) == "L4H2, L3H7, L1H1, L0H0"
    assert str(one & other) == "L4H2, L1H1"
    assert str(one - other) == "L3H7"
