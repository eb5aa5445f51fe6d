"""Head scores: the sets they choose, how samples become one number, files, and agreement."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nan
from torch.testing import assert_close

from corelens import HeadScores, agreement, concatenate
from corelens.head_formats import load_head_score_list, save_head_score_list, to_parquet


@pytest.fixture
def scores() -> Any:
    """Six layers of sixteen heads; the mean falls from L0H0 to L5H15."""
    mean = torch.arange(96, 0, -1.0).reshape(6, 16)
    return HeadScores(torch.stack([mean - 1, mean + 1]), "mass", ("a", "b"), "tiny", choices={"queries": "last"})


def test_top_next_and_bottom(scores: Any):
    top = scores.top(0.05)
    assert str(top) == "L0H0, L0H1, L0H2, L0H3, L0H4"  # 4.8 heads, rounded up
    assert top.name == "top 5 of 96 heads by mass"
    assert str(scores.next(0.05)) == "L0H5, L0H6, L0H7, L0H8, L0H9"
    assert str(scores.bottom(0.05)) == "L5H15, L5H14, L5H13, L5H12, L5H11"
    assert len(scores.top(1.0)) == 96


@given(st.integers(1, 100), st.integers(1, 400))
def test_whole_percentages_round_up_exactly(percent: int, n_heads: int):
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
        with pytest.raises(ValueError, match=rf"fraction={fraction} is outside \(0, 1\]"):
            choose(fraction)


def test_numbers_of_heads(scores: Any):
    assert scores.top(5) == scores.top(0.05)
    for choose, n in ((scores.top, 0), (scores.bottom, 97), (scores.next, 49), (scores.next, 0.51)):
        with pytest.raises(ValueError, match=r"of 96 heads; it must be between 1 and (48|96)"):
            choose(n)


def test_heads_that_do_not_exist_are_never_chosen_or_counted():
    values = torch.arange(24.0).reshape(1, 3, 8)
    values[:, 1], values[:, 2, 4:] = nan, nan
    scores = HeadScores(values, "mass", ("a",))
    assert scores.n_heads == len(scores.ranked()) == 12
    assert str(scores.top(0.25)) == "L2H3, L2H2, L2H1"
    assert str(scores.bottom(2)) == "L0H0, L0H1"
    assert {head.layer for seed in range(20) for head in scores.random(seed, 3)} == {0, 2}
    assert all(set(scores.layer_matched_random(seed, 2).by_layer()[2]) == {0, 1} for seed in range(5))
    with pytest.raises(ValueError, match="layer 2 has 4 heads and 3 of them"):
        scores.layer_matched_random(0, 3)


def test_sets_by_threshold_elbow_and_share():
    values = torch.tensor([[[8.0, 0.4, 0.3], [0.2, 7.0, 0.1]]])
    scores = HeadScores(values, "mass", ("a",))
    assert str(scores.above(0.3)) == "L0H0, L1H1, L0H1"
    assert str(scores.before_elbow()) == "L0H0, L1H1"
    assert str(scores.top_share_of_mass(0.5)) == "L0H0"
    assert str(scores.top_share_of_mass(0.9)) == "L0H0, L1H1"


def test_scores_survive_saving(scores: Any, tmp_path: Path):
    scores.save(tmp_path / "scores.safetensors")
    loaded = HeadScores.load(tmp_path / "scores.safetensors")
    assert torch.equal(loaded.values, scores.values)
    assert (loaded.samples, loaded.metric, loaded.model, loaded.choices) == (
        ("a", "b"),
        "mass",
        "tiny",
        {"queries": "last"},
    )
    save_file({"values": scores.values}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"bare\.safetensors holds no head scores"):
        HeadScores.load(tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"test_scores\.py holds no head scores"):
        HeadScores.load(__file__)


def test_a_share_in_percent_is_refused_as_a_text(scores: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
    with pytest.raises(TypeError, match=r"n='5%' is a text; give a share of heads, such as 0\.05"):
        scores.top("5%")


def test_scores_show_themselves_in_a_line(scores: Any):
    highest = ", ".join(map(str, scores.ranked()[:3]))
    assert repr(scores) == f"HeadScores(tiny, mass, 2 samples, {scores.n_heads} heads; highest: {highest})"
    none = HeadScores(torch.full((1, 2, 2), torch.nan), "mass", ("a",))
    assert repr(none) == "HeadScores(a model without a name, mass, 1 samples, 0 heads)"


def test_scores_need_one_id_per_sample():
    with pytest.raises(ValueError, match="1 sample ids were given for 2 rows"):
        HeadScores(torch.zeros(2, 1, 1), "mass", ("a",))
    with pytest.raises(ValueError, match="no sample"):
        HeadScores(torch.zeros(0, 1, 1), "mass", ())


def test_joining_keeps_samples_and_refuses_to_mix(scores: Any):
    one = replace(scores, datasets=("x", "x"), skipped={"c": "no picture"})
    other = replace(scores, samples=("d", "e"), datasets=("y", "y"), values=scores.values + 1)
    both = concatenate([one, other])
    assert both.samples == ("a", "b", "d", "e")
    assert both.skipped == {"c": "no picture"}
    assert torch.equal(both.for_dataset("y").values, other.values)
    with pytest.raises(ValueError, match="there is no data set 'z'; there are x, y"):
        both.for_dataset("z")
    with pytest.raises(ValueError, match=r"choices is {'queries': 'last'} in one and {'queries': 'all'} in another"):
        concatenate([one, replace(other, choices={"queries": "all"})])


def test_scores_rank_by_their_aggregation(scores: Any):
    ranked = scores.aggregate_by("rank")
    assert ranked.top(2).name == "top 2 of 96 heads by mass (rank)"
    assert ranked.ranked() == scores.ranked()


def test_agreement_of_scores(scores: Any):
    assert agreement(scores, scores) == pytest.approx((1, 1, 1, 1))
    upside_down = replace(scores, values=-scores.values)
    found = agreement(scores, upside_down)
    assert found.jaccard == found.shared == 0
    assert agreement(scores, upside_down, scores.n_heads).shared == 1
    assert found.spearman == pytest.approx(-1)
    with pytest.raises(ValueError, match="only scores of the same heads can be compared"):
        agreement(scores, replace(scores, values=scores.values[:, :3]))


# --- files of others -------------------------------------------------------------------------------------------------


def test_parquet_has_a_row_for_every_score(scores: Any, tmp_path: Path):
    values = scores.values.clone()
    values[:, 3] = nan
    to_parquet([replace(scores, values=values, datasets=("x", "y")), scores], tmp_path / "scores.parquet")
    rows = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(rows) == 2 * 80 + 2 * 96
    assert rows[100] == {
        "model": "tiny", "metric": "mass", "dataset": "y", "sample": "b", "layer": 1, "head": 4,
        "score": float(values[1, 1, 4]),
    }  # fmt: skip


def test_published_lists_survive(scores: Any, tmp_path: Path):
    path = tmp_path / "heads.json"
    save_head_score_list(scores, path)
    assert json.loads(path.read_text())["head_score_list"][0] == ["0-0", 96.0]
    loaded = load_head_score_list(path)
    assert_close(loaded.per_head, scores.per_head)
    path.write_text('[["21-10", 0.547], ["20-15", 0.432]]')
    assert str(load_head_score_list(path).top(1)) == "L21H10"
    for bad in ("{}", '[["x", 1]]', "nonsense", "[1]"):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"does not hold a list of heads|lists no head"):
            load_head_score_list(path)


def test_files_of_scores_are_named_where_there_is_a_folder_or_none(tmp_path: Path):
    scores = HeadScores(torch.ones(1, 2, 3), "ram", ("a",))
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere' to write ram\.safetensors into"):
        scores.save(tmp_path / "nowhere" / "ram.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder; name one of its scores"):
        HeadScores.load(tmp_path)
