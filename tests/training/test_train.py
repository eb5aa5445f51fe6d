"""Stages of training, from the first step to the checkpoint."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file

from training import batches, build, run, stages, train
from training.gates import HeadGates


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in a few steps on a few samples."""
    monkeypatch.setattr(run, "SAVE_EVERY", 2)
    monkeypatch.setattr(batches, "IMAGES", 2)
    monkeypatch.setattr(batches, "TEXTS", 2)
    for name, stage in stages.STAGES.items():
        monkeypatch.setitem(stages.STAGES, name, dataclasses.replace(stage, steps=3))


@pytest.mark.nightly
@pytest.mark.usefixtures("short")
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "export", lambda *args: None)
    train.main(tmp_path / "unbroken", until="natural", size="small")

    joint_loss, calls = train.joint_loss, 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return joint_loss(*args)

    monkeypatch.setattr(train, "joint_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(tmp_path / "killed", until="natural", size="small")
    assert json.loads((tmp_path / "killed" / "progress.json").read_text())["step"] == 2
    train.main(tmp_path / "killed", until="natural", size="small")
    ends = [(tmp_path / name / "end-natural.safetensors").read_bytes() for name in ("unbroken", "killed")]
    assert ends[0] == ends[1]


@pytest.mark.nightly
@pytest.mark.usefixtures("short")
def test_every_stage_follows_from_the_one_before_at_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    exported = []
    monkeypatch.setattr(train, "export", lambda run, model: exported.append(run.progress.stage))
    train.main(tmp_path, until="worlds", size="small")
    train.main(tmp_path, until="worlds-organism", size="small")
    assert exported == ["natural", "worlds", "worlds-organism"]
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert list(progress["reached"]) == ["tower", "natural", "reading", "decoding", "worlds", "worlds-organism"]
    assert len(progress["log"]) == 18, "the second call trained only what was left"
    assert "open heads" in progress["reached"]["worlds-organism"]
    logged_shares = {entry["stage"]: {"name", "visual"} & {*entry} for entry in progress["log"]}
    assert {stage for stage, names in logged_shares.items() if "name" in names} == {"tower", "reading", "worlds"}
    assert {stage for stage, names in logged_shares.items() if "visual" not in names} == {"tower", "reading"}
    with pytest.raises(typer.BadParameter, match="contains a run of the size 'small'"):
        train.main(tmp_path, size="middle")
    with pytest.raises(typer.BadParameter, match="'huge' is none of small, middle, large"):
        train.main(tmp_path, size="huge")
    with pytest.raises(typer.BadParameter, match="'end' is none of tower, natural"):
        train.main(tmp_path, until="end")
    sizes = {name: build.model(0, size).num_parameters() / 1e6 for name, size in build.SIZES.items()}
    assert {name: round(millions) for name, millions in sizes.items()} == {"small": 1, "middle": 3, "large": 15}


def test_each_stage_trains_its_own_parameters():
    model, probe = build.model(0, build.SIZES["small"]), torch.nn.Linear(2, 2)
    modules = torch.nn.ModuleDict({"model": model, "probe": probe})
    parts = {
        "tower": model.model.visual.merger.linear_fc2.weight,
        "deepstack": model.model.visual.deepstack_merger_list[0].linear_fc2.weight,
        "decoder": model.lm_head.weight,
        "probe": probe.weight,
    }

    def rates(name: str) -> dict[str, float]:
        muon, adamw = train.optimisers(modules, stages.STAGES[name])
        rate_of_part = {
            part: group["lr"]
            for group in muon.param_groups + adamw.param_groups
            for part, weight in parts.items()
            for parameter in group["params"]
            if parameter is weight
        }
        assert {part for part, weight in parts.items() if weight.requires_grad} == set(rate_of_part)
        return rate_of_part

    assert rates("reading") == {"tower": 8e-3, "probe": 2e-3}
    assert rates("decoding") == {"deepstack": 4e-3, "decoder": 1e-3}
    expected = {"tower": 0.6 * 3e-3, "deepstack": 3e-3, "decoder": 3e-3 / 4, "probe": 3e-3 / 4}
    assert rates("worlds") == pytest.approx(expected)


@pytest.mark.usefixtures("short")
def test_heads_that_were_closed_stay_closed_while_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "export", lambda *args: None)
    model = build.model(0)
    gates = HeadGates(model)
    gates.importance = torch.rand_like(gates.importance)
    gates.close_to(19)
    gates.make_permanent()
    modules = torch.nn.ModuleDict({"model": model, "probe": torch.nn.Linear(128, 51)})
    unfinished = run.Run(tmp_path)
    unfinished.begin("haystack")
    save_file(modules.state_dict(), tmp_path / "end-organism.safetensors")
    tower, unembedding = (w.clone() for w in (model.model.visual.merger.linear_fc2.weight, model.lm_head.weight))
    train.train(unfinished, modules, batches.Batches(), seed=0)
    assert "haystack" in unfinished.progress.reached
    assert torch.equal(HeadGates.of(model).open, gates.open)
    assert torch.equal(model.model.visual.merger.linear_fc2.weight, tower)
    assert not torch.equal(model.lm_head.weight, unembedding)
