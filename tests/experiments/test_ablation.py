"""Ablations over many samples: scores of answers, and samples that cannot be scored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import corelens as cl
from corelens import HeadScores, HookedMLLM, ablation_curve, toy
from corelens.data.synthetic.text import plain_text
from corelens.experiments.ablation import run_ablation
from tests.helpers import processors, tiny


def test_answers_that_cannot_be_read_are_wrong_and_counted_apart(toy_model: HookedMLLM, tmp_path: Path):
    scenes = [replace(sample, scoring="numeric") for sample in toy.scenes(8, seed=0)]
    conditions = {"some": [cl.HeadSet.parse("L3H14"), cl.HeadSet.parse("L0H11")]}
    ablated = run_ablation(toy_model, {"x": scenes}, conditions, "mean", "decode", out=tmp_path / "run")
    batches = list(cl.prepare_batches(toy_model, scenes, 8, "prepare"))
    plain = cl.evaluate(toy_model, batches, max_new_tokens=32)
    assert 0 < ablated.unreadable("plain", "x") == 1 - plain.parsed.float().mean().item() < 1
    assert ablated.accuracies("plain", "x") == [plain.accuracy]
    reference = cl.mean_activations(toy_model, scenes)
    for number, heads in enumerate(conditions["some"]):
        hooks = cl.ablate(heads, "mean", reference, phase="decode")
        assert ablated.accuracies("some", "x")[number] == cl.evaluate(toy_model, batches, hooks, 32).accuracy
    before, after = ablated.values["plain"].nan_to_num()[:, 0], ablated.values["some"].nan_to_num().mean(1)
    assert ablated.paired_difference("some", "x").mean == pytest.approx(float((after - before).mean()))


def test_pictures_and_plain_questions_share_a_run():
    model = cl.HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    sets = {"scenes": list(toy.scenes(3, seed=0)), "text": plain_text()[:3]}
    ablated = run_ablation(model, sets, {"one": [cl.HeadSet.parse("L1H2")]}, max_new_tokens=3)
    assert ablated.datasets == ("scenes",) * 3 + ("text",) * 3
    assert ablated.values["one"].shape == (6, 1)
    assert not ablated.skipped


def test_samples_that_no_rule_can_score_are_refused_before_anything_runs(toy_model: HookedMLLM, tmp_path: Path):
    (sample,) = toy.scenes(1, seed=0)
    with pytest.raises(ValueError, match="is scored by 'taste'; the rules of corelens are"):
        run_ablation(toy_model, [replace(sample, scoring="taste")], {}, out=tmp_path / "run")
    with pytest.raises(ValueError, match="asks for a box: state the unit of the model's boxes, by box_unit="):
        run_ablation(toy_model, [replace(sample, scoring="box")], {}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # The toy says no boxes.
    assert run_ablation(toy_model, [replace(sample, scoring="box")], {}, box_unit="pixels").unreadable("plain", "") == 1


def test_a_dose_curve_measures_every_set_of_heads():
    values = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    scores = HeadScores(values, "something", ("a", "b", "c"))
    curve = ablation_curve(scores, lambda heads: 1 - len(heads) / 20, fractions=(0.1, 0.5, 0.8), seeds=range(3))
    assert_close(curve.mean("top"), [0.9, 0.5, 0.2])
    assert curve.sd("random")[:2] == [0.0, 0.0]
    assert [len(sets) for sets in curve.heads["random"]] == [3, 3, 0]
    assert [len(sets) for sets in curve.heads["next-ranked"]] == [1, 1, 0]
    assert np.isnan(curve.mean("next-ranked")[2])
    assert curve.heads["top"][0][0].heads == tuple(scores.ranked()[:2])
    with pytest.raises(ValueError, match=r"fraction=0\.0 is outside"):
        ablation_curve(scores, lambda heads: 1 / 0, fractions=(0.1, 0.0))
