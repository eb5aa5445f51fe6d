"""Patching between two inputs: closed forms, addresses of positions, and pictures that differ."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens import Head, HeadSet, HookedMLLM, Sample, patch, path_patch, row_mask, toy
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions.patching import HeadPoint, StreamPoint
from tests.helpers import processors, tiny
from tests.helpers.prompts import QUESTION, random_picture


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


LONG_QUESTION = "What colour is the 7, and what else is there?"


def two_batches(model: HookedMLLM) -> tuple[PreparedInputs, PreparedInputs]:
    """The same two questions about different pictures; the source is padded to a longer third question."""
    questions = [QUESTION, "Which?"]
    source = model.prepare([random_picture(0), random_picture(1), random_picture(2)], [*questions, LONG_QUESTION])
    columns = {name: column[:2] for name, column in source.tokens.position_tensors().items()}
    source.tokens = replace(source.tokens, **columns, sizes=source.tokens.sizes[:2])
    return source, model.prepare([random_picture(3), random_picture(4)], questions)


@torch.no_grad()
@pytest.mark.parametrize("point", ["resid_post", "z", "k", "v", "q", "attn_out", "mlp_out", "resid_mid", "resid_pre"])
def test_a_patched_activation_is_that_of_the_source_at_the_same_address(
    model: HookedMLLM, point: HeadPoint | StreamPoint
):
    source, target = two_batches(model)
    _, cache = model.run_with_cache(source)
    cache = {name: tensor[:2] for name, tensor in cache.items()}
    by_head = point in get_args(HeadPoint)
    units: dict[str, Any] = {"heads": [Head(1, 1)]} if by_head else {"layers": [1]}
    name = f"blocks.1.attn.hook_{point}" if by_head else f"blocks.1.hook_{point}"
    hooks = patch(cache, source.tokens, target.tokens, point, positions="image", **units)
    _, plain = model.run_with_cache(target)
    with model.hooks(fwd_hooks=hooks):
        _, patched = model.run_with_cache(target)
    part: Callable[[Tensor], Tensor] = (lambda tensor: tensor[:, 1]) if by_head else (lambda tensor: tensor)
    image = target.tokens.image
    assert_close(part(patched[name][image]), part(cache[name][source.tokens.image]), atol=0, rtol=0)
    assert torch.equal(patched[name][~image], plain[name][~image])
    if by_head:
        assert torch.equal(patched[name][image][:, 0], plain[name][image][:, 0])


@torch.no_grad()
def test_a_pass_whose_last_stream_is_patched_answers_for_the_other_random_picture(model: HookedMLLM):
    """Against the source's own logits; with k and v it must also hold in decoding."""
    source, target = (model.prepare(random_picture(seed), QUESTION) for seed in (0, 1))
    logits, cache = model.run_with_cache(source)
    hooks = patch(cache, source.tokens, target.tokens, "resid_post", layers=[2])
    assert_close(model.run_with_hooks(target, fwd_hooks=hooks), logits, atol=1e-5, rtol=1e-5)
    stream_and_keys = patch(cache, source.tokens, target.tokens, "resid_post", layers=[2])
    for point in ("k", "v"):
        heads = [Head(layer, head) for layer in range(3) for head in range(cache[point, 0].shape[2])]
        stream_and_keys += patch(cache, source.tokens, target.tokens, point, heads=heads)
    settings = dict(max_new_tokens=5, do_sample=False)
    with model.hooks(fwd_hooks=stream_and_keys):
        assert torch.equal(model.generate(target, **settings)[:, -5:], model.generate(source, **settings)[:, -5:])


