"""Scans: data sets, composite metrics, offloaded layers, and finished runs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from corelens import Evidence, HeadScores, HookedMLLM, scan
from corelens.experiments import head_metrics
from corelens.experiments import scan as scan_module
from corelens.experiments.scan import scan_metrics
from corelens.experiments.scan_summary import scan_summary
from corelens.metrics import PRESETS, Metric, localization_heads
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


CONTRASTING = [Metric("lift", normalisation="lift"), *(metric for metric in PRESETS.values() if metric.contrasts)]


@pytest.mark.parametrize("metric", CONTRASTING, ids=lambda metric: metric.name)
def test_evidence_that_is_everything_is_left_out_where_it_is_compared_with_the_rest(vlm: HookedMLLM, metric: Metric):
    whole, boxed = dataclasses.replace(samples(1)[0], evidence=(Evidence(),)), samples(2)[1]
    with pytest.warns(UserWarning, match="1 of 2 samples cannot be measured"):
        found = scan(vlm, [whole, boxed], metric)
    assert found.samples == ("s1",)
    assert f"sample s0: its evidence is all of its visual tokens, and {metric.name} compares" in found.skipped["s0"]


def test_evidence_that_is_everything_is_counted_where_it_is_not_compared(vlm: HookedMLLM, tmp_path: Path):
    whole, boxed = dataclasses.replace(samples(1)[0], evidence=(Evidence(),)), samples(2)[1]
    warning = "the evidence of 1 of 2 samples is all of their visual tokens"
    with pytest.warns(UserWarning, match=warning):
        found = scan_metrics(vlm, [whole, boxed], ["ram", "vision_heads"], out=tmp_path)
    with pytest.warns(UserWarning, match=warning):  # read from the folder
        scan_metrics(vlm, [whole, boxed], ["ram", "vision_heads"], out=tmp_path)
    assert list(found) == ["ram", "vision_heads"]
    torch.testing.assert_close(found["ram"].values[0], found["vision_heads"].values[0])
    assert (found["ram"].values[1] < found["vision_heads"].values[1]).any()


def test_only_means_over_several_samples_have_intervals(vlm: HookedMLLM):
    two, one = scan(vlm, samples(2)), scan(vlm, samples(1))
    for scores, has_interval in ((two, True), (one, False), (two.aggregate("median"), False)):
        assert all((head["interval"] is not None) == has_interval for head in scan_summary(scores)["top"])


def test_one_sample_does_not_decide_relative_attention(vlm: HookedMLLM):
    scores = scan(vlm, samples(3), "relative_attention")
    values = scores.values.clone()
    values[0, 2, 0] = 1e6  # no attention under the generic prompt
    head = dataclasses.replace(scores, values=values).per_head[2, 0]
    assert head <= scores.values[1:, 2, 0].max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("metric", ["write_ram", "answer_ram", "write_norm"])
def test_metrics_that_need_a_w_o_are_refused_before_any_work(metric: str, monkeypatch: pytest.MonkeyPatch):
    """In a model whose layers quantise what they read, and before a sample is prepared."""
    hf_model = tiny.build("qwen3_vl")
    layers: Any = hf_model.get_decoder().layers
    for layer in layers:
        layer.self_attn = torch.ao.quantization.quantize_dynamic(layer.self_attn, {nn.Linear}, dtype=torch.qint8)
    model = HookedMLLM(hf_model, processors.build("qwen3_vl"))
    monkeypatch.setattr(scan_module, "score_batch", lambda *_, **__: pytest.fail("a batch was scored"))
    with pytest.raises(ValueError, match=f"{metric} cannot be computed: the W_O of blocks.0.* has no matrix"):
        scan_metrics(model, samples(2), ["ram", metric])
