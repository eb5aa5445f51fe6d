"""Ablations against surgery on the weights."""

import copy
from typing import Any

import numpy as np
import processors
import pytest
import tiny
import torch
from PIL import Image
from torch.testing import assert_close


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> Any:
    from corelens import HookedMLLM

    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def samples(n: int = 5) -> list[Any]:
    """Pictures of different sizes, questions of different lengths, one or two regions of evidence."""
    from corelens import Box, Evidence, Sample

    made = []
    for index in range(n):
        width, height = (112, 96) if index % 2 else (97, 100)
        picture = Image.fromarray(np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8))
        boxes = [Box(30, 30, 60, 50), Box(20, 60, 50, 90)][: 1 + index % 2]
        question = "Which digit is red?" if index % 3 else "What colour is the 7, and what else is there?"
        made.append(Sample(f"s{index}", question, "7", (picture,), tuple(Evidence(box) for box in boxes)))
    return made


HEADS = "L0H1, L2H0, L2H3"


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_zero_ablation_is_zeroed_columns_of_w_o(family: str):
    from corelens import HeadSet, HookedMLLM, ablate

    model = HookedMLLM(tiny.build(family))
    surgery = copy.deepcopy(model.hf_model)
    for layer, head in HeadSet.parse(HEADS):
        w_o = surgery.get_decoder().layers[layer].self_attn.o_proj.weight
        w_o[:, head * 16 : (head + 1) * 16] = 0
    inputs = tiny.batch(family)
    expected = surgery(**inputs).logits
    ablated = model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(HEADS)))
    assert_close(ablated, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ablated, model(inputs), atol=1e-3)
    settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    with model.hooks(fwd_hooks=ablate(HeadSet.parse(HEADS))):
        generated = model.generate(inputs, **settings)
    assert torch.equal(generated, surgery.generate(**inputs, **settings))


@torch.no_grad()
def test_no_head_changes_nothing_and_lists_add_up():
    from corelens import Head, HeadSet, HookedMLLM, ablate

    model, inputs = HookedMLLM(tiny.build("llava")), tiny.batch("llava")
    assert ablate([]) == []
    assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=ablate([])), model(inputs))
    apart = [hook for head in HeadSet.parse(HEADS) for hook in ablate([head])]
    together = model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(HEADS)))
    assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=apart), together)
    with model.hooks(fwd_hooks=ablate([Head(0, 1)])), model.hooks(fwd_hooks=ablate(HeadSet.parse("L2H0 L2H3"))):
        assert torch.equal(model(inputs), together)


@torch.no_grad()
def test_means_are_those_of_a_loop_over_samples(model: Any):
    from corelens import mean_outputs

    seen: list[torch.Tensor] = []
    for sample in samples():
        _, cache = model.run_with_cache(model.prepare(list(sample.images), sample.question))
        seen.append(torch.stack([cache["z", layer][0] for layer in range(3)], 1))
    expected = torch.cat(seen).mean(0)
    assert_close(mean_outputs(model, samples(), batch_size=2), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_mean_ablation_writes_the_means(model: Any):
    from corelens import HeadSet, ablate, mean_outputs

    means = mean_outputs(model, samples())
    inputs = model.prepare([list(s.images) for s in samples(2)], [s.question for s in samples(2)])
    with model.hooks(fwd_hooks=ablate(HeadSet.parse(HEADS), "mean", means)):
        _, cache = model.run_with_cache(inputs)
    _, plain = model.run_with_cache(inputs)
    for layer in range(3):
        for head in range(4):
            z = cache["z", layer][:, :, head]
            if f"L{layer}H{head}" in HEADS.split(", "):
                assert_close(z, means[layer, head].expand_as(z))
            elif layer == 0:
                assert torch.equal(z, plain["z", layer][:, :, head])


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_heads_that_do_not_exist(model: Any):
    from corelens import HeadSet, ablate

    inputs = model.prepare(None, "Which?")
    for heads, has in (("L3H0", "the model has 3 layers of 4 heads"), ("L0H4", "layer 0 has 4 heads")):
        message = f"{heads} does not exist: {has}, counted from zero"
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(heads)))
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(heads), "mean", torch.zeros(3, 4, 16)))


def test_means_are_given_where_they_are_needed_and_only_there():
    from corelens import Head, ablate

    with pytest.raises(ValueError, match=r"needs means=mean_outputs\(model, samples\)"):
        ablate([Head(0, 0)], "mean")
    with pytest.raises(ValueError, match="takes no means"):
        ablate([Head(0, 0)], "zero", torch.zeros(3, 4, 16))
