"""The paper's numbers: sums and shares that the paper prints twice, names of models, and errors."""

import json
from importlib.resources import files

import pytest

from corelens.data.published import published_model, published_numbers, published_table

TABLES = published_numbers()["tables"]
MODELS = published_numbers()["models"]


def test_the_source_and_its_licence_are_named():
    numbers = json.loads((files("corelens") / "data" / "published.json").read_text())
    assert "2606.05843v1" in numbers["source"]
    assert numbers["license"].startswith("CC BY 4.0")
    assert all(table["where"] and table["of"] and table["models"] for table in numbers["tables"].values())
    assert all(table["models"].keys() <= MODELS.keys() for table in TABLES.values())


@pytest.mark.parametrize("table", ["mlvu", "videomme"])
def test_full_heads_are_the_printed_shares(table: str):
    for model, rows in TABLES[table]["models"].items():
        n_heads = MODELS[model]["layers"] * MODELS[model]["heads"]
        assert rows[0]["full_heads"] == n_heads
        assert [row["full_heads"] for row in rows[1:]] == sorted(row["full_heads"] for row in rows[1:])
        for row in rows:
            assert round(100 * row["full_heads"] / n_heads, 1) == pytest.approx(row["share"], abs=0.11)


def test_averages_of_mlvu_are_those_of_its_tasks():
    for rows in TABLES["mlvu"]["models"].values():
        for row in rows:
            assert sum(row["tasks"].values()) / 6 == pytest.approx(row["accuracy"], abs=0.16)
    assert all(len(row["tasks"]) == 12 for rows in TABLES["videomme"]["models"].values() for row in rows)


def test_the_correlations_are_symmetric():
    matrix = published_table("spearman", "Qwen3-VL-4B")["values"]
    assert matrix == [list(column) for column in zip(*matrix, strict=True)]
    assert [row[index] for index, row in enumerate(matrix)] == [1.0] * 4


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Qwen3-VL-8B", "Qwen3-VL-8B"),
        ("qwen3-vl-8b", "Qwen3-VL-8B"),
        ("Qwen/Qwen3-VL-8B-Instruct", "Qwen3-VL-8B"),
        ("/models/Qwen3-VL-32B-Instruct/", "Qwen3-VL-32B"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "LLaVA-OneVision-7B"),
        ("OpenGVLab/InternVL3_5-8B-HF", "InternVL3.5-8B"),
    ],
)
def test_models_have_the_names_of_the_paper_and_of_the_hub(name: str, model: str):
    assert published_model(name) == model


def test_what_the_paper_does_not_print_is_named():
    assert published_table("mlvu", "Qwen/Qwen3-VL-8B-Instruct")[1]["prefill_speedup"] == 2.3
    for arguments, message in {
        ("mlvu", "Qwen3-VL-4B"): "prints nothing about Qwen3-VL-4B in 'mlvu' .section 5, table 2.; it does about "
        "LLaVA-OneVision-7B, Qwen3-VL-8B, Qwen3-VL-32B",
        ("mlvu", "Qwen3-VL-8B-Thinking"): "'Qwen3-VL-8B-Thinking' is not a model of the paper; these are Qwen3-VL-2B",
        ("table 9", "Qwen3-VL-8B"): "no published table 'table 9'; there are spearman, stable_heads",
    }.items():
        with pytest.raises(ValueError, match=message):
            published_table(*arguments)
