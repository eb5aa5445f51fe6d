"""Scans: data sets, composite metrics, offloaded layers, and finished runs."""

import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload

from corelens import HeadScores, HookedMLLM, scan
from corelens.experiments import head_metrics
from corelens.experiments import scan as scan_module
from corelens.experiments.scan import scan_metrics
from corelens.metrics import localization_heads
from tests.helpers import processors, tiny
from tests.helpers.questions import samples


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def vlm(request: pytest.FixtureRequest) -> HookedMLLM:
    """A tiny random model that reads pictures."""
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def test_localization_is_chosen_from_its_two_measures(vlm: HookedMLLM):
    scores = scan_metrics(vlm, samples(), ["localization", "visual_share"])
    assert list(scores) == ["localization", "visual_share"]
    share, entropy = (scan_metrics(vlm, samples(), [name])[name].values for name in ("visual_share", "spatial_entropy"))
    assert torch.equal(scores["localization"].values, localization_heads(share, entropy).float())


def test_layers_may_be_offloaded():
    model = HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    expected = scan(model, samples(2))
    cpu_offload(model.hf_model.model.language_model.layers[1], torch.device("cpu"))
    assert any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(scan(model, samples(2)).values, expected.values)


def test_data_sets_are_kept_apart(vlm: HookedMLLM):
    scores = scan(vlm, {"odd": samples()[1::2], "even": samples()[::2]})
    assert scores.datasets == ("odd", "odd", "even", "even", "even")
    assert scores.for_dataset("even").samples == ("s0", "s2", "s4")


def test_finished_parts_are_read_and_give_the_same_scores(
    vlm: HookedMLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scan_module, "SHARD_SIZE", 2)
    bad = dataclasses.replace(samples(1)[0], id="bad", evidence=())
    everything = {"x": samples(), "y": [bad]}
    with pytest.warns(UserWarning, match="1 of 6 samples cannot be measured"):
        first = scan_metrics(vlm, everything, ["ram", "entropy"], out=tmp_path / "run")
    monkeypatch.setattr(head_metrics, "score_heads", None)
    with pytest.warns(UserWarning, match="1 of 6 samples cannot be measured"):
        again = scan_metrics(vlm, everything, ["ram", "entropy"], out=tmp_path / "run")
    for name in ("ram", "entropy"):
        assert torch.equal(first[name].values, again[name].values)
        assert dataclasses.replace(first[name], values=again[name].values) == again[name]
        assert torch.equal(HeadScores.load(tmp_path / "run" / f"{name}.safetensors").values, first[name].values)
