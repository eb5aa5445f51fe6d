"""Patching between two inputs: closed forms, addresses, and the picture that peers forget."""

from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import corelens as cl
from corelens import HookedMLLM, toy
from tests.helpers import processors, tiny


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> Any:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def picture(seed: int, size: tuple[int, int] = (112, 96)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


LONG = "What colour is the 7, and what else is there?"


def two_batches(model: Any) -> tuple[Any, Any]:
    """The same two questions about different pictures; the source is padded to a longer third question."""
    questions = ["Which digit is red?", "Which?"]
    source = model.prepare([picture(0), picture(1), picture(2)], [*questions, LONG])
    longest = slice(0, 2)
    source.tokens = type(source.tokens)(
        **{n: t[longest] for n, t in source.tokens._columns().items()}, sizes=source.tokens.sizes[:2]
    )
    return source, model.prepare([picture(3), picture(4)], questions)


@torch.no_grad()
@pytest.mark.parametrize("point", ["resid_post", "z", "k", "v", "q", "attn_out", "mlp_out", "resid_mid", "resid_pre"])
def test_a_patched_activation_is_that_of_the_source_at_the_same_address(model: Any, point: Any):
    source, target = two_batches(model)
    _, cache = model.run_with_cache(source)
    cache = {name: tensor[:2] for name, tensor in cache.items()}
    by_head = point in ("z", "k", "v", "q")
    chosen: dict[str, Any] = {"heads": [cl.Head(1, 1)]} if by_head else {"layers": [1]}
    name = f"blocks.1.attn.hook_{point}" if by_head else f"blocks.1.hook_{point}"
    hooks = cl.patch(cache, source.tokens, target.tokens, point, positions="image", **chosen)
    _, plain = model.run_with_cache(target)
    with model.hooks(fwd_hooks=hooks):
        _, patched = model.run_with_cache(target)
    part = (lambda tensor: tensor[:, 1]) if by_head else (lambda tensor: tensor)
    image = target.tokens.image
    assert_close(part(patched[name][image]), part(cache[name][source.tokens.image]), atol=0, rtol=0)
    assert torch.equal(patched[name][~image], plain[name][~image])
    if by_head:
        assert torch.equal(patched[name][image][:, 0], plain[name][image][:, 0])


@torch.no_grad()
def test_a_pass_whose_last_stream_is_patched_answers_for_the_other_picture(model: Any):
    """Against the source's own logits; with k and v it must also hold in decoding."""
    one, other = (model.prepare(picture(seed), "Which digit is red?") for seed in (0, 1))
    logits, cache = model.run_with_cache(one)
    hooks = cl.patch(cache, one.tokens, other.tokens, "resid_post", layers=[2])
    assert_close(model.run_with_hooks(other, fwd_hooks=hooks), logits, atol=1e-5, rtol=1e-5)
    everything = cl.patch(cache, one.tokens, other.tokens, "resid_post", layers=[2])
    for point in ("k", "v"):
        heads = [cl.Head(layer, head) for layer in range(3) for head in range(cache[point, 0].shape[2])]
        everything += cl.patch(cache, one.tokens, other.tokens, point, heads=heads)
    settings = dict(max_new_tokens=5, do_sample=False)
    with model.hooks(fwd_hooks=everything):
        assert torch.equal(model.generate(other, **settings)[:, -5:], model.generate(one, **settings)[:, -5:])


@torch.no_grad()
def test_patched_rows_are_rows_of_the_source(model: Any):
    source, target = two_batches(model)
    rows = torch.zeros(3, source["input_ids"].shape[1], dtype=torch.bool)
    rows[:2] = source.tokens.question
    _, cache = model.run_with_cache(source, queries=rows)
    _, whole = model.run_with_cache(source)
    real = cl.row_mask(rows[:2])
    cache = {"blocks.2.attn.hook_pattern": cache["pattern", 2][:2, :, : real.shape[1]]}
    heads = [cl.Head(2, 1), cl.Head(2, 3)]
    hooks = cl.patch(cache, source.tokens, target.tokens, "pattern", heads=heads, positions="question")
    with model.hooks(fwd_hooks=hooks):
        _, patched = model.run_with_cache(target)
    for sample in range(2):
        there, here = ~source.tokens.padding[sample], ~target.tokens.padding[sample]
        expected = whole["pattern", 2][sample][:, source.tokens.question[sample]][..., there]
        found = patched["pattern", 2][sample][:, target.tokens.question[sample]][..., here]
        assert_close(found[[1, 3]], expected[[1, 3]], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(found[[0, 2]], expected[[0, 2]], atol=1e-3)


@torch.no_grad()
def test_patching_heads_between_two_pictures_moves_the_answer(toy_model: Any):
    """The same question about two scenes: the heads that fetch the evidence bring the other scene's answer."""
    by_question: dict[str, list[Any]] = {}
    for sample in toy.scenes(60, seed=5):
        by_question.setdefault(sample.question, []).append(sample)
    pairs = [(asked[0], other) for asked in by_question.values() for other in asked if other.answer != asked[0].answer]
    core = cl.HeadSet.parse("L3H14 L3H0 L2H10 L2H4 L2H6")
    others = cl.HeadSet.parse("L3H1 L3H2 L2H1 L2H2 L2H3")
    moved = {core: 0, others: 0}
    for a, b in pairs:
        one, other = toy_model.prepare(list(a.images), a.question), toy_model.prepare(list(b.images), b.question)
        _, cache = toy_model.run_with_cache(one, names_filter=lambda name: name.endswith("hook_z"))
        for heads in moved:
            with toy_model.hooks(fwd_hooks=cl.patch(cache, one.tokens, other.tokens, heads=heads, positions="last")):
                moved[heads] += toy_model.answer(other, 2) == [a.answer]
    assert len(pairs) >= 20
    assert moved[core] > len(pairs) / 2
    assert moved[others] == 0


# --- mistakes --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_inputs_that_do_not_correspond(model: Any):
    small, large = model.prepare(picture(0), "Which?"), model.prepare(picture(0, (224, 96)), "Which?")
    longer = model.prepare(picture(0), LONG)
    _, cache = model.run_with_cache(small)
    if (small.tokens.image.sum() != large.tokens.image.sum()).item():
        with pytest.raises(ValueError, match=r"image positions .* Source: TokenMap\(.*Target: TokenMap\("):
            cl.patch(cache, small.tokens, large.tokens, heads=[cl.Head(0, 0)], positions="image")
    with pytest.raises(ValueError, match=r"all positions of the source do not have the addresses"):
        cl.patch(cache, small.tokens, longer.tokens, heads=[cl.Head(0, 0)])
    with pytest.raises(ValueError, match=r"question positions of the source"):
        cl.patch(cache, small.tokens, longer.tokens, heads=[cl.Head(0, 0)], positions="question")
    cl.patch(cache, small.tokens, longer.tokens, heads=[cl.Head(0, 0)], positions="last")
    with pytest.raises(ValueError, match=r"it belongs to other inputs"):
        cl.patch(cache, longer.tokens, longer.tokens, heads=[cl.Head(0, 0)])
    hooks = cl.patch(cache, small.tokens, small.tokens, heads=[cl.Head(0, 0)])
    with pytest.raises(ValueError, match="it belongs to another prompt"):
        model.run_with_hooks(longer, fwd_hooks=hooks)


@torch.no_grad()
def test_grids_of_one_size_and_another_shape_do_not_correspond():
    model = cl.HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    tall, wide = (model.prepare(picture(0, size), "Which?") for size in ((112, 224), (224, 112)))
    assert torch.equal(tall.tokens.role, wide.tokens.role)
    _, cache = model.run_with_cache(tall, names_filter="blocks.0.attn.hook_z")
    with pytest.raises(ValueError, match=r"Source: .*\(7 x 4\).*Target: .*\(4 x 7\)"):
        cl.patch(cache, tall.tokens, wide.tokens, heads=[cl.Head(0, 0)], positions="image")


@torch.no_grad()
def test_what_a_patch_lacks(model: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it: wrong types get there
    inputs = model.prepare(None, "Which?")
    tokens = inputs.tokens
    _, cache = model.run_with_cache(inputs, names_filter=["blocks.0.attn.hook_k", "blocks.0.attn.hook_pattern"])
    with pytest.raises(ValueError, match="L3H0 does not exist: the model has 3 layers"):
        cl.patch(cache, tokens, tokens, heads=[cl.Head(3, 0)])
    with pytest.raises(ValueError, match=r"point='out' is not known; patched can be z, o_in, .*, resid_post"):
        cl.patch(cache, tokens, tokens, "out", heads=[cl.Head(0, 0)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="hook_z is patched by heads"):
        cl.patch(cache, tokens, tokens, "z", layers=[0])
    with pytest.raises(ValueError, match="hook_resid_pre is patched by layers"):
        cl.patch(cache, tokens, tokens, "resid_pre", heads=[cl.Head(0, 0)])
    with pytest.raises(ValueError, match=r"the cache does not hold blocks\.0\.attn\.hook_z"):
        cl.patch(cache, tokens, tokens, heads=[cl.Head(0, 0)])
    n_kv = cache["k", 0].shape[2]
    with pytest.raises(ValueError, match=f"has no k of its own: layer 0 has {n_kv}"):
        cl.patch(cache, tokens, tokens, "k", heads=[cl.Head(0, n_kv)])
    with pytest.raises(ValueError, match="run the source with queries="):
        cl.patch(cache, tokens, tokens, "pattern", heads=[cl.Head(0, 0)], positions="last")


# --- paths and attribution -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("through", ["q", "v"])
def test_a_patched_path_against_passes_written_by_hand(model: Any, through: Any):
    one, other = (model.prepare(picture(seed), "Which digit is red?") for seed in (0, 1))
    _, source = model.run_with_cache(one)
    logits, plain = model.run_with_cache(other)
    later = [f"blocks.{layer}.attn.hook_z" for layer in (1, 2)]

    def send(z: torch.Tensor, hook: Any) -> None:
        z[:, :, 3] = source["z", 0][:, :, 3]

    freeze = [(name, lambda z, hook: plain[hook.name]) for name in later]
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", send), *freeze]):
        to_logits, heard = model.run_with_cache(other)

    def tell(tensor: torch.Tensor, hook: Any) -> None:
        tensor[:, :, 1] = heard[through, 2][:, :, 1]

    expected = model.run_with_hooks(other, fwd_hooks=[(f"blocks.2.attn.hook_{through}", tell)])
    found = cl.path_patch(model, source, one.tokens, other, cl.Head(0, 3), [cl.Head(2, 1)], through)
    assert_close(model.run_with_hooks(other, fwd_hooks=found), expected, atol=1e-5, rtol=1e-5)
    direct = cl.path_patch(model, source, one.tokens, other, cl.Head(0, 3))
    assert_close(model.run_with_hooks(other, fwd_hooks=direct), to_logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, logits, atol=1e-3)
    with pytest.raises(ValueError, match="L1H0 tells L1H2 nothing"):
        cl.path_patch(model, source, one.tokens, other, cl.Head(1, 0), [cl.Head(1, 2)])


def test_attribution_is_patching_to_first_order(model: Any):
    """Sources ever nearer to the target: the error falls faster than what is estimated."""
    inputs = cl.append_answers(model, model.prepare(picture(1), "Which digit is red?"), ["seven"])
    with torch.no_grad():
        far = cl.append_answers(model, model.prepare(picture(0), "Which digit is red?"), ["seven"])
        names = model.attn_names("z")
        _, there = model.run_with_cache(far, names_filter=names)
        _, here = model.run_with_cache(inputs, names_filter=names)
    errors = []
    for share in (1e-1, 1e-2):
        cache = {name: here[name] + share * (there[name] - here[name]) for name in names}
        estimated = cl.attribution_patch(model, cache, far.tokens, inputs)
        exact = -cl.sweep(
            model, inputs, lambda heads, c=cache: cl.patch(c, far.tokens, inputs.tokens, heads=heads)
        ).drop[0]
        errors.append((estimated.flatten() - exact).abs().max() / exact.abs().max())
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.05
