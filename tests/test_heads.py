"""Heads, head sets and head scores."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def scores() -> Any:
    """Six layers of sixteen heads; the mean falls from L0H0 to L5H15."""
    from corelens import HeadScores

    mean = torch.arange(96, 0, -1.0).reshape(6, 16)
    return HeadScores(torch.stack([mean - 1, mean + 1]), "mass", ("a", "b"), "tiny", {"queries": "last"})


@given(st.integers(0, 999), st.integers(0, 999))
def test_heads_print_parse_and_sort(layer: int, head: int):
    from corelens import Head

    assert Head.parse(str(Head(layer, head))) == Head(layer, head)
    assert sorted([Head(layer + 1, 0), Head(layer, head)])[0] == Head(layer, head)


@pytest.mark.parametrize("text", ["", "L1", "H1L1", "l1h1", "L-1H2", "L1H2x"])
def test_what_is_not_a_head(text: str):
    from corelens import Head

    with pytest.raises(ValueError, match="is not a head; write layer and head as in L4H2"):
        Head.parse(text)


def test_sets_keep_their_order_and_survive_saving(tmp_path: Path):
    from corelens import Head, HeadSet

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


def test_top_next_and_bottom(scores: Any):
    top = scores.top(0.05)
    assert str(top) == "L0H0, L0H1, L0H2, L0H3, L0H4"  # 4.8 heads, rounded up
    assert top.name == "top 5 of 96 heads by mass"
    assert str(scores.next(0.05)) == "L0H5, L0H6, L0H7, L0H8, L0H9"
    assert str(scores.bottom(0.05)) == "L5H15, L5H14, L5H13, L5H12, L5H11"
    assert len(scores.top(1.0)) == 96


@given(st.integers(1, 100), st.integers(1, 400))
def test_whole_percentages_round_up_exactly(percent: int, n_heads: int):
    from corelens import HeadScores

    scores = HeadScores(torch.zeros(1, 1, n_heads), "mass", ("a",))
    assert len(scores.top(percent / 100)) == -(-percent * n_heads // 100)


def test_random_controls_avoid_the_top_and_repeat_with_their_seed(scores: Any):
    top = set(scores.top())
    for draw in (scores.random, scores.layer_matched_random):
        drawn = [draw(seed) for seed in range(20)]
        assert all(len(heads) == 5 and not top & set(heads) for heads in drawn)
        assert draw(3) == drawn[3]
        assert len({heads.heads for heads in drawn}) > 10
    assert all(heads.by_layer().keys() == {0} for heads in (scores.layer_matched_random(s) for s in range(5)))
    assert len({head for seed in range(200) for head in scores.random(seed)}) == 91


def test_a_layer_without_others_is_named(scores: Any):
    with pytest.raises(ValueError, match="layer 0 has 16 heads and 10 of them are in the top 10"):
        scores.layer_matched_random(0, 0.1)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fractions_outside_their_range(scores: Any, fraction: float):
    for choose in (scores.top, scores.bottom, scores.next, lambda f: scores.random(0, f)):
        with pytest.raises(ValueError, match=rf"fraction={fraction} is outside \(0, "):
            choose(fraction)


def test_scores_survive_saving(scores: Any, tmp_path: Path):
    from corelens import HeadScores

    scores.save(tmp_path / "scores.safetensors")
    loaded = HeadScores.load(tmp_path / "scores.safetensors")
    assert torch.equal(loaded.values, scores.values)
    assert (loaded.samples, loaded.metric, loaded.model, loaded.choices) == (
        ("a", "b"),
        "mass",
        "tiny",
        {"queries": "last"},
    )
    from safetensors.torch import save_file

    save_file({"values": scores.values}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="does not hold head scores"):
        HeadScores.load(tmp_path / "bare.safetensors")


def test_scores_need_one_id_per_sample():
    from corelens import HeadScores

    with pytest.raises(ValueError, match="1 sample ids were given for 2 rows"):
        HeadScores(torch.zeros(2, 1, 1), "mass", ("a",))
    with pytest.raises(ValueError, match="no sample"):
        HeadScores(torch.zeros(0, 1, 1), "mass", ())
