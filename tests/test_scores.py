"""Head scores: the sets they choose, the controls of these sets, aggregation, files, and agreement."""

import csv
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nan
from torch.testing import assert_close

from corelens import Head, HeadScores, HeadSet, agreement, concatenate, metrics
from corelens.experiments.ablation import dose_conditions
from corelens.files import write_tensor
from corelens.sparse.controls import plans_and_controls
from corelens.sparse.rules import Streaming


@pytest.fixture
def scores() -> HeadScores:
    """Six layers of sixteen heads; the mean falls from L0H0 to L5H15."""
    mean = torch.arange(96, 0, -1.0).reshape(6, 16)
    return HeadScores(torch.stack([mean - 1, mean + 1]), "mass", ("a", "b"), "tiny", choices={"queries": "last"})


def test_top_next_and_bottom(scores: HeadScores):
    top = scores.top(0.05)
    assert str(top) == "L0H0, L0H1, L0H2, L0H3, L0H4"  # 4.8 heads, rounded up
    assert top.name == "top 5 of 96 heads by mass"
    assert str(scores.next(0.05)) == "L0H5, L0H6, L0H7, L0H8, L0H9"
    assert str(scores.bottom(0.05)) == "L5H15, L5H14, L5H13, L5H12, L5H11"
    assert len(scores.top(96)) == 96
    assert len(scores.top(1)) == 1
    with pytest.raises(ValueError, match=r"n=1\.0 is one head or all of them: write 1 for one, and 96 for all"):
        scores.top(1.0)


