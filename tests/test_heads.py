"""Heads and head sets."""

import json
from pathlib import Path
from typing import Any

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


MALFORMED = {
    "a number": 5, "no list": None, "numbers": [1, 2], "a list in a list": [["L1H2"]], "negative": ["L-1H2"],
    "a fraction": ["L1.5H2"], "a truth": [True], "NaN": [float("nan")], "huge": [f"L{'9' * 400}H1"], 
    "twice": ["L1H2", "L1H2"],
}  # fmt: skip
"""Lists of heads in JSON that are none."""


@pytest.mark.parametrize("what", MALFORMED)
def test_files_of_malformed_heads_are_one_error_that_names_the_file(what: str, tmp_path: Path):
    path = tmp_path / "heads.json"
    path.write_text(json.dumps({"name": "x", "heads": MALFORMED[what]}))
    with pytest.raises(ValueError, match=r"heads\.json does not hold a head set"):
        HeadSet.load(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"heads": []}', '{"name": 5, "heads": []}', "\ud800"])
def test_files_that_hold_no_head_set_are_refused_by_name(text: str, tmp_path: Path):
    path = tmp_path / "heads.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"heads\.json does not hold a head set"):
        HeadSet.load(path)


@pytest.mark.parametrize("head", [(-1, 0), (0, -1), (1.5, 0), (True, 0), (1,), (1, 2, 3), 5, None, (float("nan"), 0)])
def test_what_is_no_head_is_refused(head: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
    with pytest.raises(ValueError, match="is not a head, which is two whole numbers"):
        HeadSet((head,))


def test_sets_of_every_head_of_a_large_model_are_made_and_compared_at_once():
    heads = HeadSet(tuple(Head(n, 0) for n in range(30_000)))
    assert len(heads - HeadSet(heads.heads[:1])) == len(heads & heads) - 1 == 29_999
