"""Experiments on a Ray cluster of two nodes: the bytes of a run in one process, whoever dies on the way."""

import dataclasses
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from corelens import Head, HeadSet, HookedMLLM, Sample, toy
from corelens.data.readers.vidstg import FileFrames
from corelens.experiments import ablation, head_metrics, key_tokens, scan, sparse_eval, sweep
from corelens.experiments.fingerprint import model_fingerprint
from corelens.experiments.head_metrics import ScanConfig
from corelens.experiments.ray import RayModel, ShardActor
from corelens.experiments.remote import AnyModel, changed
from corelens.experiments.resumable import evaluate_shard
from corelens.experiments.scan import scan_metrics
from corelens.sparse import Full, HeadPlan, Streaming
from corelens.study import run_study
from tests.helpers.cli import invoke_on_toy, text_of
from tests.helpers.run_folders import files_of
from tests.helpers.studies import SMALL_BUDGET, study_samples


@dataclasses.dataclass(frozen=True)
class Late:
    """A picture that is made on request; the first process that requests it is killed."""

    picture: Image.Image
    killed: Path = dataclasses.field(compare=False)  # which changes nothing of the picture

    def __call__(self) -> Image.Image:
        if not self.killed.exists():
            self.killed.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.picture


def samples(folder: Path, n: int = 14) -> list[Sample]:
    """Pictures, functions that return them, and paths; the tenth kills."""
    folder.mkdir(exist_ok=True)
    scenes = list(toy.scenes(n, 3))
    for index, sample in enumerate(scenes):
        (picture,) = sample.images
        assert isinstance(picture, Image.Image)
        if index % 3 == 1:
            picture.save(folder / f"{index}.png")
            scenes[index] = dataclasses.replace(sample, images=(folder / f"{index}.png",))
        if index == 9:
            scenes[index] = dataclasses.replace(sample, images=(Late(picture, folder / "killed"),))
    scenes[5] = dataclasses.replace(scenes[5], evidence=())
    return scenes


def toy_model() -> HookedMLLM:
    return HookedMLLM.from_pretrained("corelens/toy")


def quantised() -> HookedMLLM:
    """The toy with attention whose matrices are not at hand."""
    model = toy_model()
    for layer in model.hf_layers:
        attention: Any = layer.attentions["attn"].module
        attention.o_proj = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(attention.o_proj), {nn.Linear}, dtype=torch.qint8
        )[0]
    return model


def another_next_time(loaded: Path) -> HookedMLLM:
    if loaded.exists():
        return HookedMLLM.from_pretrained("corelens/toy-natural")
    loaded.touch()
    return toy_model()


def fails() -> HookedMLLM:
    raise FileNotFoundError("there is no model here")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes with room for one actor each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)  # actors know this file
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes.address
        nodes.shutdown()


