"""Prefixes, sessions and sweeps against whole passes, one for each intervention."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.testing import assert_close

import corelens as cl
from corelens import HeadScores, HeadSet, HookedMLLM, Role, Session, ablation_curve, append_answers, causal, sweep, toy
from corelens.causal import PairedDifference
from corelens.causal import session as sessions
from corelens.inputs.prepare import PreparedInputs
from tests.helpers import processors, tiny
from tests.helpers.architectures import ARCHITECTURES


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    gemma3 = ARCHITECTURES["gemma3"]
    fitting = {"vision_config": gemma3.config["vision_config"] | {"image_size": 112}, "mm_tokens_per_image": 16}
    with patch.dict(ARCHITECTURES, gemma3=replace(gemma3, config=gemma3.config | fitting)):
        return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def picture(seed: int) -> Image.Image:
    """Of different sizes, so that models whose pictures have as many tokens as pixels pad some."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (96, 112 - 56 * seed, 3), np.uint8))


QUESTIONS = ["Which digit is red?"] * 2
LONG = "What colour is the 7, and what is the digit that is between all others?"


def batch(model: Any, questions: list[str] = QUESTIONS) -> Any:
    return model.prepare([picture(seed) for seed in range(2)], questions)


def answered(model: Any) -> Any:
    return append_answers(model, batch(model), ["seven", "It is blue and red"])


