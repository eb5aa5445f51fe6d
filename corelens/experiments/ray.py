"""Experiments on a Ray cluster: actors hold the model and evaluate shards, and this process alone writes them."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from corelens.experiments.fingerprint import model_fingerprint
from corelens.experiments.remote import DatasetSamples, Evaluate, Evaluator, Result, ShardFunction
from corelens.experiments.run_folder import Shard
from corelens.model import HookedMLLM


@dataclass(frozen=True)
class RayModel:
    """A model that actors on several machines hold, which takes the place of a model in experiments over many samples.

    `scan_metrics`, `scan_key_tokens`, `run_sweep`, `run_ablation`, `run_sparse_eval` and `run_study` take it. The model
    is loaded once in a process of its own, for checks and its fingerprint, and then in every actor, which evaluates one
    shard after another. Finished shards come back to this process, which alone writes, so that the machines need no
    common file system for it; a run that was begun with a model in this process can be resumed on a cluster, and the
    other way round. The shard of an actor that died, or whose machine did, is evaluated again, as often as it takes.

    Pictures and arrays of samples travel; paths must hold the same files on every machine, and functions must work
    there. A file that only this machine has is an error; a sample whose file no machine has is skipped.

    Raises:
        ValueError: If `actors` is less than one; in use, if no machine of the cluster has so many GPUs.
        ImportError: In use, if Ray is not installed.
        ConnectionError: In use, if there is no cluster at the address.
        RuntimeError: In use, if `load` returns different models on the machines.
        FileNotFoundError: In use, if a machine lacks a file that this one has.
        TypeError: In use, if a sample cannot travel, because it holds a generator, say.
    """

    load: Callable[[], HookedMLLM]
    """Loads the model, in the actor: `partial(HookedMLLM.from_pretrained, "owner/name", dtype="bfloat16")`."""

    address: str = "auto"
    """`auto` for the Ray cluster that this machine belongs to, `local` for one on this machine that ends with each use,
    or HOST:PORT. A program that has called `ray.init` itself keeps its connection."""

    actors: int = 2
    """Most models at a time; fewer, while the cluster has no room for more."""

    gpus: int | None = None
    """GPUs of each actor; None for one if the cluster has any. More are for a model that one cannot hold, on which
    `load` spreads it with `device_map="auto"`."""

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise ValueError(f"actors={self.actors} is less than one.")

    def call(self, function: Callable[[HookedMLLM], Result]) -> Result:
        """Load the model in a process of its own, and return what a function of it returns."""
        with connect_to_ray(self.address) as ray:
            # A process that ends, since it holds GPUs.
            task = ray.remote(num_gpus=self._n_gpus(ray), max_calls=1)(_call_on_loaded)
            return ray.get(task.remote(self.load, function))

    def changed(self, function: Callable[[HookedMLLM], HookedMLLM]) -> "RayModel":
        """The model that a function of this one returns, made in each actor."""
        return replace(self, load=_Changed(self.load, function))

    def map_shards(
        self,
        evaluator: Evaluator,
        function: ShardFunction,
        shard_samples: Mapping[int, DatasetSamples],
        fingerprint: Mapping[str, Any],
    ) -> Iterator[tuple[int, Shard]]:
        """Evaluate shards in actors, and yield each as soon as it is finished.

        Args:
            evaluator: Returns the function that evaluates a batch, once in every actor.
            function: Evaluates the samples of a shard with it.
            shard_samples: Samples by number of the shard.
            fingerprint: That of the model, which every actor compares with its own.
        """
        if not shard_samples:
            return
        rows = [
            {"number": number, "samples": samples, "files": [str(path) for path in _paths(samples) if path.is_file()]}
            for number, samples in shard_samples.items()
        ]
        with connect_to_ray(self.address) as ray:
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
                    ShardActor,
                    fn_constructor_args=(self.load, evaluator, function, fingerprint),
                    compute=ray.data.ActorPoolStrategy(size=min(self.actors, len(rows))),
                    num_gpus=self._n_gpus(ray),
                )
            for row in results.iter_rows():
                yield row["number"], row["shard"]

    def _n_gpus(self, ray: Any) -> int:
        most = int(max(machine["Resources"].get("GPU", 0) for machine in ray.nodes() if machine["Alive"]))
        n_gpus = min(1, most) if self.gpus is None else self.gpus
        if not 0 <= n_gpus <= most:
            raise ValueError(f"gpus={n_gpus}, but the machines of the cluster have at most {most}.")
        return n_gpus


def _call_on_loaded(load: Callable[[], HookedMLLM], function: Callable[[HookedMLLM], Result]) -> Result:
    return function(load())


@dataclass(frozen=True)
class _Changed:
    """Loads a model and changes it."""

    load: Callable[[], HookedMLLM]
    function: Callable[[HookedMLLM], HookedMLLM]

    def __call__(self) -> HookedMLLM:
        return self.function(self.load())


@dataclass
class ShardActor:
    """Actor that loads the model with its first shard, and evaluates one shard after another."""

    load: Callable[[], HookedMLLM]
    evaluator: Evaluator
    function: ShardFunction
    fingerprint: Mapping[str, Any]

    @cached_property
    def evaluate(self) -> Evaluate:
        """Evaluates a batch; made with the first shard, since Ray re-raises errors of tasks, but retries actors."""
        model = self.load()
        fingerprint = model_fingerprint(model, whole=True)
        # Machines may load it from different paths, but it must be the same model.
        different = [name for name in fingerprint if name != "model" and fingerprint[name] != self.fingerprint[name]]
        if different:
            differences = "; ".join(
                f"{name} {fingerprint[name]!r}, not {self.fingerprint[name]!r}" for name in different
            )
            raise RuntimeError(f"{socket.gethostname()} loads another model than the first machine: {differences}.")
        return self.evaluator(model)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if missing := [path for path in row["files"] if not Path(path).is_file()]:
            raise FileNotFoundError(
                f"{socket.gethostname()} has no file {missing[0]!r}, which the machine that began the run has; copy "
                f"it there, or put the pictures themselves into the samples."
            )
        return {"number": row["number"], "shard": self.function(row["samples"], self.evaluate)}


def _paths(samples: DatasetSamples) -> Iterator[Path]:
    for _, sample in samples:
        yield from (Path(media) for media in (*sample.images, *sample.videos) if isinstance(media, str | PathLike))


@contextmanager
def connect_to_ray(address: str) -> Iterator[Any]:
    """Connect to Ray until the block ends, unless the program is connected already; models keep to its connection."""
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
