"""Heads of a run compared with a published list or another run: against closed forms and loops, and errors."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corelens import HeadScores, HeadSet
from corelens.experiments.comparison import compare_rankings, in_thirds, mean_depth
from corelens.head_formats import load_head_score_list, load_published


def scores(values: torch.Tensor, **about: Any) -> HeadScores:
    return HeadScores(values[None].float(), "mass", ("a",), **about)


@pytest.fixture
def run() -> HeadScores:
    """Nine layers of eight heads; the mean falls from L0H0 to L8H7."""
    return scores(torch.arange(72, 0, -1.0).reshape(9, 8), model="tiny")


def test_a_list_without_scores_is_compared_with_as_many_heads(run: HeadScores):
    listed = HeadSet.parse("L0H1, L5H5, L0H0")
    comparison = compare_rankings(run, listed)
    assert str(comparison.top) == "L0H0, L0H1, L0H2"
    assert (comparison.overlap.shared, comparison.jaccard) == (2, 0.5)
    assert comparison.ranks is not None
    assert (comparison.ranks.spearman, comparison.ranks.n_heads) == (
        pytest.approx(-0.5),
        3,
    )  # of 3, 2, 1 beside 2, 1, 3
    assert comparison.overlap.expected == pytest.approx(9 / 72)
    assert compare_rankings(run, listed, 1).overlap.shared == 0  # the best of the list is L0H1
    with pytest.raises(ValueError, match="n=4 means 4 of 3 heads; it must be between 1 and 3"):
        compare_rankings(run, listed, 4)


def test_ranks_are_over_the_heads_that_both_score(run: HeadScores):
    values = torch.full((9, 8), math.nan)
    values[0, :4] = torch.tensor([4.0, 3.0, 1.0, 2.0])
    comparison = compare_rankings(run, scores(values))
    assert len(comparison.top) == 4
    assert comparison.ranks is not None
    assert comparison.ranks.n_heads == 4
    assert comparison.ranks.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d² / (n (n² - 1))
    assert compare_rankings(run, scores(values.clamp(max=1.0))).ranks is None  # all alike
    all_heads = compare_rankings(run, replace(run, values=run.values.flip(2)))
    assert len(all_heads.top) == 4  # 5 % of 72, rounded up
    assert all_heads.overlap.shared == 0
    assert all_heads.ranks is not None
    assert all_heads.ranks.n_heads == 72


def test_what_is_of_another_model_is_refused(run: HeadScores):
    with pytest.raises(ValueError, match="the run has 9 layers of 8 heads, and the other 9 of 4"):
        compare_rankings(run, scores(torch.ones(9, 4)))
    hybrid = replace(run, values=run.values.clone())
    hybrid.values[:, 3] = math.nan
    for heads in ("L3H0", "L9H0", "L0H8"):
        with pytest.raises(ValueError, match=f"{heads} is listed and has no score in the run, which has 9 layers of 8"):
            compare_rankings(hybrid, HeadSet.parse(heads))


def test_depth_is_relative_to_the_model():
    heads = HeadSet.parse("L0H0, L4H1, L8H0, L8H1")
    assert mean_depth(heads, 9) == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert in_thirds(heads, 9) == (1, 1, 2)
    assert mean_depth(HeadSet.parse("L0H0"), 1) == 0


@pytest.mark.parametrize(
    "written",
    [
        {"head_score_list": [["2-1", 0.5], ["0-3", 0.25]], "args": {}},
        [["2-1", 0.5], ["0-3", 0.25]],
        {"2-1": [0.4, 0.6], "0-3": [0.25]},
        {"2-1": 0.5, "0-3": 0.25},
        {"L2H1": 0.5, "L0H3": 0.25},
    ],
)
def test_published_scores_are_read_in_their_forms(written: Any, tmp_path: Path):
    (tmp_path / "list.json").write_text(json.dumps(written))
    published = load_published(tmp_path / "list.json", 9, 8)
    assert isinstance(published, HeadScores)
    assert published.values.shape == (1, 9, 8)
    assert published.n_heads == 2
    assert (float(published.per_head[2, 1]), float(published.per_head[0, 3])) == (0.5, 0.25)


@pytest.mark.parametrize(
    "written", [["L2H1", "L0H3"], ["2-1", "0-3"], [[2, 1], [0, 3]], {"name": "by hand", "heads": ["L2H1", "L0H3"]}]
)
def test_published_names_are_read_in_their_forms_and_order(written: Any, tmp_path: Path):
    (tmp_path / "list.json").write_text(json.dumps(written))
    published = load_published(tmp_path / "list.json", 9, 8)
    assert isinstance(published, HeadSet)
    assert str(published) == "L2H1, L0H3"
    with pytest.raises(ValueError, match="names heads without scores"):
        load_head_score_list(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("nonsense", "does not hold a list of heads"),
        ("3", "does not hold a list of heads"),
        ('{"heads": 3}', "does not hold a list of heads"),
        ('{"heads": ["L1H1"]}', "does not hold a list of heads"),
        ('[["2-1", "high"]]', "does not hold a list of heads"),
        ('{"2-1": []}', "does not hold a list of heads"),
        ("[[1, -2]]", "is not a head, which is two whole numbers from zero"),
        ("[[1, 2, 3]]", "does not hold a list of heads"),
        ('["L1"]', "'L1' is not a head"),
        ('["1-2", "1-2"]', "L1H2 appears more than once"),
        ('[["1-2", 1], ["L1H2", 2]]', "lists a head twice"),
        ('[["1-2", NaN]]', "nan is no finite score"),
        ("[" * 9000, "does not hold a list of heads"),
        ("[]", "lists no head"),
        ('["L9H0"]', "lists L9H0, and the run has 9 layers of 8 heads: the list goes on to layer 9 and head 0"),
        ('[["999999999-2", 1]]', "'L999999999H2' is not a head"),
        (json.dumps({f"{layer}-{head}": 1 for layer in range(6) for head in range(4)}),
         "scores all heads of 6 layers of 4 heads, and the run has 9 layers of 8"),
    ],
)  # fmt: skip
def test_other_files_are_refused(written: str, message: str, tmp_path: Path):
    (tmp_path / "list.json").write_text(written)
    with pytest.raises(ValueError, match=message):
        load_published(tmp_path / "list.json", 9, 8)
