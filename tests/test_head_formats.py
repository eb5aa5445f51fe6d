"""Parquet tables and published lists of heads."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from torch import nan
from torch.testing import assert_close

from corelens import HeadScores
from corelens.head_formats import load_head_score_list, load_published, save_head_score_list, to_parquet


@pytest.fixture
def scores() -> HeadScores:
    """Two samples of six layers with sixteen heads; the mean falls from L0H0 to L5H15."""
    mean = torch.arange(96, 0, -1.0).reshape(6, 16)
    return HeadScores(torch.stack([mean - 1, mean + 1]), "mass", ("a", "b"), "tiny", choices={"queries": "last"})


def test_parquet_has_a_row_for_every_score(scores: HeadScores, tmp_path: Path):
    values = scores.values.clone()
    values[:, 3] = nan
    to_parquet([replace(scores, values=values, datasets=("x", "y")), scores], tmp_path / "scores.parquet")
    rows = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(rows) == 2 * 80 + 2 * 96
    assert rows[100] == {
        "model": "tiny", "metric": "mass", "dataset": "y", "sample": "b", "layer": 1, "head": 4,
        "score": float(values[1, 1, 4]),
    }  # fmt: skip


def test_published_lists_survive(scores: HeadScores, tmp_path: Path):
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


HUGE = "1" + "0" * 400
MALFORMED = {
    "deep nesting": "[" * 100_000, "nothing": "", "no list": "5", "no head": "[]", "truths": "[[true, false]]",
    "a huge score": f'{{"1-2": {HUGE}}}', "a huge score of a trial": f'[["1-2", [{HUGE}, 1]]]',
    "a head of too many digits": '{"99999999999999999999-1": 0.5}', "a head that no model has": '{"99999-9999": 0.5}',
    "a score that is no number": '{"1-2": NaN}', "a truth as a score": '{"1-2": true}', "no trial": '{"1-2": []}',
    "a key twice": '{"1-2": 0.5, "1-2": 0.7}', "a head twice": '[["1-2", 0.5], ["L1H2", 0.7]]',
    "negative": '[["-1-2", 0.5]]', "scores as an object": '{"head_score_list": {"1-2": 0.1, "3-4": 0.9}}',
    "three numbers": "[[1, 2, 3]]", "a head without a score": '[["1-2"]]',
    "a name that is none": '{"name": 5, "heads": ["L1H2"]}',
}  # fmt: skip
"""Texts in the place of a published list."""


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_lists_are_one_error_that_names_the_file(what: str, tmp_path: Path):
    path = tmp_path / "published.json"
    path.write_text(MALFORMED[what])
    for read in (load_head_score_list, lambda path: load_published(path, 32, 32)):
        with pytest.raises(ValueError, match=r"published\.json"):
            read(path)
