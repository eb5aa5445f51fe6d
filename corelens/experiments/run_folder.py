"""Run folders: the finished parts of long work on disk, each complete or absent."""

import json
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from corelens.errors import docs_link, optional_import


@dataclass(frozen=True)
class Shard:
    """What was measured on a few samples."""

    samples: tuple[str, ...]
    datasets: tuple[str, ...]
    values: Mapping[str, Float[Tensor, "sample _unit"]]
    """By measure, of every unit: all heads, layer by layer, in a scan. No measure if no sample could be measured."""

    skipped: dict[str, str] = field(default_factory=dict)
    """Samples that could not be measured, by id, and why."""

    @classmethod
    def concatenate(cls, parts: Sequence["Shard"]) -> "Shard":
        """Several parts as one."""
        measured = [part for part in parts if part.samples]
        return cls(
            tuple(sample for part in measured for sample in part.samples),
            tuple(dataset for part in measured for dataset in part.datasets),
            {name: torch.cat([part.values[name] for part in measured]) for name in measured[0].values}
            if measured
            else {},
            {sample: why for part in parts for sample, why in part.skipped.items()},
        )


@dataclass(frozen=True)
class RunFolder:
    """A run folder: `manifest.json`, and `parts/00000.parquet` and so on, written whole or not at all.

    A part is a table with the columns `sample`, `dataset`, `skipped` (the reason, or null) and one per measure: a list
    of its numbers for all units, null for skipped samples.
    """

    folder: Path
    manifest: Mapping[str, Any]

    def path(self, number: int) -> Path:
        return self.folder / "parts" / f"{number:05d}.parquet"

    def read(self, number: int) -> Shard | None:
        """A finished part, or None if it is not there yet."""
        with optional_import("app"):
            from pyarrow import parquet

        if not self.path(number).exists():
            return None
        table = parquet.read_table(self.path(number))
        reasons = table["skipped"].to_pylist()
        measured = table.filter([reason is None for reason in reasons])
        return Shard(
            tuple(measured["sample"].to_pylist()),
            tuple(measured["dataset"].to_pylist()),
            {name: torch.tensor(measured[name].to_pylist()) for name in measured.column_names[3:]},
            {s: why for s, why in zip(table["sample"].to_pylist(), reasons, strict=True) if why is not None},
        )

    def write(self, number: int, part: Shard) -> None:
        """Puts a finished part in its place."""
        with optional_import("app"):
            import pyarrow as pa
            from pyarrow import parquet

        n_left_out = len(part.skipped)
        columns = {
            "sample": pa.array([*part.samples, *part.skipped]),
            "dataset": pa.array([*part.datasets, *[None] * n_left_out], pa.string()),
            "skipped": pa.array([*[None] * len(part.samples), *part.skipped.values()], pa.string()),
        }
        for name, values in part.values.items():
            columns[name] = pa.array([*values.tolist(), *[None] * n_left_out], pa.list_(pa.float32()))
        atomic_write(self.path(number), lambda path: parquet.write_table(pa.table(columns), path))

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "RunFolder":
        """A run folder to read from.

        Raises:
            ValueError: If there is none, it holds no run, or some of its parts are not there yet.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"there is no run {folder}.")
        if (folder / "scan" / "manifest.json").is_file():
            raise ValueError(f"{folder} is a study, which is several runs; take one of them, as {folder / 'scan'}.")
        manifest = _manifest(folder, "samples", "samples a part")
        n_parts = -(-manifest["samples"] // manifest["samples a part"])
        run = cls(folder, manifest)
        if missing := sum(not run.path(number).exists() for number in range(n_parts)):
            raise ValueError(
                f"{folder} is unfinished: {missing} of its {n_parts} parts are missing. The command that began it goes "
                f"on where it ends."
            )
        return run

    def read_all(self) -> Shard:
        """All parts as one."""
        numbers = range(-(-self.manifest["samples"] // self.manifest["samples a part"]))
        return Shard.concatenate([part for number in numbers if (part := self.read(number))])

    @classmethod
    @contextmanager
    def open(cls, folder: str | PathLike[str], manifest: Mapping[str, Any]) -> Iterator["RunFolder"]:
        """A new run folder, or one of the same work; held until the block ends, so that no other process writes to it.

        Raises:
            ValueError: If the folder holds another run, or something else; names the differences.
            RuntimeError: If another process is writing to it.
        """
        run = cls(Path(folder), manifest)
        file = run.folder / "manifest.json"
        if run.folder.exists() and not file.exists() and any(run.folder.iterdir()):
            raise ValueError(f"{run.folder} is not empty and holds no run; choose another folder.")
        check_work(run.folder, manifest["work"])
        (run.folder / "parts").mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(run.folder / ".lock", blocking=False):
                if file.exists():
                    _require_same(_manifest(run.folder), manifest, run.folder)
                else:
                    atomic_write(file, lambda path: path.write_text(json.dumps(manifest, indent=1)))
                yield run
        except Timeout as cause:
            raise RuntimeError(
                f"another process is writing to {run.folder}; wait for it, or choose another."
            ) from cause


def atomic_write(path: Path, write: Any) -> None:
    """Writes a file so that, whenever the process is killed, the whole file is there or none."""
    unfinished = path.with_suffix(".unfinished")
    write(unfinished)
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    unfinished.replace(path)


def read_summary(path: Path, *needed: str) -> dict[str, Any]:
    """What a command writes as JSON when it ends.

    Args:
        path: The file.
        needed: What it must hold.

    Raises:
        ValueError: If it is not there, cannot be read, or lacks something.
    """
    try:
        found = json.loads(path.read_text())
        missing = [name for name in needed if name not in found]
    except (OSError, ValueError, TypeError) as cause:
        raise ValueError(
            f"{path} is not there or cannot be read; the command that made the run writes it when it ends."
        ) from cause
    if missing:
        raise ValueError(f"{path} lacks {missing[0]!r}; the command that made the run writes it anew.")
    return found


def check_work(folder: Path, work: str) -> None:
    """Raises a ValueError if a folder holds a run of other work."""
    if (folder / "manifest.json").exists() and (held := _manifest(folder)["work"]) != work:
        raise ValueError(
            f"{folder} holds a run of corelens {held}, not of {work}. Choose another folder. {docs_link('other-run')}"
        )


def _manifest(folder: Path, *needed: str) -> dict[str, Any]:
    """What a run says of itself; a ValueError if there is none, or it is of something else."""
    try:
        found = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and {"work", *needed} <= found.keys()):
        raise ValueError(f"{folder} holds no run of corelens: it has no manifest.json of one.")
    return found


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    # As JSON keeps it: tuples become lists.
    if differences := list(_differences(before, json.loads(json.dumps(now)))):
        said = [*differences[:6], f"and {len(differences) - 6} more"] if len(differences) > 6 else differences
        raise ValueError(
            f"{folder} holds another run: {'; '.join(said)}. Choose another folder, or make the same choices. "
            f"{docs_link('other-run')}"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Every value that differs, with the names that lead to it."""
    for name in dict.fromkeys((*before, *now)):
        was, is_now = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_now, dict):
            yield from _differences(was, is_now, f"{path}{name}.")
        elif was != is_now:
            yield f"{path}{name} was {reprlib.repr(was)} and is {reprlib.repr(is_now)}"
