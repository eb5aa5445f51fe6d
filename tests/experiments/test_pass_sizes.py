"""Sizes of passes: of functions in closed form, and of passes of several architectures at the length of a document."""

import json
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig

from corelens.experiments.pass_sizes import FakeTensors, pass_sizes
from tests.helpers import tiny
from tests.helpers.cli import invoke, text_of
from tests.helpers.verified import configs

N = 20_000


def test_bytes_alive_are_counted_once_and_freed():
    mode = FakeTensors()
    with mode.fake:
        weight = torch.empty(100, 10)

    def run() -> None:
        product = weight @ torch.ones(10, 50)  # 100 x 50
        view = product.T
        summed = (view + 1).sum()  # 50 x 100 beside it
        del product, view
        torch.stack([summed] * 4)

    size = mode.measure(run)
    assert size.peak_bytes == 4 * (2 * 100 * 50 + 1)
    assert size.largest == (100, 50)


def test_masks_keep_their_values():
    mode = FakeTensors()
    with mode.fake:
        weight = torch.empty(6, 10)
    chosen = torch.tensor([True, False, True, False, False, True])
    assert mode.measure(lambda: weight[chosen]).largest == (3, 10)


def test_a_whole_pattern_would_be_seen():
    mode = FakeTensors()
    with mode.fake:
        query = torch.empty(1, 2, N, 8)
    assert mode.measure(lambda: (query @ query.mT).softmax(-1)).largest == (2, N, N)
    assert mode.measure(lambda: scaled_dot_product_attention(query, query, query, is_causal=True)).largest[-2:] != (
        N,
        N,
    )


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llava", "internvl", "gemma3"])
def test_neither_a_scan_nor_an_ablation_makes_whole_patterns(family: str):
    config: Any = tiny.build(family).config
    sizes = pass_sizes(config, N)
    for size in sizes.values():
        assert torch.Size(size.largest).numel() < N * N
    # These models are so narrow that the rows of 32 queries weigh more than all else.
    rows = 4 * 32 * N * config.get_text_config().num_attention_heads
    assert sizes["scan"].peak_bytes < sizes["plain"].peak_bytes + 4 * rows
    assert sizes["ablate"].peak_bytes < 1.5 * sizes["plain"].peak_bytes


@pytest.mark.parametrize("model", list(configs()), ids=lambda model: model[0])
def test_at_the_papers_sizes_a_scan_takes_no_more_than_the_pass(model: Any):
    _, _, config, _ = model
    sizes = pass_sizes(config, 32_768)
    assert list(sizes) == ["plain", "scan", "ablate", "plan"]
    for size in sizes.values():
        assert size.peak_bytes <= 1.1 * sizes["plain"].peak_bytes
        assert torch.Size(size.largest).numel() < 32_768**2


def test_the_command_says_what_a_prompt_would_need():
    facts = json.loads(invoke("models", "corelens/toy", "--context", 5_000, "--json").stdout)
    assert facts["passes"]["plain"]["peak_bytes"] > 5_000 * 128 * 2
    ran = text_of(invoke("models", "corelens/toy", "--context", 5_000))
    assert "scan of 5,000" in ran
    assert "times the plain pass" in ran


def test_mistakes():
    with pytest.raises(ValueError, match="n_positions=40 leaves no room"):
        pass_sizes(AutoConfig.for_model("llava"), 40)
    with pytest.raises(ValueError, match="of udop is not known without weights and pictures"):
        pass_sizes(tiny.build("udop").config, N)
    assert "give the model" in text_of(invoke("models", "--context", 100))
    assert "n_positions=40 leaves no room" in text_of(invoke("models", "corelens/toy", "--context", 40))
