"""Run folders: shards on disk, and errors of folders that hold something else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from corelens import HookedMLLM, scan
from corelens.experiments.run_folder import RunFolder, Shard
from corelens.experiments.scan import scan_metrics
from tests.helpers import processors, tiny
from tests.helpers.questions import samples


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def vlm(request: pytest.FixtureRequest) -> HookedMLLM:
    """A tiny random model that reads pictures."""
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def test_folders_refuse_other_scans_and_other_writers(vlm: HookedMLLM, tmp_path: Path):
    folder = tmp_path / "run"
    scan(vlm, samples(), out=folder)
    with pytest.raises(ValueError, match=r"holds another run: rule was 'overlap' and is 'centre'\. Choose"):
        scan(vlm, samples(), rule="centre", out=folder)
    with pytest.raises(
        ValueError, match=r"run: measures\.vera was None and is \{'aggregation': 'mean', .*, \.\.\.\}\. Choose"
    ):
        scan_metrics(vlm, samples(), ["ram", "vera"], out=folder)
    with pytest.raises(ValueError, match=r"holds another run: samples was 5 and is 4; samples sha256 was"):
        scan(vlm, samples(4), out=folder)
    many = {str(number): "x" * 64 for number in range(9)}
    with RunFolder.open(tmp_path / "many", {"work": "scan"} | many):
        pass
    with (
        pytest.raises(ValueError, match=r"and 3 more\. Choose another folder") as refused,
        RunFolder.open(tmp_path / "many", {"work": "scan"} | dict.fromkeys(many, "y" * 64)),
    ):
        pass
    assert len(str(refused.value)) < 800
    with (
        pytest.raises(ValueError, match="holds a run of corelens scan, not of sweep"),
        RunFolder.open(tmp_path / "many", {"work": "sweep"}),
    ):
        pass
    with (
        RunFolder.open(tmp_path / "held", {"work": "scan"}),
        pytest.raises(RuntimeError, match="another process is writing"),
        RunFolder.open(tmp_path / "held", {"work": "scan"}),
    ):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        scan(vlm, samples(), out=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_parts_without_a_measured_sample_are_kept(tmp_path: Path):
    empty = Shard((), (), {}, {"a": "it is gone"})
    full = Shard(("b",), ("x",), {"drop": torch.tensor([[1.5, float("nan")]])})
    with RunFolder.open(tmp_path / "run", {"work": "sweep"}) as run:
        for number, part in enumerate((empty, full)):
            run.write(number, part)
        assert run.read(0) == empty
        again = run.read(1)
        assert again is not None
    grouped = replace(full, groups=("a picture",))
    run.write(2, grouped)
    found = run.read(2)
    assert found is not None
    assert (found.groups, list(found.values)) == (("a picture",), ["drop"])
    assert Shard.concatenate([again, found]).groups == ("b", "a picture")
    assert_close(again.values["drop"], full.values["drop"], equal_nan=True)
    joined = Shard.concatenate([empty, again])
    assert (joined.samples, joined.datasets, joined.skipped) == (("b",), ("x",), {"a": "it is gone"})
