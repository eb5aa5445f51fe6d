"""The cost model: against loops, counted FLOPs, and gains computed elsewhere."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3VLMoeTextConfig

from corelens.sparse.cost_model import (
    DENSE,
    DEVICES,
    Device,
    Shares,
    cache_bytes,
    decode_seconds,
    dimensions,
    pairs_full,
    pairs_streaming,
    pays_from,
    prefill_seconds,
    rates,
)
from corelens.sparse.kernels import visible_full, visible_streaming
from tests.helpers import tiny, verified


def shares(f: float, sink: int = 64, window: int = 512) -> Shares:
    return Shares(full_heads=f, full_kv_heads=f, sink=sink, window=window)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 50), st.integers(1, 400))
def test_pairs_are_those_of_the_masks(n: int, sink: int, window: int):
    position = torch.arange(n)
    assert pairs_full(n) == visible_full(position, position).sum()
    sinks = (position < sink)[None]
    assert pairs_streaming(n, sink + window) == visible_streaming(position, position, sinks, window=window).sum()


def test_linear_and_vision_flops_are_those_that_torch_counts():
    model = tiny.build("qwen3_vl", attention="eager")
    size, n = dimensions(model.config, value_bytes=4), 40
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.language_model(inputs_embeds=torch.zeros(1, n, model.config.get_text_config().hidden_size))
    linear = 2 * n * size.linear_parameters
    attention = 4 * size.d_head * size.heads * size.layers * n * n  # eager attention computes the whole square
    # Besides, torch counts the product that makes the angles of rotation.
    assert 0 <= counter.get_total_flops() - linear - attention <= 2 * 3 * n * size.d_head
    assert size.output_parameters == model.lm_head.weight.numel()
    assert size.weight_bytes == 4 * (size.linear_parameters + size.output_parameters)

    patches = 16 * 16
    tower, vision = model.model.visual, model.config.vision_config
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pixels = torch.zeros(patches, tower.patch_embed.proj.weight[0].numel())
        tower(pixels, grid_thw=torch.tensor([[1, 16, 16]]))
    blocks = [flops for name, flops in counter.get_flop_counts().items() if re.search(r"\.blocks\.\d+$", name)]
    in_blocks = sum(sum(flops.values()) for flops in blocks)
    size = dimensions(model.config, patches_per_picture=patches)
    assert size.vision_flops * patches / vision.spatial_merge_size**2 == pytest.approx(in_blocks)


@pytest.mark.parametrize(
    ("name", "n", "f", "attention", "decoder", "tower"),
    [
        ("8B", 8192, 0.05, 5.59, 1.14, 1.10),
        ("8B", 32768, 0.125, 6.43, 1.53, 1.40),
        ("8B", 131072, 0.5, 1.98, 1.57, 1.50),
        ("4B", 8192, 0.185, 3.38, 1.21, 1.13),
        ("4B", 131072, 0.05, 17.14, 4.82, 3.55),
    ],
)
def test_prefill_gains_are_those_computed_by_hand(
    name: str, n: int, f: float, attention: float, decoder: float, tower: float
):
    model, equal = replace(verified.qwen3_vl()[name], vision_flops=5.3e9), Device(1.0, 1.0, 1.0)
    assert 1 / shares(f).prefill_share(n) == pytest.approx(attention, abs=0.005)
    for visual, gain in ((0.0, decoder), (0.9, tower)):
        seconds = [prefill_seconds(model, plan, n, equal, visual=visual) for plan in (DENSE, shares(f))]
        assert seconds[0] / seconds[1] == pytest.approx(gain, abs=0.005)


@pytest.mark.parametrize(
    ("name", "n", "f", "gigabytes", "gains"),
    [
        ("8B", 8192, 0.05, 1.21, [1.07, 1.52, 2.74]),
        ("8B", 131072, 0.125, 19.33, [1.96, 4.84, 6.68]),
        ("4B", 32768, 0.185, 4.83, [1.43, 2.97, 4.19]),
    ],
)
def test_decoding_gains_are_those_computed_by_hand(name: str, n: int, f: float, gigabytes: float, gains: list[float]):
    model, device = verified.qwen3_vl()[name], Device(1.0, 1.0, 1.0)
    assert cache_bytes(model, DENSE, n) / 1e9 == pytest.approx(gigabytes, abs=0.005)
    for batch, gain in zip([1, 8, 32], gains, strict=True):
        seconds = [decode_seconds(model, plan, n, device, batch=batch) for plan in (DENSE, shares(f))]
        assert seconds[0] / seconds[1] == pytest.approx(gain, abs=0.005)


def test_seconds_on_assumed_rates_are_those_computed_by_hand():
    model, device = verified.qwen3_vl()["8B"], Device(700e12, 550e12, 4e12)
    for n, dense, sparse in ((8192, 0.20, 0.17), (32768, 1.23, 0.74), (131072, 11.81, 3.82)):
        assert prefill_seconds(model, DENSE, n, device) == pytest.approx(dense, abs=0.005)
        assert prefill_seconds(model, shares(0.125), n, device) == pytest.approx(sparse, abs=0.005)


def test_a_plan_in_which_all_is_full_costs_what_dense_costs():
    model = verified.qwen3_vl()["4B"]
    for n in (1, 100, 10_000):
        assert DENSE.prefill_share(n) == DENSE.decode_share(n) == shares(1.0).prefill_share(n) == 1
        # As does one whose window is the prompt.
        assert shares(0.0, 0, n).prefill_share(n) == shares(0.0, 0, n).decode_share(n) == 1
    assert cache_bytes(model, shares(0.0, 4, 16), 1000) == model.position_bytes * 20
    assert pays_from(model, shares(1.0), DEVICES["H100"]) is None


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 0.7), st.integers(0, 64), st.integers(1, 600), st.integers(0, 500))
def test_it_pays_from_the_first_length_that_saves_time(f: float, sink: int, window: int, new_tokens: int):
    model, device, plan = verified.qwen3_vl()["8B"], DEVICES["A100 80GB"], shares(f, sink, window)

    def pays(n: int) -> bool:
        plans = ((plan, 0.8), (DENSE, 1.0))
        sparse, dense = (
            prefill_seconds(model, candidate, n, device, efficiency=efficiency)
            + new_tokens * decode_seconds(model, candidate, n, device, efficiency=efficiency)
            for candidate, efficiency in plans
        )
        return sparse < dense

    shortest = pays_from(model, plan, device, new_tokens=new_tokens)
    assert shortest is not None
    assert all(pays(n) for n in (shortest, shortest + 1, 2 * shortest, 100 * shortest))
    assert not any(pays(n) for n in {*range(1, shortest, max(1, shortest // 50)), shortest - 1} if n > 0)


def test_measured_rates_are_rates():
    device = rates()
    assert min(device.matmul_flops_s, device.attention_flops_s, device.bytes_s) > 1e6


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"full_kv_heads=1.1 is outside \[0, 1\]"):
        Shares(full_heads=0.5, full_kv_heads=1.1, sink=0, window=1)
    with pytest.raises(ValueError, match="sink=4, window=0"):
        shares(0.5, 4, 0)
    with pytest.raises(ValueError, match="has experts"):
        dimensions(Qwen3VLMoeTextConfig(num_hidden_layers=1, num_experts=2, num_experts_per_tok=1))
    with pytest.raises(ValueError, match="llava does not state how many patches a token has"):
        dimensions(tiny.build("llava").config)