@torch.no_grad()
def test_patched_rows_are_rows_of_the_source(model: HookedMLLM):
    source, target = two_batches(model)
    rows = torch.zeros(3, source["input_ids"].shape[1], dtype=torch.bool)
    rows[:2] = source.tokens.question
    _, cache = model.run_with_cache(source, queries=rows)
    _, full_cache = model.run_with_cache(source)
    real = row_mask(rows[:2])
    cache = {"blocks.2.attn.hook_pattern": cache["pattern", 2][:2, :, : real.shape[1]]}
    heads = [Head(2, 1), Head(2, 3)]
    hooks = patch(cache, source.tokens, target.tokens, "pattern", heads=heads, positions="question")
    with model.hooks(fwd_hooks=hooks):
        _, patched = model.run_with_cache(target)
    for sample in range(2):
        source_keys, target_keys = ~source.tokens.padding[sample], ~target.tokens.padding[sample]
        expected = full_cache["pattern", 2][sample][:, source.tokens.question[sample]][..., source_keys]
        patched_rows = patched["pattern", 2][sample][:, target.tokens.question[sample]][..., target_keys]
        assert_close(patched_rows[[1, 3]], expected[[1, 3]], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(patched_rows[[0, 2]], expected[[0, 2]], atol=1e-3)


@torch.no_grad()
def test_patching_heads_between_two_pictures_moves_the_answer(toy_model: HookedMLLM):
    """The same question about two scenes: the heads that fetch the evidence bring the other scene's answer."""
    by_question: dict[str, list[Sample]] = {}
    for sample in toy.scenes(60, seed=5):
        by_question.setdefault(sample.question, []).append(sample)
    pairs = [
        (samples[0], other)
        for samples in by_question.values()
        for other in samples
        if other.answer != samples[0].answer
    ]
    core = HeadSet.parse("L3H14 L3H0 L2H10 L2H4 L2H6")
    others = HeadSet.parse("L3H1 L3H2 L2H1 L2H2 L2H3")
    n_moved = {core: 0, others: 0}
    for source_sample, target_sample in pairs:
        source, target = (
            toy_model.prepare(list(sample.images), sample.question) for sample in (source_sample, target_sample)
        )
        _, cache = toy_model.run_with_cache(source, names_filter=lambda name: name.endswith("hook_z"))
        for heads in n_moved:
            with toy_model.hooks(fwd_hooks=patch(cache, source.tokens, target.tokens, heads=heads, positions="last")):
                n_moved[heads] += toy_model.answer(target, 2) == [source_sample.answer]
    assert len(pairs) >= 20
    assert n_moved[core] > len(pairs) / 2
    assert n_moved[others] == 0


@torch.no_grad()
def test_inputs_that_do_not_correspond(model: HookedMLLM):
    small, large = model.prepare(random_picture(0), "Which?"), model.prepare(random_picture(0, (224, 96)), "Which?")
    longer = model.prepare(random_picture(0), LONG_QUESTION)
    _, cache = model.run_with_cache(small)
    if (small.tokens.image.sum() != large.tokens.image.sum()).item():
        with pytest.raises(ValueError, match=r"image positions .* Source: TokenMap\(.*Target: TokenMap\("):
            patch(cache, small.tokens, large.tokens, heads=[Head(0, 0)], positions="image")
    with pytest.raises(ValueError, match=r"all positions of the source do not have the addresses"):
        patch(cache, small.tokens, longer.tokens, heads=[Head(0, 0)])
    with pytest.raises(ValueError, match=r"question positions of the source"):
        patch(cache, small.tokens, longer.tokens, heads=[Head(0, 0)], positions="question")
    patch(cache, small.tokens, longer.tokens, heads=[Head(0, 0)], positions="last")
    with pytest.raises(ValueError, match=r"it belongs to other inputs"):
        patch(cache, longer.tokens, longer.tokens, heads=[Head(0, 0)])
    hooks = patch(cache, small.tokens, small.tokens, heads=[Head(0, 0)])
    with pytest.raises(ValueError, match="it belongs to another prompt"):
        model.run_with_hooks(longer, fwd_hooks=hooks)


@torch.no_grad()
def test_grids_of_one_size_and_another_shape_do_not_correspond():
    model = HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    tall, wide = (model.prepare(random_picture(0, size), "Which?") for size in ((112, 224), (224, 112)))
    assert torch.equal(tall.tokens.role, wide.tokens.role)
    _, cache = model.run_with_cache(tall, names_filter="blocks.0.attn.hook_z")
    with pytest.raises(ValueError, match=r"Source: .*\(7 x 4\).*Target: .*\(4 x 7\)"):
        patch(cache, tall.tokens, wide.tokens, heads=[Head(0, 0)], positions="image")


@torch.no_grad()
def test_what_a_patch_lacks(model: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it: wrong types get there
    inputs = model.prepare(None, "Which?")
    tokens = inputs.tokens
    _, cache = model.run_with_cache(inputs, names_filter=["blocks.0.attn.hook_k", "blocks.0.attn.hook_pattern"])
    with pytest.raises(ValueError, match="L3H0 does not exist: the model has 3 layers"):
        patch(cache, tokens, tokens, heads=[Head(3, 0)])
    with pytest.raises(ValueError, match=r"point='out' is not known; it is one of z, o_in, .*, resid_post"):
        patch(cache, tokens, tokens, "out", heads=[Head(0, 0)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="hook_z is patched by heads"):
        patch(cache, tokens, tokens, "z", layers=[0])
    with pytest.raises(ValueError, match="hook_resid_pre is patched by layers"):
        patch(cache, tokens, tokens, "resid_pre", heads=[Head(0, 0)])
    with pytest.raises(ValueError, match=r"the cache does not hold blocks\.0\.attn\.hook_z"):
        patch(cache, tokens, tokens, heads=[Head(0, 0)])
    n_kv = cache["k", 0].shape[2]
    with pytest.raises(ValueError, match=f"has no k of its own: layer 0 has {n_kv}"):
        patch(cache, tokens, tokens, "k", heads=[Head(0, n_kv)])
    with pytest.raises(ValueError, match="run the source with queries="):
        patch(cache, tokens, tokens, "pattern", heads=[Head(0, 0)], positions="last")


@torch.no_grad()
@pytest.mark.parametrize("through", ["q", "v"])
def test_a_patched_path_against_passes_written_by_hand(model: HookedMLLM, through: Literal["q", "v"]):
    """Three passes: the source; the target with the sender patched and later heads frozen; the receiver patched."""
    source, target = (model.prepare(random_picture(seed), QUESTION) for seed in (0, 1))
    _, cache = model.run_with_cache(source)
    logits, clean_cache = model.run_with_cache(target)

    def patch_sender(z: Tensor, hook: Any) -> None:
        z[:, :, 3] = cache["z", 0][:, :, 3]

    freeze = [(f"blocks.{layer}.attn.hook_z", lambda z, hook: clean_cache[hook.name]) for layer in (1, 2)]
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", patch_sender), *freeze]):
        direct_logits, receiver_cache = model.run_with_cache(target)

    def patch_receiver(tensor: Tensor, hook: Any) -> None:
        tensor[:, :, 1] = receiver_cache[through, 2][:, :, 1]

    expected = model.run_with_hooks(target, fwd_hooks=[(f"blocks.2.attn.hook_{through}", patch_receiver)])
    to_receiver = path_patch(model, cache, source.tokens, target, Head(0, 3), [Head(2, 1)], through)
    assert_close(model.run_with_hooks(target, fwd_hooks=to_receiver), expected, atol=1e-5, rtol=1e-5)
    to_logits = path_patch(model, cache, source.tokens, target, Head(0, 3))
    assert_close(model.run_with_hooks(target, fwd_hooks=to_logits), direct_logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, logits, atol=1e-3)
    from_last = model.run_with_hooks(target, fwd_hooks=path_patch(model, cache, source.tokens, target, Head(2, 3)))
    patched = model.run_with_hooks(target, fwd_hooks=patch(cache, source.tokens, target.tokens, heads=[Head(2, 3)]))
    assert_close(from_last, patched)  # no head stands between the last layer and the logits
    with pytest.raises(ValueError, match="L1H0 does not reach L1H2"):
        path_patch(model, cache, source.tokens, target, Head(1, 0), [Head(1, 2)])
