"""Run folders: the finished shards of a run on disk, each complete or absent."""

import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from corelens.errors import docs_link, optional_import
from corelens.files import BLANK, parse_json, read_checked, with_checksum, write_file
from corelens.metrics import join_groups
from corelens.scores import HeadScores

MANIFEST = "manifest.json"
"""Name of the file that says what a run stands for."""

WARNINGS = "warnings.json"
"""Name of the file with the warnings that the shell printed."""


@dataclass(frozen=True)
class Shard:
    """Results of a few samples."""

    samples: tuple[str, ...]
    datasets: tuple[str, ...]
    values: Mapping[str, Float[Tensor, "sample _unit"]]
    """By metric or condition, one number per unit: in a scan all heads, layer by layer. Empty if every sample was
    skipped."""

    skipped: dict[str, str] = field(default_factory=dict)
    """Reasons of the samples that were skipped, by id."""

    groups: tuple[str, ...] = ()
    """The group of every sample, such as its picture; empty if each is its own."""

    @classmethod
    def concatenate(cls, shards: Sequence["Shard"]) -> "Shard":
        """Join shards, in order."""
        nonempty = [shard for shard in shards if shard.samples]
        names = nonempty[0].values if nonempty else ()
        return cls(
            tuple(sample for shard in nonempty for sample in shard.samples),
            tuple(dataset for shard in nonempty for dataset in shard.datasets),
            {name: torch.cat([shard.values[name] for shard in nonempty]) for name in names},
            {sample: reason for shard in shards for sample, reason in shard.skipped.items()},
            join_groups((shard.samples, shard.groups) for shard in nonempty),
        )


