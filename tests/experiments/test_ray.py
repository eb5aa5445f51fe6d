"""Scans on a Ray cluster of two nodes: the bytes of a scan in one process, whoever dies on the way."""

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

from corelens import HookedMLLM, Sample, toy
from corelens.data.readers.vidstg import FileFrames
from corelens.experiments import scan as scan_module
from corelens.experiments.fingerprint import model_fingerprint
from corelens.experiments.ray import ScoreInActor, _ShardActor, scan_on_ray
from corelens.experiments.resumable import evaluate_shard
from corelens.experiments.scan import scan_config, scan_metrics
from tests.helpers.cli import invoke_on_toy, text_of
from tests.helpers.run_folders import files_of


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

    monkeypatch.setattr(scan_module, "SHARD_SIZE", 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_killed_actor_costs_nothing_and_either_scan_goes_on_with_the_other(cluster: str, tmp_path: Path):
    import ray

    scenes, metrics = samples(tmp_path / "pictures"), ["ram", "entropy"]
    with pytest.warns(UserWarning, match="1 of 14 samples cannot be measured"):
        scores = scan_on_ray(toy_model, {"x": scenes}, metrics, address=cluster, out=tmp_path / "ray", batch_size=3)
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

    for folder, resume in {
        "serial": partial(scan_on_ray, toy_model, address=cluster, actors=1),
        "ray": partial(scan_metrics, toy_model()),
    }.items():
        for name in ("parts/00001.parquet", "parts/00003.parquet", "ram.safetensors", "entropy.safetensors"):
            (tmp_path / folder / name).unlink()
        finished = tmp_path / folder / "parts" / "00002.parquet"
        modified = finished.stat().st_mtime_ns
        with pytest.warns(UserWarning, match="1 of 14 samples cannot be measured"):
            resume({"x": scenes}, metrics, out=tmp_path / folder, batch_size=3)
        assert files_of(tmp_path / folder) == files
        assert finished.stat().st_mtime_ns == modified


@pytest.mark.nightly
def test_errors_of_the_machines_come_back_as_they_are(cluster: str, tmp_path: Path):
    import ray

    ray.init(cluster, log_to_driver=False)
    try:
        with pytest.raises(ValueError, match=r"write_ram cannot be computed: the W_O of blocks.0.* has no matrix"):
            scan_on_ray(quantised, toy.scenes(2, 0), ("ram", "write_ram"), out=tmp_path / "quantised")
        assert not (tmp_path / "quantised").exists()
        with pytest.raises(FileNotFoundError, match="there is no model here"):
            scan_on_ray(fails, toy.scenes(2, 0))
        with pytest.raises(
            RuntimeError, match=r"loads another model than the first machine: weights '\w+', not '\w+'\."
        ):
            scan_on_ray(partial(another_next_time, tmp_path / "seen"), toy.scenes(2, 0), out=tmp_path / "run")
        assert not list((tmp_path / "run" / "parts").iterdir())
        with pytest.raises(ValueError, match="gpus=100, but the machines of the cluster have at most"):
            scan_on_ray(toy_model, toy.scenes(2, 0), gpus=100)
        generator = (sample for sample in ())
        cannot = dataclasses.replace(next(toy.scenes(1, 0)), images=(lambda: next(generator),))
        with pytest.raises(TypeError, match="a sample cannot travel to other machines: cannot pickle 'generator'"):
            scan_on_ray(toy_model, [cannot])
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
    run = partial(scan_on_ray, fails, list(toy.scenes(2, 0)), out=tmp_path / "run")
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
        run(["rham"])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs Ray, which is not installed: pip install 'corelens\[cluster\]'"):
        run()
    assert not (tmp_path / "run").exists()
    result = invoke_on_toy("scan", "--data", "scenes=2", "--out", tmp_path / "run", "--actors", 3)
    assert result.exit_code == 2
    assert "give --ray too" in text_of(result)


def test_a_machine_without_a_file_of_the_first_is_named(tmp_path: Path):
    evaluate = ScoreInActor(toy_model, model_fingerprint(toy_model(), whole=True), scan_config(["ram"]))
    actor = _ShardActor(partial(evaluate_shard, evaluate=evaluate, batch_size=1))
    assert actor({"number": 3, "samples": [], "files": [__file__]})["number"] == 3
    with pytest.raises(
        FileNotFoundError, match=r" has no file 'nowhere.png', which the machine that began the scan has"
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
