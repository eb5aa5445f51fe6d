"""Scans on a Ray cluster: actors hold the model and evaluate shards, and this process alone writes them."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from corelens.data import Sample
from corelens.experiments.fingerprint import model_fingerprint
from corelens.experiments.head_metrics import ScanConfig, score_batch
from corelens.experiments.layer_scores import AnyMetric, check_can_score
from corelens.experiments.resumable import DatasetSamples, SampleSets, flatten_datasets
from corelens.experiments.run_folder import Shard
from corelens.experiments.scan import run_scan, scan_config
from corelens.model import HookedMLLM
from corelens.scores import HeadScores


def scan_on_ray(
    load: Callable[[], HookedMLLM],
    samples: SampleSets,
    metrics: Sequence[AnyMetric] = ("ram", "ram_last"),
    *,
    address: str = "auto",
    actors: int = 2,
    gpus: int | None = None,
    out: str | PathLike[str] | None = None,
    **settings: Any,
) -> dict[str, HeadScores]:
    """Run `scan_metrics` with models on several machines.

    The model is loaded once for its fingerprint, then once in every actor, which evaluates one shard after another.
    Finished shards come back to this process, which alone writes to `out`, so that the machines need no common file
    system for it; a scan that was begun with `scan_metrics` can be resumed here, and the other way round. The shard of
    an actor that died, or whose machine did, is evaluated again, as often as it takes.

    Args:
        load: Loads the model, in the actor: `partial(HookedMLLM.from_pretrained, "owner/name", dtype="bfloat16")`.
        samples: As for `scan_metrics`. Pictures and arrays travel; paths must hold the same files on every machine, and
            functions must work there. A file that only this machine has is an error; a sample whose file no machine has
            is skipped.
        metrics: As for `scan_metrics`.
        address: `auto` for the Ray cluster that this machine belongs to, `local` for one on this machine that ends
            with the scan, or HOST:PORT. A program that has called `ray.init` itself keeps its connection.
        actors: Most models at a time; fewer, while the cluster has no room for more.
        gpus: GPUs of each actor; None for one if the cluster has any. More are for a model that one cannot hold, on
            which `load` spreads it with `device_map="auto"`.
        out: As for `scan_metrics`.
        settings: The others of `scan_metrics`.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address.
        ValueError: If no machine of the cluster has so many GPUs; or as from `scan_metrics`.
        RuntimeError: If `load` returns different models on the machines; or as from `scan_metrics`.
        FileNotFoundError: If a machine lacks a file that this one has.
        TypeError: If a sample cannot travel, because it holds a generator, say.
    """
    if actors < 1:
        raise ValueError(f"actors={actors} is less than one.")
    config = scan_config(metrics, **settings)
    listed = flatten_datasets(samples)
    with _connect_to_ray(address) as ray:
        most = int(max(machine["Resources"].get("GPU", 0) for machine in ray.nodes() if machine["Alive"]))
        n_gpus = min(1, most) if gpus is None else gpus
        if not 0 <= n_gpus <= most:
            raise ValueError(f"gpus={n_gpus}, but the machines of the cluster have at most {most}.")
        # In a process of its own that ends, since it holds GPUs.
        fingerprint = ray.get(ray.remote(num_gpus=n_gpus, max_calls=1)(_checked_fingerprint).remote(load, config))
        evaluate = ScoreInActor(load, fingerprint, config)
        ray_map = partial(map_on_ray, ray=ray, actors=actors, gpus=n_gpus)
        return run_scan(listed, metrics, config, evaluate, fingerprint, out, ray_map)


def _checked_fingerprint(load: Callable[[], HookedMLLM], config: ScanConfig) -> dict[str, Any]:
    """Fingerprint of the model; an error, before there are actors, if it cannot be scored by all metrics."""
    model = load()
    check_can_score(model, config.metrics)
    return model_fingerprint(model, whole=True)


@dataclass
class ScoreInActor:
    """`score_batch` with a model that is loaded on first use, once in every actor."""

    load: Callable[[], HookedMLLM]
    fingerprint: Mapping[str, Any]
    config: ScanConfig

    @cached_property
    def model(self) -> HookedMLLM:
        """The model, loaded with the first batch: Ray re-raises errors of tasks, but retries failed actor starts."""
        model = self.load()
        fingerprint = model_fingerprint(model, whole=True)
        # Machines may load it from different paths, but it must be the same model.
        different = [name for name in fingerprint if name != "model" and fingerprint[name] != self.fingerprint[name]]
        if different:
            differences = "; ".join(
                f"{name} {fingerprint[name]!r}, not {self.fingerprint[name]!r}" for name in different
            )
            raise RuntimeError(f"{socket.gethostname()} loads another model than the first machine: {differences}.")
        return model

    def __call__(self, samples: list[Sample]) -> Mapping[str, Tensor]:
        return score_batch(self.model, samples, self.config)


def map_on_ray(
    function: Callable[[DatasetSamples], Shard],
    shard_samples: Mapping[int, DatasetSamples],
    ray: Any,
    actors: int,
    gpus: int,
) -> Iterator[tuple[int, Shard]]:
    """Evaluate shards in actors, and yield each as soon as it is finished.

    Args:
        function: Evaluates the samples of a shard; every actor has a copy.
        shard_samples: Samples by number of the shard.
        ray: The connected module.
        actors: Most actors.
        gpus: GPUs of each actor.
    """
    if not shard_samples:
        return
    rows = [
        {"number": number, "samples": samples, "files": [str(path) for path in _paths(samples) if path.is_file()]}
        for number, samples in shard_samples.items()
    ]
    settings = ray.data.DataContext.get_current().copy()
    settings.enable_progress_bars = False
    settings.enable_fallback_to_arrow_object_ext_type = True  # samples are Python objects
    settings.raise_original_map_exception = True
    with ray.data.DataContext.current(settings):
        try:
            # One block per shard, so that each comes back as soon as it is finished.
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        except TypeError as cause:
            raise TypeError(f"a sample cannot travel to other machines: {cause}.") from cause
        results = dataset.map(
            _ShardActor,
            fn_constructor_args=(function,),
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows))),
            num_gpus=gpus,
        )
    for row in results.iter_rows():
        yield row["number"], row["shard"]


@dataclass
class _ShardActor:
    """Actor that evaluates one shard after another."""

    function: Callable[[DatasetSamples], Shard]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if missing := [path for path in row["files"] if not Path(path).is_file()]:
            raise FileNotFoundError(
                f"{socket.gethostname()} has no file {missing[0]!r}, which the machine that began the scan has; copy "
                f"it there, or put the pictures themselves into the samples."
            )
        return {"number": row["number"], "shard": self.function(row["samples"])}


def _paths(samples: DatasetSamples) -> Iterator[Path]:
    for _, sample in samples:
        yield from (Path(media) for media in (*sample.images, *sample.videos) if isinstance(media, str | PathLike))


@contextmanager
def _connect_to_ray(address: str) -> Iterator[Any]:
    """Connect to Ray until the block ends, unless the program is connected already."""
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as cause:
        raise ImportError("this needs Ray, which is not installed: pip install 'corelens[cluster]'.") from cause
    connects = not ray.is_initialized()
    if connects:
        _connect(ray, address)
    try:
        yield ray
    except ray.exceptions.RayTaskError as failed:
        raise failed.cause from failed
    except ray.exceptions.RayError as failed:
        raise RuntimeError(f"Ray gave up: {failed}") from failed
    finally:
        if connects:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    if address not in ("auto", "local"):
        _require_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that starts here sends no statistics
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as cause:
        raise ConnectionError(
            "this machine belongs to no Ray cluster: start one with `ray start --head`, or give the HOST:PORT of one, "
            "or `local`."
        ) from cause


def _require_reachable(address: str) -> None:
    """Raise an error if no server listens at the address; Ray itself would retry for ever."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError(f"address={address!r} is neither `auto` nor `local` nor HOST:PORT.")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as cause:
        raise ConnectionError(f"no Ray cluster answers at {address}: {cause}.") from cause
