"""Sweeps over many samples: reference activations, and skipped samples."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from torch.testing import assert_close

import corelens as cl
from corelens import HookedMLLM, toy
from corelens.experiments.ablation import ReferenceMethod
from corelens.experiments.sweep import run_sweep


@pytest.mark.parametrize("method", ["mean", "resample"])
def test_groups_are_swept_with_what_the_samples_put_in_their_place(
    toy_model: HookedMLLM, method: ReferenceMethod, tmp_path: Path
):
    samples = list(toy.scenes(5, seed=0))
    reference = {"mean": cl.mean_activations, "resample": cl.resample_activations}[method](toy_model, samples)
    expected = cl.sweep(
        toy_model,
        samples,
        partial(cl.ablate, method=method, reference=reference, positions="from_question"),
        per="group",
    )
    swept = run_sweep(toy_model, samples, method, "group", tmp_path / "run")
    assert [str(unit) for unit in swept.units] == [str(unit) for unit in expected.units]
    assert_close(swept.drop, expected.drop, atol=1e-5, rtol=1e-4)
    assert not (tmp_path / "run" / "sweep.safetensors").exists()


def test_samples_that_cannot_be_swept_are_left_out_with_their_reason(toy_model: HookedMLLM, tmp_path: Path):
    first, second, third = toy.scenes(3, seed=0)
    mixed = [replace(first, images=(tmp_path / "nowhere.png",)), second, replace(third, answer="")]
    for _ in range(2):  # the second time from the folder
        with pytest.warns(UserWarning, match="2 of 3 samples cannot be measured"):
            swept = run_sweep(toy_model, mixed, per="layer", out=tmp_path / "run")
        assert swept.samples == (second.id,)
        assert "there is no picture file" in swept.skipped[first.id]
        assert "has no token" in swept.skipped[third.id]
        assert_close(swept.values, run_sweep(toy_model, [second], per="layer").values)