@dataclass(frozen=True)
class RunFolder:
    """A run folder: `manifest.json`, and `parts/00000.parquet` and so on, each whole or absent.

    A shard is a table with the columns `sample`, `dataset`, `skipped` (the reason, or null) and one per metric or
    condition: a list of its numbers for all units, null for skipped samples. Where several samples share a picture,
    document or video, its name is in the column `group`. Its metadata name the manifest that it was measured under, its
    number, and the checksum of its bytes: shards that were changed, moved or copied from other runs are refused.
    """

    folder: Path
    manifest: Mapping[str, Any]

    def path(self, number: int) -> Path:
        return self.folder / "parts" / f"{number:05d}.parquet"

    def read(self, number: int) -> Shard | None:
        """Load a finished shard; None if it is not there yet.

        Raises:
            ValueError: If it has changed since it was written, or is another shard or of another run.
        """
        with optional_import("app"):
            from pyarrow import parquet

        if not self.path(number).exists():
            return None
        way_out = "Delete it: the command that began the run then measures it anew."
        table = parquet.ParquetFile(BytesIO(read_checked(self.path(number), way_out)))
        identity = parse_json((table.metadata.metadata or {}).get(b"corelens", b"{}"))
        if {**identity, "checksum": BLANK} != self._identity(number):
            raise ValueError(
                f"{self.path(number)} is not part {number} of this run, but of another. {way_out} "
                f"{docs_link('damaged')}"
            )
        return _shard(table.read())

    def _identity(self, number: int) -> dict[str, Any]:
        """Metadata of a shard: the run it belongs to, its number, and the place of its checksum."""
        return {"run": manifest_hash(self.manifest), "part": number, "checksum": BLANK}

    def write(self, number: int, shard: Shard) -> None:
        """Write a finished shard."""
        with optional_import("app"):
            import pyarrow as pa
            from pyarrow import parquet

        nulls = [None] * len(shard.skipped)
        columns = {
            "sample": pa.array([*shard.samples, *shard.skipped]),
            "dataset": pa.array([*shard.datasets, *nulls], pa.string()),
            "skipped": pa.array([*[None] * len(shard.samples), *shard.skipped.values()], pa.string()),
        }
        if shard.groups:
            columns["group"] = pa.array([*shard.groups, *nulls], pa.string())
        for name, values in shard.values.items():
            columns[name] = pa.array([*values.tolist(), *nulls], pa.list_(pa.float32()))
        table, content = pa.table(columns), BytesIO()
        with parquet.ParquetWriter(content, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"corelens": json.dumps(self._identity(number))})
        write_file(self.path(number), with_checksum(content.getvalue()))

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "RunFolder":
        """Open a finished run to read from.

        Raises:
            ValueError: If there is no such folder, it holds no run, or some of its shards are missing.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"there is no run {folder}.")
        if (folder / "scan" / MANIFEST).is_file():
            raise ValueError(f"{folder} is a study, which is several runs; take one of them, as {folder / 'scan'}.")
        manifest = read_manifest(folder, "samples", "samples a part")
        run = cls(folder, manifest)
        if missing := sum(not run.path(number).exists() for number in range(run.n_shards)):
            raise ValueError(
                f"{folder} is unfinished: {missing} of its {run.n_shards} parts are missing. The command that began it "
                f"resumes it."
            )
        return run

    @property
    def n_shards(self) -> int:
        """Number of shards of the finished run."""
        return -(-self.manifest["samples"] // self.manifest["samples a part"])

    def read_all(self) -> Shard:
        """Load all shards, joined."""
        return Shard.concatenate([shard for number in range(self.n_shards) if (shard := self.read(number))])

    @classmethod
    @contextmanager
    def open(cls, folder: str | PathLike[str], manifest: Mapping[str, Any]) -> Iterator["RunFolder"]:
        """Create a run folder or reopen one with the same manifest; locked for other processes until the block ends.

        Raises:
            ValueError: If the folder holds another run, or something else; the message names the differences.
            RuntimeError: If another process is writing to it.
        """
        run = cls(Path(folder), manifest)
        file = run.folder / MANIFEST
        if run.folder.exists() and not file.exists() and any(run.folder.iterdir()):
            raise ValueError(f"{run.folder} is not empty and holds no run; choose another folder.")
        check_work(run.folder, manifest["work"])
        (run.folder / "parts").mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(run.folder / ".lock", blocking=False):
                if file.exists():
                    _require_same(read_manifest(run.folder), manifest, run.folder)
                else:
                    write_summary(file, manifest)
                yield run
        except Timeout as cause:
            raise RuntimeError(
                f"another process is writing to {run.folder}; wait for it, or choose another."
            ) from cause


def _shard(table: Any) -> Shard:
    """The shard of a table; Any, since pyarrow has no types."""
    reasons = table["skipped"].to_pylist()
    evaluated = table.filter([reason is None for reason in reasons])
    sample_reasons = zip(table["sample"].to_pylist(), reasons, strict=True)
    names = [name for name in table.column_names if name not in ("sample", "dataset", "skipped", "group")]
    return Shard(
        tuple(evaluated["sample"].to_pylist()),
        tuple(evaluated["dataset"].to_pylist()),
        {name: torch.tensor(evaluated[name].to_pylist()) for name in names},
        {sample: reason for sample, reason in sample_reasons if reason is not None},
        tuple(evaluated["group"].to_pylist()) if "group" in evaluated.column_names else (),
    )


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Hash of all that a run stands for: model, weights, settings, processor, samples and choices."""
    as_read = json.loads(json.dumps(manifest))  # tuples become lists, and keys texts
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def run_hashes(folder: Path) -> dict[str, str]:
    """Hash of the manifest of every run in the folder of a study, by the run's name."""
    return {run.parent.name: manifest_hash(read_manifest(run.parent)) for run in sorted(folder.glob(f"*/{MANIFEST}"))}


def write_scores(folder: str | PathLike[str], name: str, scores: HeadScores) -> None:
    """Write scores as `NAME.safetensors`, for `HeadScores.load`, and as `NAME.csv`, a table of the heads."""
    scores.save(Path(folder) / f"{name}.safetensors")
    scores.to_csv(Path(folder) / f"{name}.csv")