# --- prefixes --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_passes_after_a_prefix_are_whole_passes(model: Any):
    inputs = answered(model)
    prefix = model.prefix(inputs)
    assert prefix.length == int(inputs.tokens.question.any(0).nonzero()[0])
    expected = model(inputs)[:, prefix.length :]
    real = ~inputs.tokens.padding[:, prefix.length :]
    for _ in range(2):
        assert_close(model(inputs, prefix=prefix)[real], expected[real], atol=1e-5, rtol=1e-5)
    for copy in range(3):
        copies = model(inputs, prefix=prefix, times=3)[copy::3]
        assert_close(copies[real], expected[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_generation_after_a_prefix_is_generation(model: Any, way: dict[str, Any]):
    inputs = batch(model)
    prefix = model.prefix(inputs)
    settings = {"max_new_tokens": 6, "do_sample": False} | way
    torch.manual_seed(0)
    expected = model.generate(inputs, **settings)
    for _ in range(2):
        torch.manual_seed(0)
        assert torch.equal(model.generate(inputs, prefix=prefix, **settings), expected)


@torch.no_grad()
def test_other_questions_share_the_prefix(model: Any):
    one = model.prepare(picture(0), QUESTIONS[0])
    other = model.prepare(picture(0), "What colour is the 7, and what else is there?")
    prefix = model.prefix(one)
    model.prefix(model.prepare(picture(1), QUESTIONS[0]))  # some models keep something of their last prompt
    assert_close(model(other, prefix=prefix), model(other)[:, prefix.length :], atol=1e-5, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"the prefix was made of other inputs: `(pixel_values|image_grid_thw|input_ids)`"
    ):
        model(model.prepare(picture(1), QUESTIONS[0]), prefix=prefix)
    with pytest.raises(ValueError, match="the prefix was made of other inputs"):
        model(model.prepare(None, "Which of all these digits is red? Tell me at once, please."), prefix=prefix)
    with pytest.raises(ValueError, match="the prefix was made by another model"):
        type(model)(deepcopy(model.hf_model))(other, prefix=prefix)


@torch.no_grad()
def test_an_intervention_on_a_prefix_that_was_made_without_it(model: Any):
    inputs, hooks = batch(model), cl.ablate([cl.Head(0, 1)])
    prefix = model.prefix(inputs)
    with model.hooks(fwd_hooks=hooks):
        with pytest.raises(ValueError, match="is in a cache that was made without it"):
            model(inputs, prefix=prefix)
        with pytest.raises(ValueError, match="is in a cache that was made without it"):
            model.generate(inputs, prefix=prefix, max_new_tokens=1)
        own = model.prefix(inputs)
        expected = model(inputs)[:, own.length :]
        assert_close(model(inputs, prefix=own), expected, atol=1e-5, rtol=1e-5)


def test_prompts_without_a_prefix(model: Any):
    inputs = batch(model)
    uneven = batch(model, [QUESTIONS[0], LONG])
    with pytest.raises(ValueError, match=r"questions of this batch begin at positions \d+, \d+, since .* one by one"):
        model.prefix(uneven)
    late = batch(model)
    late.tokens.role[:, 1] = int(Role.QUESTION)
    with pytest.raises(ValueError, match="a picture or video stands after position 1, where the first question"):
        model.prefix(late)
    with pytest.raises(ValueError, match=r"these inputs have no token map: say how many positions"):
        model.prefix(dict(inputs))


@torch.no_grad()
def test_questions_of_different_lengths_in_one_batch(model: Any):
    """Without pictures they share what all have before them, be it padding; with pictures, they run whole."""
    text = model.prepare([None, None], ["Which?", LONG])
    model(batch(model))  # some models keep something of their last pictures
    prefix = model.prefix(text)
    real = ~text.tokens.padding[:, prefix.length :]
    assert_close(model(text, prefix=prefix)[real], model(text)[:, prefix.length :][real], atol=1e-5, rtol=1e-5)
    inputs = batch(model, ["Which?", LONG])
    session, hooks = cl.Session(model, inputs), cl.ablate([cl.Head(1, 1)], positions="from_question")
    assert session.prefix is None
    kept = ~inputs.tokens.padding
    expected = model.run_with_hooks(inputs, fwd_hooks=hooks)[kept]
    assert_close(session.logits(hooks)[kept], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mllama", "attends to an encoder: its prompts have no prefix"),
        ("paligemma", "does not compute the same after a prefix as in a whole pass .*: its prompts look ahead"),
        ("blip-2", "cannot continue from a prefix: TypeError"),
    ],
)
def test_models_that_cannot_continue_from_a_prefix_are_refused(name: str, message: str):
    inputs = tiny.batch(name)
    with pytest.raises(ValueError, match=message):
        HookedMLLM(tiny.build(name)).prefix(inputs, inputs["input_ids"].shape[1] - 9)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl", "gemma4", "internvl_gpt_oss", "idefics3"])
def test_hybrids_sinks_and_shared_keys_continue_from_prefixes(name: str):
    model, inputs = HookedMLLM(tiny.build(name)), tiny.batch(name)
    n = inputs["input_ids"].shape[1] - 9
    prefix = model.prefix(inputs, n)
    expected = model(inputs)[:, n:]
    assert_close(model(inputs, prefix=prefix), expected, atol=1e-5, rtol=1e-5)
    assert_close(model(inputs, prefix=prefix, times=2)[1::2], expected, atol=1e-5, rtol=1e-5)


# --- sessions and sweeps ---------------------------------------------------------------------------------------------


def interventions(cl: Any, inputs: Any) -> dict[str, Any]:
    late = inputs.tokens.from_question
    return {
        "zero, late": lambda heads: cl.ablate(heads, positions="from_question"),
        "zero, everywhere": lambda heads: cl.ablate(heads),
        "even, late": lambda heads: cl.ablate(heads, "uniform", positions=late),
        "cut edges": lambda heads: cl.attention_knockout(heads, "from_question", "image"),
        "by hand": lambda heads: [(f"blocks.{layer}.attn.hook_z", partial(halve, head=head)) for layer, head in heads],
    }


def halve(z: torch.Tensor, hook: Any, head: int) -> None:
    z[:, :, head] *= 0.5


@torch.no_grad()
@pytest.mark.parametrize("name", ["zero, late", "zero, everywhere", "even, late", "cut edges", "by hand"])
def test_a_sweep_is_one_pass_for_each_head(model: Any, name: str):
    inputs = answered(model)
    intervention = interventions(cl, inputs)[name]
    swept = cl.sweep(model, inputs, intervention, at_once=5)
    assert swept.values.shape == (2, 12)
    assert [str(unit) for unit in swept.units] == [str(head) for head in model.heads]
    answer = inputs.tokens.answer
    for number, head in enumerate(model.heads):
        logits = model.run_with_hooks(inputs, fwd_hooks=intervention([head]))
        log_probs = logits.log_softmax(-1)
        for sample in range(2):
            expected = sum(
                float(log_probs[sample, position - 1, inputs["input_ids"][sample, position]])
                for position in answer[sample].nonzero().flatten().tolist()
            )
            assert_close(swept.values[sample, number].item(), expected, atol=1e-5, rtol=1e-5)
    assert swept.drop.abs().amax() > 1e-2


@torch.no_grad()
def test_hooks_of_every_kind_pack_and_leave_nothing(model: Any):
    """Interventions of different layers and kinds in one pass, and none at all."""
    inputs = answered(model)
    session = cl.Session(model, inputs)
    kinds = [
        cl.ablate([cl.Head(1, 2), cl.Head(2, 0)], positions="last"),
        cl.attention_knockout([cl.Head(1, 1)], "question", "image"),
        cl.ablate([cl.Head(2, 3)], "zero_query", positions="answer"),
        [],
    ]
    before = {name: sorted(module.__dict__) for name, module in model.hf_model.named_modules()}
    for some in (kinds[:2], kinds):
        for hooks, logits in zip(some, session.logits_of_each(some), strict=True):
            expected = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, session.first :]
            real = ~inputs.tokens.padding[:, session.first :]
            assert_close(logits[real], expected[real], atol=1e-5, rtol=1e-5)
    assert {name: sorted(module.__dict__) for name, module in model.hf_model.named_modules()} == before
    assert not any(point.has_hooks() or point.ctx for point in model.hook_points())


