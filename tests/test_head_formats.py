"""Parquet tables and published lists of heads."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from torch import nan
from torch.testing import assert_close

from corelens import HeadScores, HeadSet
from corelens.head_formats import HeadList, load_head_score_list, load_published, save_head_score_list, to_parquet


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


def test_a_head_list_says_where_it_comes_from_and_survives(scores: HeadScores, tmp_path: Path):
    path = tmp_path / "heads.json"
    listed = HeadList.of(scores, scores.top(3), "mass of the last token", ["scenes"], seed=7)
    listed.save(path)
    assert HeadList.load(path) == listed
    assert listed.head_set().heads == scores.top(3).heads
    saved = json.loads(path.read_text())
    assert saved["heads"][0] == {
        "head": "L0H0", "score": 96.0, "low": float(scores.interval[0][0, 0]), "high": float(scores.interval[1][0, 0]),
    }  # fmt: skip
    assert (saved["model"], saved["n_samples"], saved["seed"], saved["choices"]) == ("tiny", 2, 7, {"queries": "last"})
    assert saved["versions"].keys() == {"corelens", "torch", "transformers"}
    published = load_published(path, 6, 16)
    assert isinstance(published, HeadScores)
    assert published.ranked() == scores.ranked()[:3]


def test_a_head_list_that_is_not_one_is_refused_by_field(scores: HeadScores, tmp_path: Path):
    path = tmp_path / "heads.json"
    HeadList.of(scores, scores.top(2), "mass", ["scenes"]).save(path)
    saved = json.loads(path.read_text())
    for change, message in (
        ({"format": "corelens head list 9"}, "format: "),
        ({"heads": [{"head": "4-2", "score": 1}]}, r"heads\.0\.head: "),
        ({"heads": saved["heads"] * 2}, "appears more than once"),
        ({"model": ""}, "model: "),
        ({"licence": "MIT"}, "licence: "),
    ):
        path.write_text(json.dumps(saved | change))
        with pytest.raises(ValueError, match=f"does not hold a head list: .*{message}"):
            HeadList.load(path)
    with pytest.raises(ValueError, match="L9H9 has no mass"):
        HeadList.of(scores, HeadSet.parse("L9H9"), "mass", ["scenes"])
    with pytest.raises(ValueError, match="name no model"):
        HeadList.of(replace(scores, model=""), scores.top(1), "mass", ["scenes"])


def test_a_head_list_configures_vllm_hook(scores: HeadScores, tmp_path: Path):
    path = tmp_path / "tiny.json"
    HeadList.of(scores, scores.top(2), "mass of the last token", ["scenes"]).save_vllm_hook(path)
    config = json.loads(path.read_text())
    assert config["model_info"]["model_id"] == "tiny"
    assert config["params"]["important_heads"] == [list(head) for head in scores.top(2)]
    assert config["hookq"] == {"hookq_mode": "last_token"}
    read = load_published(path, 6, 16)
    assert isinstance(read, HeadSet)
    assert read.heads == scores.top(2).heads


def test_the_schema_in_the_docs_is_that_of_the_code():
    schema = Path(__file__).parent.parent / "docs/head-list.schema.json"
    assert json.loads(schema.read_text()) == HeadList.model_json_schema()