def write_summary(path: Path, summary: Mapping[str, Any]) -> str:
    """Write a summary as JSON with a checksum, and with the run whose folder it is in; return the text."""
    of_run = {"of run": _run_of(path)} if _run_of(path) else {}
    content = with_checksum(json.dumps({**summary, **of_run, "checksum": BLANK}, indent=1).encode())
    write_file(path, content)
    return content.decode()


def read_summary(path: Path, *required: str) -> dict[str, Any]:
    """Load the summary that a command writes as JSON when it ends.

    Args:
        path: The file.
        required: Keys that it must have.

    Raises:
        ValueError: If the file is missing, cannot be read, has changed since it was written, is of another run, or
            lacks a key.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing or cannot be read; the command that made the run writes it when it ends.")
    way_out = "Delete it, and run the command that made it again to write it anew."
    summary = parse_json(read_checked(path, way_out))
    if (run := _run_of(path)) and summary.pop("of run", None) not in (None, run):
        raise ValueError(f"{path} is of another run than its folder. {way_out} {docs_link('damaged')}")
    del summary["checksum"]
    if missing := [name for name in required if name not in summary]:
        raise ValueError(f"{path} lacks {missing[0]!r}. {way_out} {docs_link('damaged')}")
    return summary


def _run_of(path: Path) -> str | None:
    """Hash of the manifest that lies beside a file; None if there is none, as in the folder of a study."""
    is_beside = path.name != MANIFEST and (path.parent / MANIFEST).is_file()
    return manifest_hash(read_manifest(path.parent)) if is_beside else None


def add_warnings(folder: Path, messages: Sequence[str]) -> None:
    """Add to the warnings of a run, each once, for its report; a folder without a run gets none."""
    if not any(folder.rglob(MANIFEST)):
        return
    kept = read_warnings(folder)
    if new := [message for message in dict.fromkeys(messages) if message not in kept]:
        write_summary(folder / WARNINGS, {"warnings": [*kept, *new]})


def read_warnings(folder: Path) -> list[str]:
    """Warnings of the commands that filled a folder."""
    return read_summary(folder / WARNINGS, "warnings")["warnings"] if (folder / WARNINGS).is_file() else []


def check_work(folder: Path, work: str) -> None:
    """Raise a ValueError if a folder holds a run of another command."""
    if (folder / MANIFEST).exists() and (other := read_manifest(folder)["work"]) != work:
        raise ValueError(
            f"{folder} holds a run of corelens {other}, not of {work}. Choose another folder. {docs_link('other-run')}"
        )


def read_manifest(folder: Path, *required: str) -> dict[str, Any]:
    """Load the manifest of a run.

    Raises:
        ValueError: If the folder has none, one that lacks a key, or one that has changed or is of an older corelens.
    """
    file = folder / MANIFEST
    try:
        manifest = parse_json(file.read_bytes())
    except (OSError, ValueError):
        manifest = None
    if not (isinstance(manifest, dict) and {"work", *required} <= manifest.keys()):
        raise ValueError(f"{folder} holds no run of corelens: it has no manifest.json of one.")
    read_checked(file, "What its parts are of cannot be known: choose another folder.")
    return {name: value for name, value in manifest.items() if name != "checksum"}


def _require_same(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    # As JSON keeps it: tuples become lists.
    if differences := list(_differences(old, json.loads(json.dumps(new)))):
        more = [f"and {len(differences) - 6} more"] if len(differences) > 6 else []
        raise ValueError(
            f"{folder} holds another run: {'; '.join([*differences[:6], *more])}. Choose another folder, or make the "
            f"same choices. {docs_link('other-run')}"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Values that differ, each with the keys that lead to it."""
    for name in dict.fromkeys((*old, *new)):
        old_value, new_value = old.get(name), new.get(name)
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            yield from _differences(old_value, new_value, f"{path}{name}.")
        elif old_value != new_value:
            yield f"{path}{name} was {reprlib.repr(old_value)} and is {reprlib.repr(new_value)}"