@torch.no_grad()
def test_layers_that_an_intervention_does_not_change_do_not_run(model: Any):
    inputs = answered(model)
    session = cl.Session(model, inputs)
    ran: list[int] = []
    handles = [
        site.attentions["attn"].module.register_forward_pre_hook(lambda *_, layer=site.layer: ran.append(layer))
        for site in model.hf_layers
    ]
    session.logits(cl.ablate([cl.Head(2, 0)], positions="from_question"))
    session.logits(cl.ablate([cl.Head(1, 0)]))
    for handle in handles:
        handle.remove()
    # The second acts in the prompt before the question: once the whole is recorded, then run from layer 1.
    assert ran == [2, 0, 1, 2, 1, 2]


@torch.no_grad()
def test_whole_prompts_of_a_batch_of_one_share_passes(model: Any, monkeypatch: pytest.MonkeyPatch):
    """One pass for each would run the last layer five times more; a hook of unknown kind runs by itself."""
    inputs = cl.append_answers(model, model.prepare([[picture(0), picture(0)]], QUESTIONS[:1]), ["It is blue"])
    kinds = [
        cl.ablate([cl.Head(1, 2)]),
        cl.ablate([cl.Head(2, 1)]),
        cl.attention_knockout([cl.Head(1, 1)], "image", "structural"),
        cl.ablate([cl.Head(0, 3)], "zero_query", positions="image") + cl.ablate([cl.Head(2, 2)]),
        [],
    ]
    by_hand = [("blocks.1.attn.hook_z", partial(halve, head=0))]
    expected = [model.run_with_hooks(inputs, fwd_hooks=hooks) for hooks in (*kinds, by_hand)]
    batches: list[int] = []
    monkeypatch.setattr(sessions, "PACKED", 5 * inputs.shape[1])
    session = cl.Session(model, inputs)
    session.logits_of_each(kinds)
    watch = model.hf_layers[2].block.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    found = session.logits_of_each(kinds) + session.logits_of_each([by_hand, kinds[0]])
    watch.remove()
    assert batches == [5, 1, 1]
    for logits, whole in zip(found, [*expected, expected[0]], strict=True):
        assert_close(logits, whole[:, session.first :], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(sessions, "PACKED", 2 * inputs.shape[1] - 1)
    assert cl.Session(model, inputs)._fitting == 1


@torch.no_grad()
def test_what_does_not_come_in_copies_runs_one_by_one():
    model = cl.HookedMLLM(tiny.build("lighton_ocr"), processors.build("lighton_ocr"))
    inputs = model.prepare(picture(0), QUESTIONS[0])
    session, hooks = cl.Session(model, inputs), cl.ablate([cl.Head(1, 1)])
    assert session._fitting == 1
    expected = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, session.first :]
    assert_close(session.logits_of_each([hooks, hooks])[1], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="times=3 without a prefix needs a batch of one, and this one has 2 samples"):
        model(model.prepare([picture(0)] * 2, QUESTIONS), times=3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma4", "gemma3n", "qwen3_5", "paligemma", "mllama", "idefics"])
def test_sessions_where_layers_share_keys_or_prompts_look_ahead(name: str):
    """What cannot be skipped or shared is run."""
    model, tensors = cl.HookedMLLM(tiny.build(name)), tiny.batch(name, padded=False)
    role = torch.full_like(tensors["input_ids"], int(cl.Role.STRUCTURAL))
    role[:, -9:] = int(cl.Role.QUESTION)
    nowhere, nan = torch.full_like(role, -1), torch.full((*role.shape, 4), torch.nan)
    places = {place: nowhere for place in ("media", "view", "row", "column")}
    tokens = cl.TokenMap(role, **places, overview=nowhere > 0, box=nan, seconds=nan[..., :2], sizes=((), ()))
    inputs = PreparedInputs(tensors, tokens)
    session = cl.Session(model, inputs)
    for positions in ("question", None):
        for head in (model.heads[0], model.heads[-1]):
            hooks = cl.ablate([head], positions=positions)
            expected = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, session.first :]
            assert_close(session.logits_of_each([hooks, hooks])[1], expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_layers_groups_and_sets_of_heads_are_swept(model: Any):
    inputs = answered(model)
    layers, groups = cl.sweep(model, inputs, per="layer"), cl.sweep(model, inputs, per="group")
    assert [str(unit) for unit in layers.units][1] == "L1H0, L1H1, L1H2, L1H3"
    sizes = {len(unit) for unit in groups.units}
    assert sizes == {4 // model.run_with_cache(inputs, names_filter="blocks.0.attn.hook_k")[1]["k", 0].shape[2]}
    sets = cl.sweep(model, inputs, per=[layers.units[2], groups.units[0]])
    assert_close(sets.values, torch.stack([layers.values[:, 2], groups.values[:, 0]], -1), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="units of several heads have no scores"):
        layers.scores()


@torch.no_grad()
def test_a_sweep_over_samples_ranks_heads(toy_model: Any):
    """The heads that fetch the evidence are those whose loss costs most."""
    swept = cl.sweep(toy_model, list(toy.scenes(6, seed=3)), batch_size=4, at_once=8)
    assert swept.samples == tuple(sample.id for sample in toy.scenes(6, seed=3))
    scores = swept.scores()
    assert scores.metric == "drop in log probability"
    assert scores.values.shape == (6, 6, 16)
    assert cl.Head(3, 14) in scores.top(0.05)


# --- effects ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_effects_in_loops(model: Any):
    inputs = answered(model)
    plain = model(inputs)
    other = model.run_with_hooks(inputs, fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x * 0.5)])
    said, before = causal.AnswerLogProbs.of(other, inputs), causal.AnswerLogProbs.of(plain, inputs)
    p, q = plain.softmax(-1), other.softmax(-1)
    for sample in range(2):
        positions = inputs.tokens.answer[sample].nonzero().flatten().tolist()
        ids = inputs["input_ids"][sample]
        assert inputs.tokens.last[sample].nonzero().item() == positions[0] - 1
        divergence = sum(
            float((p[sample, i - 1] * (p[sample, i - 1] / q[sample, i - 1]).log()).sum()) for i in positions
        )
        assert_close(causal.kl_div(said, before)[sample].item(), divergence, atol=1e-3, rtol=1e-3)
        first = other[sample, positions[0] - 1]
        assert causal.rank(said, before)[sample] == 1 + int((first > first[ids[positions[0]]]).sum())
        difference = causal.logit_diff(torch.tensor([5, 6]))(said, before)[sample]
        assert_close(difference, first[ids[positions[0]]] - first[5 + sample], atol=1e-4, rtol=1e-4)
    assert_close(causal.kl_div(before, before), torch.zeros(2))


