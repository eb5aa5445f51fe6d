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
from corelens.experiments.ablation import UniformMethod, dose_conditions, run_ablation
from corelens.experiments.ablation_summary import dose_curve
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


def random_scores() -> HeadScores:
    values = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    return HeadScores(values, "something", ("a", "b", "c"))


def test_a_dose_curve_measures_every_set_of_heads():
    scores = random_scores()
    curve = ablation_curve(scores, lambda heads: 1 - len(heads) / 20, doses=(0.1, 0.5, 0.8), seeds=range(3))
    assert_close(curve.mean("top"), [0.9, 0.5, 0.2])
    assert curve.plain == 1
    assert curve.sd("random")[:2] == [0.0, 0.0]
    assert [len(sets) for sets in curve.heads["random"]] == [3, 3, 0]
    assert [len(sets) for sets in curve.heads["next-ranked"]] == [1, 1, 0]
    assert np.isnan(curve.mean("next-ranked")[2])
    assert curve.heads["top"][0][0].heads == tuple(scores.ranked()[:2])
    by_number = ablation_curve(scores, lambda heads: 1 - len(heads) / 20, doses=(2, 10, 16), seeds=range(3))
    assert by_number.accuracy == curve.accuracy
    assert by_number.heads == curve.heads


@pytest.mark.parametrize(
    ("doses", "message"),
    [
        ((0.1, 0.0), r"fraction=0\.0 is outside"),
        ((5, 0), "n=0 means 0 of 20 heads; it must be between 1 and 20"),
        ((5, 10, 20, 30), "n=30 means 30 of 20 heads"),
        ((0.5, 1.0), "n=1.0 is one head or all of them: write 1 for one, and 20 for all"),
        ((5, 0.1), r"doses=\(5, 0\.1\): give numbers of heads, such as 5, or shares, such as 0\.05, not both"),
        ((), "give numbers of heads"),
    ],
)
def test_doses_that_are_none_raise_before_anything_is_computed(doses: tuple[float | int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        ablation_curve(random_scores(), lambda heads: 1 / 0, doses)
    with pytest.raises(ValueError, match=message):
        dose_conditions(random_scores(), doses)


def test_conditions_of_doses_are_the_controls_of_each():
    scores = random_scores()
    conditions = dose_conditions(scores, (1, 4), range(2))
    assert conditions["top 1"] == [scores.top(1)]
    assert conditions["random 4"] == [scores.random(0, 4), scores.random(1, 4)]
    assert list(conditions)[-1] == "bottom 4"
    assert list(dose_conditions(scores, (0.05, 0.125), [0]))[::5] == ["top 5%", "top 12.5%"]


def test_a_run_over_doses_is_a_curve(toy_model: HookedMLLM):
    scores = cl.scan(toy_model, toy.scenes(4, seed=3))
    run = run_ablation(toy_model, {"x": list(toy.scenes(4, seed=0))}, dose_conditions(scores, (2, 60), [0, 1]))
    curve = dose_curve(run, "x")
    assert curve is not None
    assert curve.doses == (2, 60)
    assert [len(sets) for sets in curve.heads["random"]] == [2, 0]
    assert curve.heads["top"] == [[scores.top(2)], [scores.top(60)]]
    assert curve.accuracy["top"] == [run.accuracies("top 2", "x"), run.accuracies("top 60", "x")]
    assert curve.plain == run.accuracies("plain", "x")[0]
    assert dose_curve(run_ablation(toy_model, toy.scenes(1, seed=0), {"top": [scores.top(2)]}), "") is None


@pytest.mark.parametrize("method", ["uniform", "uniform_all_keys"])
def test_uniform_attention_counts_no_padding_of_the_batch(toy_model: HookedMLLM, method: UniformMethod):
    """The same answers in a batch with padding as one by one."""
    samples = [*toy.scenes(3, seed=0), *toy.texts(3, 0, "sum")]
    heads = {"all of a layer": [cl.HeadSet(tuple(cl.Head(2, head) for head in range(16)))]}
    ablated = run_ablation(toy_model, samples, heads, method)
    one_by_one = run_ablation(toy_model, samples, heads, method, batch_size=1)
    assert_close(ablated.values, one_by_one.values, equal_nan=True)
    for index, sample in enumerate(samples):
        ((_, inputs),) = cl.prepare_batches(toy_model, [sample], 1, "prepare")
        hooks = cl.ablate(heads["all of a layer"][0], method)
        alone = cl.evaluate(toy_model, [([sample], inputs)], hooks, 32)
        value = ablated.values["all of a layer"][index, 0]
        assert value.isnan() == (not alone.parsed)
        assert value.nan_to_num() == alone.scores
