"""Files of results: whole or absent, and refused if a bit has changed."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from corelens import Head, HeadScores, HeadSet
from corelens.experiments.run_folder import RunFolder, Shard, read_summary, write_summary
from corelens.files import BLANK, parse_json, read_checked, with_checksum, write_file
from corelens.head_formats import save_head_score_list, to_parquet
from corelens.sparse.plan import hybrid

SCORES = HeadScores(torch.arange(8.0).reshape(2, 2, 2), "ram", ("a", "b"))


def run_folder(folder: Path) -> RunFolder:
    manifest = {"work": "scan", "model": "m", "samples": 2, "samples a part": 1}
    with RunFolder.open(folder, manifest) as run:
        for number in range(2):
            run.write(number, Shard((f"s{number}",), ("",), {"ram": torch.full((1, 4), float(number))}))
    return run


def part(folder: Path) -> tuple[Path, Callable[[], object]]:
    run = run_folder(folder / "run")
    return run.path(0), lambda: run.read(0)


def manifest(folder: Path) -> tuple[Path, Callable[[], object]]:
    run_folder(folder / "run")
    return folder / "run" / "manifest.json", lambda: RunFolder.load(folder / "run")


def summary(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = folder / "sweep.json"
    write_summary(path, {"model": "m", "drop": 0.25})
    return path, lambda: read_summary(path)


def scores(folder: Path) -> tuple[Path, Callable[[], object]]:
    SCORES.save(path := folder / "ram.safetensors")
    return path, lambda: HeadScores.load(path)


STORED = {"a part": part, "a manifest": manifest, "a summary": summary, "scores": scores}
"""Everything that a run writes and another command reads: its file, and the function that reads it."""


@pytest.mark.parametrize("what", STORED)
def test_flipped_bits_and_cuts_are_refused_by_name(
    what: str, tmp_path: Path, record_property: Callable[[str, object], None]
):
    path, read = STORED[what](tmp_path)
    whole = path.read_bytes()
    read()
    places = [len(whole) * part // 300 for part in range(300)]
    harmed = [
        *(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in places),
        *(whole[:length] for length in places[::20]),
        whole.replace(b"sha256:", b"sha512:"),
    ]
    record_property("tries", len(harmed))
    for content in harmed:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name if what != "a manifest" else r"manifest\.json|no run"):
            read()
    path.write_bytes(whole)
    read()


def test_parts_and_summaries_of_other_places_and_runs_are_refused(tmp_path: Path):
    run, other = run_folder(tmp_path / "run"), tmp_path / "other"
    with RunFolder.open(other, {**run.manifest, "weights": "another"}) as another:
        another.write(0, Shard(("s0",), ("",), {"ram": torch.ones(1, 4)}))
    first = run.path(0).read_bytes()
    run.path(1).write_bytes(first)
    with pytest.raises(ValueError, match=r"is not part 1 of this run, but of another\. Delete it"):
        run.read(1)
    run.path(0).write_bytes(another.path(0).read_bytes())
    with pytest.raises(ValueError, match="is not part 0 of this run"):
        run.read(0)
    write_summary(other / "sweep.json", {"model": "m"})
    (run.folder / "sweep.json").write_bytes((other / "sweep.json").read_bytes())
    with pytest.raises(ValueError, match="is of another run than its folder"):
        read_summary(run.folder / "sweep.json")


def test_a_checksum_needs_its_place_and_is_checked_as_text():
    with pytest.raises(ValueError, match="no place for its checksum"):
        with_checksum(b"{}")
    assert BLANK.encode() not in with_checksum(f'{{"checksum": "{BLANK}"}}'.encode())
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


WRITERS: dict[str, Callable[[Path], object]] = {
    "x.txt": lambda path: write_file(path, "text"),
    "scores.safetensors": SCORES.save,
    "scores.csv": SCORES.to_csv,
    "scores.parquet": lambda path: to_parquet([SCORES], path),
    "list.json": lambda path: save_head_score_list(SCORES, path),
    "heads.json": HeadSet((Head(0, 1),)).save,
    "plan.json": hybrid(HeadSet((Head(0, 1),))).save,
    "summary.json": lambda path: write_summary(path, {}),
}
"""Everything that corelens writes, by the name of the file."""


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_what_was_there_and_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / name
    path.write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("corelens.files.os.fsync", full)
    with pytest.raises(OSError, match=r"could not be written: No space left on device\. .*make room") as raised:
        WRITERS[name](path)
    assert raised.value.errno == errno.ENOSPC
    assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"before"
    monkeypatch.undo()
    WRITERS[name](path)
    assert path.read_bytes() != b"before"


def test_what_is_read_is_what_was_written(tmp_path: Path):
    write_file(tmp_path / "x", with_checksum(f"a {BLANK} b".encode()))
    assert read_checked(tmp_path / "x", "").startswith(b"a sha256:")