def test_answers_that_cannot_be_expected(model: Any):
    with pytest.raises(ValueError, match="1 answers were given for 2 prompts"):
        append_answers(model, batch(model), ["seven"])
    with pytest.raises(ValueError, match="the answer '' has no token"):
        append_answers(model, batch(model), ["seven", ""])
    with pytest.raises(ValueError, match="these prompts have no expected answers"):
        sweep(model, batch(model))
    with pytest.raises(ValueError, match="L7H0 does not exist"):
        sweep(model, answered(model), per=[HeadSet.parse("L7H0")])
    assert Session(model, batch(model)).first > 0


# --- answers, statistics, doses --------------------------------------------------------------------------------------


def test_answers_are_right_wrong_or_none(toy_model: Any):
    scenes = list(toy.scenes(4, seed=8))
    batches = list(cl.prepare_batches(toy_model, scenes, 2, "prepare"))
    found = cl.evaluate(toy_model, batches, choices={sample.answer for sample in scenes})
    assert found.scores.tolist() == [
        float(said == sample.answer) for said, sample in zip(found.predictions, scenes, strict=True)
    ]
    assert found.accuracy == found.scores.sum().item() / 4
    everything = cl.ablate(toy_model.heads)
    lost = cl.evaluate(toy_model, batches, everything, choices=["no such answer"])
    assert not lost.parsed.any()
    assert cl.evaluate(toy_model, batches, everything).parsed.all()


def test_paired_differences_and_their_interval():
    rng = np.random.default_rng(0)
    before = torch.from_numpy(rng.normal(size=200))
    shifts = torch.from_numpy(rng.normal(0.3, 1, size=200))
    pair = PairedDifference(before, before + shifts)
    low, high = pair.interval()
    normal = stats.norm.interval(0.95, float(shifts.mean()), float(shifts.std()) / 200**0.5)
    assert_close((low, high), normal, atol=0.03, rtol=0)
    assert_close(pair.p_value(), float(stats.ttest_1samp(shifts, 0).pvalue), atol=2e-3, rtol=0)
    same = PairedDifference(before > 0, before > 0)
    assert (same.mean, same.interval(), same.p_value()) == (0.0, (0.0, 0.0), 1.0)
    with pytest.raises(ValueError, match="at least two samples, and there is 1"):
        PairedDifference(before[:1], before[1:2]).interval()


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
