"""Resumable runs: skipped samples, memory that runs out, and runs that are killed."""

import dataclasses
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from torch.testing import assert_close

from corelens import Box, Evidence, Head, HeadScores, HeadSet, HookedMLLM, scan, toy
from corelens.experiments import head_metrics
from corelens.experiments.ablation import run_ablation
from corelens.experiments.conditions import BASELINE, ConditionResults, read_conditions
from corelens.experiments.key_tokens import scan_key_tokens
from corelens.experiments.run_folder import RunFolder
from corelens.experiments.scan import scan_metrics
from corelens.experiments.sparse_eval import run_sparse_eval
from corelens.experiments.sweep import run_sweep
from tests.helpers import processors, tiny
from tests.helpers.cli import json_of
from tests.helpers.questions import samples
from tests.helpers.run_folders import files_of


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def vlm(request: pytest.FixtureRequest) -> HookedMLLM:
    """A tiny random model that reads pictures."""
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def test_samples_that_cannot_be_measured_are_left_out_with_their_reason(
    vlm: HookedMLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    good = samples(7)
    bad = {
        "no evidence": dataclasses.replace(good[0], id="no evidence", evidence=()),
        "outside": dataclasses.replace(good[1], id="outside", evidence=(Evidence(Box(0, 0, 500, 5)),)),
        "empty": dataclasses.replace(good[2], id="empty", question=""),
        "missing": dataclasses.replace(good[3], id="missing", images=(tmp_path / "nowhere.png",)),
    }
    mixed = [good[0], bad["no evidence"], good[1], bad["outside"], bad["empty"], good[2], bad["missing"], *good[3:]]
    with pytest.warns(UserWarning, match=r"4 of 11 samples cannot be measured; the first, .*\. All are in \.skipped"):
        scores = scan(vlm, mixed, batch_size=4)
    assert scores.samples == tuple(sample.id for sample in good)
    assert set(scores.skipped) == set(bad)
    for name, why in {
        "no evidence": "has no evidence", "outside": "is not a region of picture 0", "empty": "question is empty",
        "missing": "there is no picture file",
    }.items():  # fmt: skip
        assert why in scores.skipped[name]
    assert_close(scores.values, scan(vlm, good).values, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="1 of 1 samples cannot be measured; the first, empty"):
        scan(vlm, [bad["empty"]])
    with pytest.raises(ValueError, match="there are no samples"):
        scan(vlm, [])
    with pytest.raises(ValueError, match="there are no samples of none"):
        scan(vlm, {"some": good, "none": []})
    with monkeypatch.context() as patched:
        patched.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
        with pytest.raises(TypeError, match=r"give a list of samples, such as \[sample\]"):
            scan(vlm, good[0])
    with pytest.raises(ValueError, match="there is no metric 'rham'; there are ram, "):
        scan(vlm, good, "rham")
    with pytest.raises(ValueError, match="metrics need different names, and these are called ram, ram"):
        scan_metrics(vlm, good, ["ram", "ram"])
    with pytest.raises(ValueError, match="there is no metric; take"):
        scan_metrics(vlm, good, [])


def test_batches_shrink_when_memory_runs_out(vlm: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    measure = head_metrics.score_heads

    def too_large(model: Any, inputs: Any, *args: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no memory")
        return measure(model, inputs, *args)

    expected = scan(vlm, samples(7), batch_size=1)
    monkeypatch.setattr(head_metrics, "score_heads", too_large)
    scores = scan(vlm, samples(7), batch_size=7)
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert scores.samples == expected.samples
    assert_close(scores.values, expected.values, atol=1e-5, rtol=1e-4)


SCAN = """
import sys
from corelens import HookedMLLM
from corelens.experiments.scan import scan_metrics
from corelens import toy
model = HookedMLLM.from_pretrained("corelens/toy")
scan_metrics(model, toy.scenes(128, 3), ["ram", "write_ram"], out=sys.argv[1])
"""


def test_a_scan_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path):
    command = [sys.executable, "-c", SCAN]
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    expected = files_of(tmp_path / "whole")
    assert set(expected) == {
        "manifest.json",
        "ram.safetensors",
        "write_ram.safetensors",
        "ram.csv",
        "write_ram.csv",
        *(f"parts/0000{number}.parquet" for number in range(4)),
    }
    rng, kills, finished = random.Random(0), 0, set()
    while True:
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen([*command, tmp_path / "killed"], stdout=log, stderr=log)
        log.close()
        parts, started = tmp_path / "killed" / "parts", len(finished)
        # Wait until it works, then for a random moment of its work.
        while process.poll() is None and len(list(parts.glob("*.parquet"))) <= started:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        finished = {path.name for path in parts.glob("*.parquet")}
        assert all(expected[f"parts/{name}"] == (parts / name).read_bytes() for name in finished)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert kills >= 2
    assert files_of(tmp_path / "killed") == expected


@pytest.mark.parametrize(
    "command",
    [
        ("sweep", "--data", "scenes=12"),
        ("ablate", "--data", "scenes=24", "--heads", "L3H14,L0H11", "--limit", "24"),
    ],
    ids=lambda command: command[0],
)
def test_a_killed_run_ends_with_the_same_bytes(command: tuple[str, ...], tmp_path: Path):
    json_of(*command, "--out", tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    n_parts = len([name for name in expected if name.startswith("parts/")])
    arguments = [
        sys.executable,
        "-m",
        "corelens",
        *command,
        "--model",
        "corelens/toy",
        "--out",
        tmp_path / "killed",
    ]
    parts = tmp_path / "killed" / "parts"
    with (tmp_path / "log").open("w") as log, subprocess.Popen(arguments, stdout=log, stderr=log) as running:
        while running.poll() is None and not list(parts.glob("*.parquet")):
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert 0 < len(list(parts.glob("*.parquet"))) < n_parts, (tmp_path / "log").read_text()
    json_of(*command, "--out", tmp_path / "killed")
    assert files_of(tmp_path / "killed") == expected


EXPERIMENTS: dict[str, Callable[[HookedMLLM, Any, Path | None], HeadScores | ConditionResults[Any]]] = {
    "scan": lambda model, samples, out: scan(model, samples, out=out),
    "sweep": lambda model, samples, out: run_sweep(model, samples, out=out).scores(),
    "key tokens": lambda model, samples, out: scan_key_tokens(model, samples, RANKINGS, out=out).ratios,
    "ablation": lambda model, samples, out: run_ablation(model, samples, RANKINGS, out=out),
    "sparse inference": lambda model, samples, out: run_sparse_eval(model, samples, {}, out=out),
}

RANKINGS = {"top": [HeadSet((Head(2, 4),))]}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_results_know_which_samples_share_a_picture(toy_model: HookedMLLM, name: str, tmp_path: Path):
    alone, shared = list(toy.scenes(1, seed=0)), [replace(one, about={"group": "p"}) for one in toy.scenes(2, seed=1)]
    run = EXPERIMENTS[name]
    assert run(toy_model, alone, None).groups == ()
    data = {"alone": alone, "shared": shared}
    for _ in range(2):  # measured, and read from the folder
        results = run(toy_model, data, tmp_path / "run")
        assert results.groups == (alone[0].id, "p", "p")
    if isinstance(results, ConditionResults):
        assert read_conditions(RunFolder.load(tmp_path / "run")).groups == results.groups
        assert results.paired_difference(BASELINE, "shared").n_groups == results.n_groups("shared") == 1
        assert "interval" not in results.summary("shared").get("top", {})


def fails(error: BaseException) -> Any:
    """A picture that cannot be drawn."""

    def picture() -> Any:
        raise error

    return picture


@pytest.mark.parametrize("error", [KeyError("x"), ZeroDivisionError(), TypeError("x"), RuntimeError("x"), EOFError()])
def test_no_error_of_a_picture_ends_a_scan(toy_model: HookedMLLM, error: Exception):
    good = list(toy.scenes(2, seed=0))
    broken = replace(good[0], id="broken", images=(fails(error),))
    with pytest.warns(UserWarning, match="1 of 3 samples cannot be measured; the first, broken"):
        scores = scan(toy_model, [broken, *good])
    assert scores.samples == tuple(sample.id for sample in good)
    assert type(error).__name__ in scores.skipped["broken"]


def test_what_no_sample_is_to_blame_for_ends_a_scan(toy_model: HookedMLLM):
    (sample,) = toy.scenes(1, seed=0)
    for error in (ImportError("x"), torch.OutOfMemoryError("x")):
        with pytest.raises(type(error)):
            scan(toy_model, [replace(sample, images=(fails(error),))])


@contextmanager
def failing_on(model: HookedMLLM, fails: Callable[[int], bool]) -> Iterator[list[int]]:
    """Make the model's own code fail on prompts of some lengths; yields the numbers of prompts of its passes."""
    passes: list[int] = []

    def fail(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        passes.append(len(kwargs["inputs_embeds"]))
        if fails(kwargs["inputs_embeds"].shape[1]):
            raise IndexError("index out of range in self")

    handle = model.hf_model.get_decoder().register_forward_pre_hook(fail, with_kwargs=True)
    yield passes
    handle.remove()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_samples_on_which_the_models_own_code_fails_are_left_out(name: str):
    model, good = HookedMLLM.from_pretrained("corelens/toy"), list(toy.scenes(3, seed=0))
    long = replace(good[1], id="long", question="which " * 200 + good[1].question)
    with failing_on(model, lambda n: n > 200), pytest.warns(UserWarning, match="1 of 4 samples cannot be measured"):
        results = EXPERIMENTS[name](model, [good[0], long, *good[1:]], None)
    assert results.skipped == {"long": "IndexError: index out of range in self"}
    assert results.samples == tuple(sample.id for sample in good)


def test_the_first_samples_of_a_shard_may_all_be_bad():
    """Batches begin with the shortest prompts: a shard goes on where its longest is good."""
    model, good = HookedMLLM.from_pretrained("corelens/toy"), list(toy.scenes(3, seed=0))
    long = [replace(sample, question=sample.question.replace(" ?", " one" * 9 + " ?")) for sample in good]
    bad = [replace(sample, id=f"bad {sample.id}") for sample in good]
    longest_bad = max(model.prepare(one.images[0], one.question)["input_ids"].shape[1] for one in good)
    with failing_on(model, lambda n: n <= longest_bad), pytest.warns(UserWarning, match="3 of 6 samples cannot"):
        scores = scan(model, [*bad, *long], batch_size=3)
    assert scores.samples == tuple(sample.id for sample in long)
    assert set(scores.skipped) == {sample.id for sample in bad}


@pytest.mark.parametrize("n", [1, 2, 40])
def test_an_error_that_no_sample_survives_ends_the_scan_at_once(n: int, tmp_path: Path):
    model = HookedMLLM.from_pretrained("corelens/toy")
    with failing_on(model, lambda n: True) as passes, pytest.raises(IndexError, match="out of range in self"):
        scan(model, list(toy.scenes(n, seed=0)), batch_size=8)
    # One batch in halves, until two samples have failed alone.
    assert len(passes) <= 5


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_model_of_nan_is_reported_with_its_layer(name: str):
    model = HookedMLLM.from_pretrained("corelens/toy")
    with torch.no_grad():
        model.hf_model.get_decoder().layers[2].self_attn.q_proj.weight[0, 0] = torch.nan  # pyright: ignore
    with pytest.raises(ValueError, match=r"1 of 1 samples cannot be measured; the first, .*: layer 2 writes NaN"):
        EXPERIMENTS[name](model, list(toy.scenes(1, seed=0)), None)


HARMS: dict[str, Callable[[Path, Path], object]] = {
    "one bit": lambda run, other: (run / "parts/00000.parquet").write_bytes(
        bytes([(run / "parts/00000.parquet").read_bytes()[0] ^ 1]) + (run / "parts/00000.parquet").read_bytes()[1:]
    ),
    "a part of other samples": lambda run, other: shutil.copy(other / "parts/00000.parquet", run / "parts"),
    "a part twice": lambda run, other: shutil.copy(run / "parts/00000.parquet", run / "parts/00001.parquet"),
    "a part without a checksum": lambda run, other: parquet.write_table(
        parquet.read_table(run / "parts/00000.parquet"), run / "parts/00000.parquet"
    ),
}
"""Damage to a run folder between two runs."""


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_folder_is_refused_until_the_part_is_deleted(
    toy_model: HookedMLLM, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("corelens.experiments.scan.SHARD_SIZE", 1)
    samples, others = list(toy.scenes(2, seed=3)), toy.scenes(2, seed=9)
    right = scan(toy_model, samples, out=tmp_path / "run")
    scan(toy_model, others, out=tmp_path / "other")
    HARMS[harm](tmp_path / "run", tmp_path / "other")
    with pytest.raises(ValueError, match=r"\.parquet .*Delete it: the command .*damaged") as refused:
        scan(toy_model, samples, out=tmp_path / "run")
    Path(str(refused.value).partition(".parquet")[0] + ".parquet").unlink()
    assert torch.equal(scan(toy_model, samples, out=tmp_path / "run").values, right.values)


def test_changed_evidence_is_another_run(toy_model: HookedMLLM, tmp_path: Path):
    (sample,) = toy.scenes(1, seed=0)
    scan(toy_model, [sample], out=tmp_path / "run")
    moved = replace(sample, evidence=(Evidence(Box(0, 0, 20, 20)),))
    with pytest.raises(ValueError, match="samples sha256 was"):
        scan(toy_model, [moved], out=tmp_path / "run")