@pytest.fixture(autouse=True)
def _small_parts_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As actors with one CPU compute: other numbers of threads may round differently."""

    for module in (ablation, key_tokens, scan, sparse_eval, sweep):
        monkeypatch.setattr(module, "SHARD_SIZE", 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_actor_costs_nothing_and_either_scan_goes_on_with_the_other(cluster: str, tmp_path: Path):
    import ray

    scenes, metrics = samples(tmp_path / "pictures"), ["ram", "entropy"]
    with pytest.warns(UserWarning, match="1 of 14 samples cannot be measured"):
        scores = scan_metrics(RayModel(toy_model, cluster), {"x": scenes}, metrics, out=tmp_path / "ray", batch_size=3)
    assert (tmp_path / "pictures" / "killed").exists()
    assert not ray.is_initialized()
    with pytest.warns(UserWarning, match="1 of 14 samples cannot be measured"):
        expected = scan_metrics(toy_model(), {"x": scenes}, metrics, out=tmp_path / "serial", batch_size=3)
    files = files_of(tmp_path / "serial")
    assert len(files) == 1 + 4 + 2 * 2  # manifest, parts, and two files for each of two metrics
    assert files_of(tmp_path / "ray") == files
    for name in metrics:
        assert torch.equal(scores[name].values, expected[name].values)
        assert (scores[name].samples, scores[name].skipped) == (expected[name].samples, expected[name].skipped)

    for folder, model in {"serial": RayModel(toy_model, cluster, actors=1), "ray": toy_model()}.items():
        for name in ("parts/00001.parquet", "parts/00003.parquet", "ram.safetensors", "entropy.safetensors"):
            (tmp_path / folder / name).unlink()
        finished = tmp_path / folder / "parts" / "00002.parquet"
        modified = finished.stat().st_mtime_ns
        with pytest.warns(UserWarning, match="1 of 14 samples cannot be measured"):
            scan_metrics(model, {"x": scenes}, metrics, out=tmp_path / folder, batch_size=3)
        assert files_of(tmp_path / folder) == files
        assert finished.stat().st_mtime_ns == modified


def ablate_means(model: AnyModel, samples: list[Sample], out: Path) -> Any:
    """Reference activations are computed in every actor."""
    heads = [HeadSet.parse("L2H0,L3H1"), HeadSet.parse("L1H1")]
    return ablation.run_ablation(model, samples, {"heads": heads}, "mean", batch_size=3, max_new_tokens=3, out=out)


def sweep_groups(model: AnyModel, samples: list[Sample], out: Path) -> Any:
    return sweep.run_sweep(model, samples, per="group", out=out)


def answer_sparsely(model: AnyModel, samples: list[Sample], out: Path) -> Any:
    plan = HeadPlan({Head(2, 0): Full()}, Streaming(2, 8))
    return sparse_eval.run_sparse_eval(model, samples, {"core": [plan]}, batch_size=3, max_new_tokens=3, out=out)


def find_key_tokens(model: AnyModel, samples: list[Sample], out: Path) -> Any:
    return key_tokens.scan_key_tokens(model, samples, {"top": [HeadSet.parse("L2H0,L3H1")]}, batch_size=3, out=out)


@pytest.mark.nightly
@pytest.mark.parametrize("run", [ablate_means, sweep_groups, answer_sparsely, find_key_tokens])
def test_every_experiment_has_the_bytes_of_one_machine(run: Any, cluster: str, tmp_path: Path):
    scenes = samples(tmp_path / "pictures", 10)
    scenes[5] = list(toy.scenes(6, 3))[5]  # sound: means are of all samples
    on_ray = run(RayModel(toy_model, cluster), scenes, tmp_path / "ray")
    assert (tmp_path / "pictures" / "killed").exists()
    expected = run(toy_model(), scenes, tmp_path / "serial")
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "serial")
    assert len(files_of(tmp_path / "serial")) >= 4
    assert type(on_ray) is type(expected)


@pytest.mark.nightly
def test_a_study_on_a_cluster_is_that_of_one_machine(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setattr("corelens.study.verdict.N_DRAWS", 40)
    ray.init(cluster, log_to_driver=False)  # once, not for each experiment
    try:
        there = run_study(RayModel(toy_model), *study_samples(4), tmp_path / "ray", SMALL_BUDGET, max_new_tokens=2)
    finally:
        ray.shutdown()
    here = run_study(toy_model(), *study_samples(4), tmp_path / "serial", SMALL_BUDGET, max_new_tokens=2)
    of_ray, of_serial = (files_of(tmp_path / name) for name in ("ray", "serial"))
    assert of_ray.keys() == of_serial.keys()
    assert [name for name in of_ray if of_ray[name] != of_serial[name]] == ["speed.json"]
    claims = {finding.claim: finding.verdict for finding in here.findings if "Acceleration" not in finding.claim}
    assert {finding.claim: finding.verdict for finding in there.findings if finding.claim in claims} == claims


def silenced(model: HookedMLLM) -> HookedMLLM:
    with torch.no_grad():
        model.W_O[3, 0].zero_()
    return model


@pytest.mark.nightly
def test_a_changed_model_is_changed_in_the_actors(cluster: str):
    scenes = list(toy.scenes(3, 0))
    there, here, before = (
        scan_metrics(model, scenes, ["write_ram"])["write_ram"].values
        for model in (changed(RayModel(toy_model, cluster), silenced), changed(toy_model(), silenced), toy_model())
    )
    assert torch.equal(there, here)
    assert (there[:, 3, 0] == 0).all()
    assert (before[:, 3, 0] > 0).all()


@pytest.mark.nightly
def test_errors_of_the_machines_come_back_as_they_are(cluster: str, tmp_path: Path):
    import ray

    ray.init(cluster, log_to_driver=False)
    try:
        with pytest.raises(ValueError, match=r"write_ram cannot be computed: the W_O of blocks.0.* has no matrix"):
            scan_metrics(RayModel(quantised), toy.scenes(2, 0), ("ram", "write_ram"), out=tmp_path / "quantised")
        assert not (tmp_path / "quantised").exists()
        with pytest.raises(FileNotFoundError, match="there is no model here"):
            scan_metrics(RayModel(fails), toy.scenes(2, 0))
        another = RayModel(partial(another_next_time, tmp_path / "seen"))
        with pytest.raises(
            RuntimeError, match=r"loads another model than the first machine: weights '\w+', not '\w+'\."
        ):
            scan_metrics(another, toy.scenes(2, 0), out=tmp_path / "run")
        assert not list((tmp_path / "run" / "parts").iterdir())
        with pytest.raises(ValueError, match="gpus=100, but the machines of the cluster have at most"):
            scan_metrics(RayModel(toy_model, gpus=100), toy.scenes(2, 0))
        generator = (sample for sample in ())
        cannot = dataclasses.replace(next(toy.scenes(1, 0)), images=(lambda: next(generator),))
        with pytest.raises(TypeError, match="a sample cannot travel to other machines: cannot pickle 'generator'"):
            scan_metrics(RayModel(toy_model), [cannot])
        assert ray.is_initialized()  # a connection that was there before stays
    finally:
        ray.shutdown()


@pytest.mark.nightly
def test_the_command_scans_on_a_cluster_of_its_own(tmp_path: Path):
    command = ("scan", "--data", "scenes=3", "--metric", "ram", "--json")
    on_ray = invoke_on_toy(*command, "--out", tmp_path / "ray", "--ray", "local", "--actors", 1, "--gpus", 0)
    assert on_ray.exit_code == 0, on_ray.output
    serial = invoke_on_toy(*command, "--out", tmp_path / "serial")
    assert on_ray.stdout == serial.stdout
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "serial")


def test_mistakes_are_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ray

    def refused(address: str, *_: Any, **__: Any) -> None:
        raise ConnectionError(address)

    monkeypatch.setattr(ray, "init", refused)
    scenes = list(toy.scenes(2, 0))

    def run(metrics: tuple[str, ...] = ("ram",), **settings: Any) -> None:
        scan_metrics(RayModel(fails, **settings), scenes, metrics, out=tmp_path / "run")

    for wrong in ("nonsense", "ray://here:10001", "here:there"):
        with pytest.raises(ValueError, match=f"address='{wrong}' is neither `auto` nor `local` nor HOST:PORT"):
            run(address=wrong)
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127\.0\.0\.1:9: .*refused"):
        run(address="127.0.0.1:9")
    with pytest.raises(ConnectionError, match="this machine belongs to no Ray cluster: start one with `ray start"):
        run(address="auto")
    with pytest.raises(ValueError, match="actors=0 is less than one"):
        run(actors=0)
    with pytest.raises(ValueError, match="there is no metric 'rham'"):
        run(("rham",))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs Ray, which is not installed: pip install 'corelens\[cluster\]'"):
        run()
    assert not (tmp_path / "run").exists()
    result = invoke_on_toy("scan", "--data", "scenes=2", "--out", tmp_path / "run", "--actors", 3)
    assert result.exit_code == 2
    assert "give --ray too" in text_of(result)


def test_a_machine_without_a_file_of_the_first_is_named(tmp_path: Path):
    evaluate: Any = partial(evaluate_shard, batch_size=1)
    evaluator = partial(partial, head_metrics.score_batch, config=ScanConfig(()))
    actor = ShardActor(toy_model, evaluator, evaluate, model_fingerprint(toy_model(), whole=True))
    assert actor({"number": 3, "samples": [], "files": [__file__]})["number"] == 3
    with pytest.raises(
        FileNotFoundError, match=r" has no file 'nowhere.png', which the machine that began the run has"
    ):
        actor({"number": 3, "samples": [], "files": [__file__, "nowhere.png"]})


def test_frames_of_a_file_travel_while_they_are_decoded():
    frames = FileFrames(Path("video.mp4"), 3, 7)
    frames._decoding = (frame for frame in ())
    assert pickle.loads(pickle.dumps(frames)) == FileFrames(Path("video.mp4"), 3, 7)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    import psutil

    left = [child for child in psutil.Process().children(recursive=True) if "/ray/" in " ".join(child.cmdline())]
    assert not left
