"""Runs beside the paper's numbers, by the functions that compute each of them alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from corelens import Head, HeadScores, HeadSet
from corelens.data.published import published_table
from corelens.experiments.key_tokens import METRIC
from corelens.experiments.published_comparison import ComparedTable, compare_with_published
from corelens.experiments.run_folder import RunFolder, Shard, write_summary
from corelens.metrics import spearman, stable_heads

SHAPE = (36, 32)
"""Layers and heads of Qwen3-VL-4B and 8B."""


def write_run(folder: Path, work: str, datasets: list[str], values: dict[str, torch.Tensor], **about: Any) -> Path:
    """A finished run folder of one shard."""
    n = len(datasets)
    manifest = {"work": work, "model": "m", "heads": list(SHAPE), "samples": n, "samples a part": n, **about}
    shard = Shard(tuple(f"s{index}" for index in range(n)), tuple(datasets), values)
    with RunFolder.open(folder, manifest) as run:
        run.write(0, shard)
    return folder


def numbers(table: ComparedTable) -> dict[str, tuple[Any, Any]]:
    return {number.name: (number.printed, number.measured) for number in table.numbers}


@pytest.fixture
def scanned(tmp_path: Path) -> tuple[Path, HeadScores]:
    values = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)) / 5
    values += torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
    datasets = ("refcocog", "refcocog", "mmlongbench-doc", "mmdocir", "mmdocir", "other")
    scores = HeadScores(values, "mass", tuple("abcdef"), "m", datasets)
    write_run(tmp_path / "scan", "scan", list(datasets), {"ram": values.flatten(1)}, measures={"ram": {}})
    scores.save(tmp_path / "scan" / "ram.safetensors")
    return tmp_path / "scan", scores


def test_a_scan_stands_beside_correlations_and_stable_heads(scanned: tuple[Path, HeadScores]):
    folder, scores = scanned
    correlations, stable, depth = compare_with_published(folder, "Qwen/Qwen3-VL-4B-Instruct")
    assert (correlations.where, correlations.dataset) == (
        "section 4.3, figure 5a",
        "refcocog, mmlongbench-doc, mmdocir",
    )
    by_dataset = {name: scores.for_dataset(name).per_head for name in ("refcocog", "mmlongbench-doc", "mmdocir")}
    expected = numbers(correlations)
    assert len(expected) == 6
    assert expected["MMDocIR and MMLongBench"] == (
        0.92, pytest.approx(spearman(by_dataset["mmdocir"], by_dataset["mmlongbench-doc"]), abs=1e-6)
    )  # fmt: skip
    assert expected["VidSTG and RefCOCOg"] == (0.85, None)
    counted = stable_heads(torch.stack(list(by_dataset.values())))
    found = numbers(stable)
    assert found["heads in the top 5 % of all"] == ("about 30", counted.n_heads[3])
    inside = int((counted.matrix[13:25] == 3).sum())
    assert found["of them in layers 13 to 24"] == ("most", f"{inside} of {counted.n_heads[3]}")
    assert stable.note == "The run has 3 of the paper's 4 data sets."
    assert numbers(depth)["VidSTG"] == ("layers 12 to 28", None)
    top = scores.for_dataset("mmlongbench-doc").top()
    inside = sum(12 <= head.layer <= 28 for head in top)
    assert numbers(depth)["MMLongBench"] == ("layers 12 to 28", f"{inside} of the 58 top heads are there")


def test_an_ablation_stands_beside_the_accuracies_by_number_of_heads(tmp_path: Path):
    heads = [Head(layer, head) for layer in range(36) for head in range(32)]
    sets = {"plain": HeadSet(()), "top 5": HeadSet(tuple(heads[:5])), "random 5": HeadSet(tuple(heads[50:55]))}
    values = {"plain": [1.0, 1, 0, 1], "top 5": [1.0, 0, 0, 0], "random 5": [1.0, 1, 0, 0]}
    folder = write_run(
        tmp_path / "run", "ablate", ["MMLongBench"] * 4,
        {name: torch.tensor(of_condition)[:, None] for name, of_condition in values.items()},
        conditions={name: [str(heads)] for name, heads in sets.items()}, how="zero",
    )  # fmt: skip
    (table,) = compare_with_published(folder, "Qwen3-VL-4B")
    assert numbers(table) == {
        "no head": (45.3, 75.0), "top 5 heads": (27.0, 25.0), "top 30 heads": ("below 7", None)
    }  # fmt: skip
    assert table.note == (
        "The run ablates heads by zero, the paper by uniform_all_keys (algorithm 2). "
        "The run has 5 top heads, and not 30."
    )


def test_an_acceleration_stands_beside_accuracies_and_speed_ups(tmp_path: Path):
    folder = write_run(tmp_path / "run", "accelerate", ["mlvu"], {"plain": torch.ones(1, 1)}, plans={"plain": [{}]})
    summary = {
        "positions": 4000,
        "data": {"mlvu": {"conditions": {
            "plain": {"accuracy": 0.7}, "core 20": {"accuracy": 0.6}, "bottom 20": {"accuracy": 0.1}}}},
        "plans": {"plain": {"heads": []}, "core 20": {"full heads": round(20 / 1152, 4), "prefill": 1.5},
                  "bottom 20": {"full heads": round(20 / 1152, 4), "prefill": 1.4}},
    }  # fmt: skip
    write_summary(folder / "acceleration.json", summary)
    (table,) = compare_with_published(folder, "Qwen3-VL-8B")
    found = numbers(table)
    assert found["all heads full, accuracy"] == (65.8, 70.0)
    assert found["20 full heads (1.7 %), accuracy"] == (62.8, 60.0)
    assert found["20 full heads (1.7 %), prefill speed-up"] == (2.3, 1.5)
    assert found["30 full heads (2.6 %), accuracy"] == (64.0, None)
    assert len(found) == 1 + 2 * 6
    with pytest.raises(ValueError, match="prints nothing about Qwen3-VL-4B in 'mlvu'"):
        compare_with_published(folder, "Qwen3-VL-4B")


def test_key_tokens_stand_beside_ratios_and_coverage(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    ratios = torch.rand(3, *SHAPE, generator=generator)
    ranking = HeadSet(tuple(Head(layer, head) for layer in range(4) for head in range(20)))
    coverage = torch.rand(3, 80, generator=generator).sort().values
    folder = write_run(
        tmp_path / "run", "key-tokens", ["mmdocir", "mmdocir", "other"],
        {METRIC: ratios.flatten(1), "tokens": torch.full((3, 1), 100.0), "evidence": torch.full((3, 1), 10.0),
         "coverage, top": coverage},
        rankings={"top": [str(ranking)]}, rule="overlap", views="all",
    )  # fmt: skip
    ratio, covered = compare_with_published(folder, "llava-hf/llava-onevision-qwen2-7b-ov-hf")
    assert numbers(ratio)["top 15 heads, mean ratio"] == (14.4, pytest.approx(100 * float(ratios[:2, 0, :15].mean())))
    assert numbers(ratio)["chance, mean ratio"] == (None, pytest.approx(5))
    assert numbers(covered)["top, 50 heads"] == ("70 to 80", pytest.approx(100 * float(coverage[:2, 49].mean())))
    assert numbers(covered)["top, 100 heads"] == ("70 to 80", None)
    assert numbers(covered)["chance, 50 heads"] == (None, pytest.approx(100 * (1 - 0.95**50)))


def test_what_cannot_stand_beside_the_paper_is_named(scanned: tuple[Path, HeadScores], tmp_path: Path):
    folder, _ = scanned
    sweep = write_run(tmp_path / "sweep", "sweep", ["a"], {"x": torch.ones(1, 1)})
    toy = write_run(tmp_path / "toy", "scan", ["scenes"], {"ram": torch.rand(1, 1152)}, measures={"ram": {}})
    HeadScores(torch.rand(1, *SHAPE), "mass", ("a",), "m", ("scenes",)).save(toy / "ram.safetensors")
    for run, model, message in (
        (sweep, "Qwen3-VL-4B", "a run of sweep, of which the paper prints no numbers; it does of scan, ablate and acc"),
        (folder, "InternVL3.5-8B", "prints nothing about InternVL3.5-8B in 'spearman' .*; it does about Qwen3-VL-4B"),
        (folder, "gpt", "'gpt' is not a model of the paper"),
        (toy, "Qwen3-VL-4B", "the run is on scenes, and the paper's numbers are on RefCOCOg, MMLongBench, VidSTG"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_with_published(run, model)
    (depth,) = compare_with_published(folder, "Qwen3-VL-32B")
    assert [number.printed for number in depth.numbers] == ["layers 44 to 56"]
    assert published_table("depth", "Qwen3-VL-32B") == {"MMDocIR": [44, 56]}