@given(st.integers(1, 99), st.integers(1, 400))
def test_whole_percentages_round_up_exactly(percent: int, n_heads: int):
    scores = HeadScores(torch.zeros(1, 1, n_heads), "mass", ("a",))
    assert len(scores.top(percent / 100)) == -(-percent * n_heads // 100)


def test_random_controls_avoid_the_top_and_repeat_with_their_seed(scores: HeadScores):
    top = set(scores.top())
    for draw in (scores.random, scores.layer_matched_random):
        drawn = [draw(seed) for seed in range(20)]
        assert all(len(heads) == 5 and not top & set(heads) for heads in drawn)
        assert draw(3) == drawn[3]
        assert len({heads.heads for heads in drawn}) > 10
    assert all(heads.by_layer().keys() == {0} for heads in (scores.layer_matched_random(s) for s in range(5)))
    assert len({head for seed in range(200) for head in scores.random(seed)}) == 91


def test_a_layer_without_others_is_named(scores: HeadScores):
    with pytest.raises(ValueError, match="layer 0 has 16 heads and 10 of them are in the top 10"):
        scores.layer_matched_random(0, 0.1)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fractions_outside_their_range(scores: HeadScores, fraction: float):
    for choose in (scores.top, scores.bottom, scores.next, lambda f: scores.random(0, f)):
        with pytest.raises(ValueError, match=rf"fraction={fraction} is outside \(0, 1\]"):
            choose(fraction)


def test_numbers_of_heads(scores: HeadScores):
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
    assert str(scores.top(metrics.elbow(scores.per_head))) == "L0H0, L1H1"
    assert str(scores.top(metrics.rho(scores.per_head, 0.5))) == "L0H0"
    assert str(scores.top(metrics.rho(scores.per_head, 0.9))) == "L0H0, L1H1"


def test_controls_are_the_sets_of_the_single_methods(scores: HeadScores):
    assert scores.controls(0.05, seeds=(0, 7)) == {
        "top": [scores.top(0.05)],
        "next-ranked": [scores.next(0.05)],
        "random": [scores.random(0, 0.05), scores.random(7, 0.05)],
        "random, same layers": [scores.layer_matched_random(0, 0.05), scores.layer_matched_random(7, 0.05)],
        "bottom": [scores.bottom(0.05)],
    }
    # Five percent of the heads and five seeds, unless others are given.
    assert scores.controls() == scores.controls(5, range(5))


def test_controls_above_one_half_have_no_others(scores: HeadScores):
    """A set of more than half of all heads has too few others beside it, in the model as in its layers."""
    assert list(scores.controls(48)) == ["top", "next-ranked", "random", "bottom"]
    assert scores.controls(49) == {"top": [scores.top(49)], "bottom": [scores.bottom(49)]}
    assert scores.controls(0.99) == {"top": [scores.top(96)], "bottom": [scores.bottom(96)]}


def test_controls_of_crowded_layers_are_not_matched_by_layer(scores: HeadScores):
    """Eight of the sixteen heads of layer 0 leave as many others; of nine, one would be drawn twice."""
    assert scores.controls(8, [3])["random, same layers"] == [scores.layer_matched_random(3, 8)]
    assert list(scores.controls(9)) == ["top", "next-ranked", "random", "bottom"]
    # Heads without a score are no others.
    values = scores.values.clone()
    values[:, 0, 8:] = nan
    fewer = replace(scores, values=values)
    assert "random, same layers" in fewer.controls(4)
    assert list(fewer.controls(5)) == ["top", "next-ranked", "random", "bottom"]


def test_scores_are_a_table_with_the_intervals_of_all_heads(scores: HeadScores, tmp_path: Path):
    rows = scores.table()
    low, high = metrics.simultaneous_interval(scores.values)
    assert list(rows[17]) == ["name", "layer", "head", "score", "low", "high"]
    assert rows[17]["name"] == "L1H1"
    assert list(rows[17].values())[1:] == pytest.approx([1, 1, 79, float(low[1, 1]), float(high[1, 1])])
    frame = scores.to_frame()
    assert (frame["score"].is_monotonic_decreasing, len(frame), frame["name"][0]) == (True, 96, "L0H0")
    scores.to_csv(tmp_path / "ram.csv")
    written = list(csv.DictReader((tmp_path / "ram.csv").read_text().splitlines()))
    assert [row["name"] for row in written] == frame["name"].tolist()
    assert [float(row["score"]) for row in written] == frame["score"].tolist()
    of_median = scores.aggregate("median").table()[0]
    assert np.isnan([of_median["low"], of_median["high"]]).all()
    none = HeadScores(torch.full((1, 2, 2), torch.nan), "mass", ("a",))
    assert none.table() == []


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("save", "ram.csv", r"ram\.csv does not end in \.safetensors, as its form is; to_csv writes a table"),
        ("save", "ram", r"ram does not end in \.safetensors"),
        ("to_csv", "ram.xlsx", r"ram\.xlsx does not end in \.csv, as its form is; save writes the scores of every"),
    ],
)
def test_files_of_another_form_are_refused(scores: HeadScores, method: str, name: str, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        getattr(scores, method)(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_scores_survive_saving(scores: HeadScores, tmp_path: Path):
    scores.save(tmp_path / "scores.safetensors")
    loaded = HeadScores.load(tmp_path / "scores.safetensors")
    assert torch.equal(loaded.values, scores.values)
    assert (loaded.samples, loaded.metric, loaded.model, loaded.choices) == (
        ("a", "b"),
        "mass",
        "tiny",
        {"queries": "last"},
    )
    grouped = replace(scores, groups=("p", "p"))
    grouped.save(tmp_path / "grouped.safetensors")
    assert HeadScores.load(tmp_path / "grouped.safetensors").groups == ("p", "p")
    save_file({"values": scores.values}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"bare\.safetensors holds no head scores"):
        HeadScores.load(tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"test_scores\.py holds no head scores"):
        HeadScores.load(__file__)


def test_a_share_in_percent_raises_an_error_about_strings(scores: HeadScores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
    with pytest.raises(TypeError, match=r"n='5%' is no number; give a number of heads, such as 5"):
        scores.top("5%")
    for n in ("5", True, [5], torch.tensor([5, 6])):
        with pytest.raises(TypeError, match=r"is no number; give a number of heads, such as 5, or a share"):
            scores.top(n)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32, torch.tensor])
def test_integers_of_any_library_are_numbers_of_heads(scores: HeadScores, kind: Callable[[int], Any]):
    for n in (1, 2):
        for choose in (scores.top, scores.bottom, scores.next, partial(scores.random, 0)):
            assert choose(kind(n)) == choose(n)
        assert scores.controls(kind(n)).keys() == scores.controls(n).keys()
        assert agreement(scores, scores, kind(n)) == agreement(scores, scores, n)
        assert dose_conditions(scores, [kind(n)]) == dose_conditions(scores, [n])
        assert plans_and_controls(scores, 1, Streaming(1, 1), [kind(n)]) == plans_and_controls(
            scores, 1, Streaming(1, 1), [n]
        )
        head = Head(kind(n), kind(3))  # pyright: ignore[reportArgumentType]
        assert str(HeadSet((head,))) == f"L{n}H3"


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_shares_of_any_library_are_shares(kind: Callable[[float], Any]):
    scores = HeadScores(torch.rand(1, 10, 10), "mass", ("a",))
    assert scores.top(kind(0.05)) == scores.top(0.05)
    assert len(scores.top(kind(0.07))) == 7


NUMBERS = [[[1.0, 2.0]], [[2.0, 0.5]]]


@pytest.mark.parametrize(
    "values",
    [NUMBERS, np.array(NUMBERS), torch.tensor(NUMBERS).bfloat16(), torch.tensor(NUMBERS).half().requires_grad_()],
    ids=["lists", "numpy", "bfloat16", "float16 with a gradient"],
)
def test_scores_of_any_kind_are_full_precision(values: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    scores = HeadScores(values, "mass", ("a", "b"))
    assert scores.per_head.tolist() == [[1.5, 1.25]]
    assert scores.per_head.dtype in (torch.float32, torch.float64)
    with pytest.raises(ValueError, match=r"head scores have the axes \[sample layer head\], and these \[2, 2\]"):
        HeadScores(torch.ones(2, 2), "mass", ("a", "b"))


def test_many_small_scores_add_up_in_bfloat16():
    few = torch.full((1, 1000), 1 / 1024)
    assert_close(metrics.lorenz_curve(few.bfloat16()), metrics.lorenz_curve(few))
    ramp = torch.arange(8.0).view(2, 4)
    assert metrics.spearman(ramp.bfloat16(), ramp) == pytest.approx(1)


def test_scores_show_themselves_in_a_line(scores: HeadScores):
    highest = "L0H0 96, L0H1 95, L0H2 94, L0H3 93, L0H4 92"
    assert repr(scores) == f"HeadScores(tiny, mass, 2 samples, {scores.n_heads} heads; highest: {highest})"
    none = HeadScores(torch.full((1, 2, 2), torch.nan), "mass", ("a",))
    assert repr(none) == "HeadScores(a model without a name, mass, 1 samples, 0 heads)"


def test_scores_need_one_id_per_sample():
    with pytest.raises(ValueError, match="1 sample ids were given for 2 rows"):
        HeadScores(torch.zeros(2, 1, 1), "mass", ("a",))
    with pytest.raises(ValueError, match="1 groups were given for 2 rows"):
        HeadScores(torch.zeros(2, 1, 1), "mass", ("a", "b"), groups=("p",))
    with pytest.raises(ValueError, match="no sample"):
        HeadScores(torch.zeros(0, 1, 1), "mass", ())


def test_concatenation_keeps_samples_and_does_not_mix_choices(scores: HeadScores):
    one = replace(scores, datasets=("x", "x"), skipped={"c": "no picture"})
    other = replace(scores, samples=("d", "e"), datasets=("y", "y"), values=scores.values + 1)
    both = concatenate([one, other])
    assert both.samples == ("a", "b", "d", "e")
    assert both.skipped == {"c": "no picture"}
    assert both.groups == ()
    assert concatenate([replace(one, groups=("p", "p")), other]).groups == ("p", "p", "d", "e")
    assert concatenate([replace(one, groups=("p", "q")), other]).select([1, 2]).groups == ("q", "d")
    assert torch.equal(both.for_dataset("y").values, other.values)
    with pytest.raises(ValueError, match="there is no data set 'z'; there are x, y"):
        both.for_dataset("z")
    with pytest.raises(ValueError, match=r"choices is {'queries': 'last'} in one and {'queries': 'all'} in another"):
        concatenate([one, replace(other, choices={"queries": "all"})])


def test_scores_rank_by_their_aggregation(scores: HeadScores):
    ranked = scores.aggregate("rank")
    assert ranked.top(2).name == "top 2 of 96 heads by mass (rank)"
    assert ranked.ranked() == scores.ranked()


def test_agreement_of_scores(scores: HeadScores):
    assert agreement(scores, scores) == pytest.approx((1, 1, 1, 1))
    upside_down = replace(scores, values=-scores.values)
    disagreement = agreement(scores, upside_down)
    assert disagreement.jaccard == disagreement.shared == 0
    assert agreement(scores, upside_down, scores.n_heads).shared == 1
    assert disagreement.spearman == pytest.approx(-1)
    with pytest.raises(ValueError, match="only scores of the same heads can be compared"):
        agreement(scores, replace(scores, values=scores.values[:, :3]))


def test_files_of_scores_are_named_where_there_is_a_folder_or_none(tmp_path: Path):
    scores = HeadScores(torch.ones(1, 2, 3), "ram", ("a",))
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere' to write ram\.safetensors into"):
        scores.save(tmp_path / "nowhere" / "ram.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder; name one of its scores"):
        HeadScores.load(tmp_path)


NO_SCORES = {
    "no axis": torch.tensor(1.0), "two axes": torch.rand(1, 16), "four axes": torch.rand(1, 2, 2, 2),
    "no head": torch.rand(1, 4, 0), "no sample": torch.rand(0, 4, 4),
    "integers": torch.ones(1, 4, 4, dtype=torch.int64),
    "truths": torch.ones(1, 4, 4, dtype=torch.bool), "complex": torch.ones(1, 4, 4, dtype=torch.complex64),
}  # fmt: skip
"""Tensors that are scores of no heads."""


@pytest.mark.parametrize("what", NO_SCORES)
def test_scores_that_cannot_be_are_refused_where_they_are_made_and_read(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
    with pytest.raises(ValueError, match=r"head scores (have the axes|are real numbers|need at least one)"):
        HeadScores(NO_SCORES[what], "ram", ("a",))
    write_tensor(tmp_path / "x.safetensors", NO_SCORES[what], {"metric": "ram", "samples": ["a"]})
    with pytest.raises(ValueError, match=r"holds no head scores that HeadScores.save wrote"):
        HeadScores.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "about", [{"samples": "a"}, {"metric": 5}, {"samples": [5]}, {"skipped_": {}}, {"groups": None}]
)
def test_files_about_something_else_are_refused(about: dict[str, Any], tmp_path: Path):
    scores = HeadScores(torch.rand(1, 4, 4), "ram", ("a",))
    known = {name: value for name, value in asdict(scores).items() if name != "values"}
    write_tensor(tmp_path / "x.safetensors", scores.values, known)
    assert HeadScores.load(tmp_path / "x.safetensors").metric == "ram"
    write_tensor(tmp_path / "x.safetensors", scores.values, known | about)
    with pytest.raises(ValueError, match=r"holds no head scores that HeadScores.save wrote"):
        HeadScores.load(tmp_path / "x.safetensors")
