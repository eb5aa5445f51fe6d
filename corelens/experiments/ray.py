"""The same scan on many machines: Ray's actors each hold the model, and this process keeps what they find."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from corelens.experiments.head_metrics import AnyMetric
from corelens.experiments.resumable import DatasetSample, Samples, flatten_datasets, model_fingerprint
from corelens.experiments.run_folder import Shard
from corelens.experiments.scan import ScanConfig, scan_config, scan_part, scan_parts
from corelens.model import HookedMLLM
from corelens.scores import HeadScores


def scan_on_ray(
    load: Callable[[], HookedMLLM],
    samples: Samples,
    measures: Sequence[AnyMetric] = ("ram", "write_ram"),
    *,
    address: str = "auto",
    actors: int = 2,
    gpus: int | None = None,
    out: str | PathLike[str] | None = None,
    **choices: Any,
) -> dict[str, HeadScores]:
    """What `scan_metrics` returns, from models on several machines.

    The model is loaded once to say what it is, then once in every actor, which takes one part of the samples after
    another. Finished parts come back to this process, which alone writes to `out`, so that the machines need no common
    file system for it; a scan that was begun with `scan_metrics` goes on here, and the other way round. What an actor was
    doing when it or its machine died is done again, as often as it takes.

    Args:
        load: Makes the model, in the actor: `partial(HookedMLLM.from_pretrained, "owner/name", dtype="bfloat16")`.
        samples: As for `scan_metrics`. Pictures and arrays travel; paths must hold the same files on every machine, and
            functions must work there. A file that only this machine has is an error; one that no machine has leaves
            its sample out.
        measures: As for `scan_metrics`.
        address: `auto` for the Ray cluster that this machine belongs to, `local` for one on this machine that ends
            with the scan, or HOST:PORT. A program that has called `ray.init` itself keeps its connection.
        actors: Most models at a time; fewer, while the cluster has no room for more.
        gpus: GPUs of each actor; None for one if the cluster has any. More are for a model that one cannot hold, on
            which `load` spreads it with `device_map="auto"`.
        out: As for `scan_metrics`.
        choices: The others of `scan_metrics`.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address.
        ValueError: If no machine of the cluster has so many GPUs; or as from `scan_metrics`.
        RuntimeError: If the machines do not make the same model of `load`; or as from `scan_metrics`.
        FileNotFoundError: If a machine misses a file that this one has.
        TypeError: If a sample cannot travel, since it holds a generator, say.
    """
    if actors < 1:
        raise ValueError(f"actors={actors} is less than one.")
    made = scan_config(measures, **choices)
    every = flatten_datasets(samples)
    with _connect_to_ray(address) as ray:
        most = int(max(machine["Resources"].get("GPU", 0) for machine in ray.nodes() if machine["Alive"]))
        needed = min(1, most) if gpus is None else gpus
        if not 0 <= needed <= most:
            raise ValueError(f"gpus={needed}, but the machines of the cluster have at most {most}.")
        # In a process of its own that ends, since it holds GPUs.
        model = ray.get(ray.remote(num_gpus=needed, max_calls=1)(lambda: model_fingerprint(load())).remote())

        def there(missing: Mapping[int, DatasetSample]) -> Iterator[tuple[int, Shard]]:
            if not missing:
                return
            rows = [
                {"number": number, "samples": own, "files": [str(path) for path in _paths(own) if path.is_file()]}
                for number, own in missing.items()
            ]
            settings = ray.data.DataContext.get_current().copy()
            settings.enable_progress_bars = False
            settings.enable_fallback_to_arrow_object_ext_type = True  # samples are Python's objects
            settings.raise_original_map_exception = True
            with ray.data.DataContext.current(settings):
                try:
                    # A block for each part, so that each comes back as soon as it is finished.
                    parts = ray.data.from_items(rows, override_num_blocks=len(rows))
                except TypeError as cause:
                    raise TypeError(f"a sample cannot travel to other machines: {cause}.") from cause
                found = parts.map(
                    _Scanner,
                    fn_constructor_args=(load, model, made),
                    compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows))),
                    num_gpus=needed,
                )
            for row in found.iter_rows():
                yield row["number"], row["part"]

        return scan_parts(every, measures, made, model, out, there)


@dataclass
class _Scanner:
    """What measures one part after another, in an actor."""

    load: Callable[[], HookedMLLM]
    expected: Mapping[str, Any]
    choices: ScanConfig

    @cached_property
    def model(self) -> HookedMLLM:
        """Loaded with the first part: Ray hands on the errors of tasks, and tries again when an actor cannot begin."""
        model = self.load()
        found = model_fingerprint(model)
        # Its path may be another; what it is may not.
        differing = [name for name in found if name != "model" and found[name] != self.expected[name]]
        if differing:
            said = "; ".join(f"{name} {found[name]!r}, not {self.expected[name]!r}" for name in differing)
            raise RuntimeError(f"{socket.gethostname()} makes another model than the first: {said}.")
        return model

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if lost := [path for path in row["files"] if not Path(path).is_file()]:
            raise FileNotFoundError(
                f"{socket.gethostname()} has no file {lost[0]!r}, which the machine that began the scan has; copy it "
                f"there, or put the pictures themselves into the samples."
            )
        return {"number": row["number"], "part": scan_part(self.model, row["samples"], self.choices)}


def _paths(samples: DatasetSample) -> Iterator[Path]:
    for _, sample in samples:
        yield from (Path(one) for one in (*sample.images, *sample.videos) if isinstance(one, str | PathLike))


@contextmanager
def _connect_to_ray(address: str) -> Iterator[Any]:
    """Ray, connected until the block ends."""
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as cause:
        raise ImportError("this needs Ray, which is not installed: pip install 'corelens[cluster]'.") from cause
    mine = not ray.is_initialized()
    if mine:
        _connect(ray, address)
    try:
        yield ray
    except ray.exceptions.RayTaskError as failed:
        raise failed.cause from failed
    except ray.exceptions.RayError as failed:
        raise RuntimeError(f"Ray gave up: {failed}") from failed
    finally:
        if mine:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    if address not in ("auto", "local"):
        _require_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster begun here reports to nobody
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as cause:
        raise ConnectionError(
            "this machine belongs to no Ray cluster: start one with `ray start --head`, or give the HOST:PORT of one, "
            "or `local`."
        ) from cause


def _require_reachable(address: str) -> None:
    """Ray itself would try for ever."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError(f"address={address!r} is neither `auto` nor `local` nor HOST:PORT.")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as cause:
        raise ConnectionError(f"no Ray cluster answers at {address}: {cause}.") from cause
