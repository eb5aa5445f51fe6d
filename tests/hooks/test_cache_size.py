"""Sizes of caches: those of real ones, and the warning before a large one."""

import re
import warnings
from typing import Any

import pytest
import torch

from corelens import HookedMLLM
from corelens.hooks import cache_size
from corelens.hooks.cache_size import CacheShape, activation_sizes, free_memory
from tests.helpers import tiny

FAMILIES = (*tiny.FAMILIES, "qwen3_5", "qwen3_vl_moe", "llama4", "gemma4", "muse_spark", "kimi_k25")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rows", ["all rows", "some rows"])
def test_sizes_are_those_of_the_cache(name: str, rows: str):
    model, inputs = HookedMLLM(tiny.build(name)), tiny.batch(name)
    queries = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    queries[0, -3:] = queries[1, -1:] = True
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, queries=queries if rows == "some rows" else None)
    n_rows = 3 if rows == "some rows" else queries.shape[1]
    shape = CacheShape(*queries.shape, n_rows, model.cfg.d_model, torch.float32)
    assert activation_sizes(model, cache.keys(), shape) == {name: value.nbytes for name, value in cache.items()}


def test_activations_take_the_models_dtype_and_rows_and_scales_float32():
    model, inputs = HookedMLLM(tiny.build("llava", dtype=torch.bfloat16)), tiny.batch("llava")
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
    n_samples, n_positions = inputs["input_ids"].shape
    shape = CacheShape(n_samples, n_positions, n_positions, model.cfg.d_model, torch.bfloat16)
    assert activation_sizes(model, cache.keys(), shape) == {name: value.nbytes for name, value in cache.items()}


@pytest.fixture(scope="module")
def llava() -> HookedMLLM:
    return HookedMLLM(tiny.build("llava"))


def kept(message: str, cache: Any) -> int:
    """Bytes of what the filter in a message selects from a cache."""
    (code,) = re.findall(r"names_filter=(lambda .*?|'.*?')(?: takes|, of one)", message)
    names_filter = eval(code)
    selects = names_filter if callable(names_filter) else names_filter.__eq__
    return sum(value.nbytes for name, value in cache.items() if selects(name))


SHARES = {1.9: "hook_attn_scores", 1.0: "hook_pattern", 0.2: "hook_mlp_out"}
"""Free memory as a share of the cache, and a kind of activation that has to be left out."""


@pytest.mark.parametrize("share", SHARES)
def test_a_large_cache_is_announced_with_a_filter_that_would_do(
    llava: HookedMLLM, monkeypatch: pytest.MonkeyPatch, share: float
):
    inputs = tiny.batch("llava")
    _, cache = llava.run_with_cache(inputs)
    total = sum(value.nbytes for value in cache.values())
    free = int(share * total)
    monkeypatch.setattr(cache_size, "free_memory", lambda device: free)
    with pytest.warns(UserWarning, match=re.escape(f"takes at least {total / 1e9:.3g} GB")) as caught:
        llava.run_with_cache(inputs)
    assert len(caught) == 1
    message = str(caught[0].message)
    size = kept(message, cache)
    assert 0 < size <= free / 2
    assert f" takes {size / 1e9:.3g} GB of it. (corelens explain large-cache)" in message
    assert SHARES[share] in message


def test_one_layer_is_named_where_no_kind_of_activation_fits(llava: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    inputs = tiny.batch("llava")
    monkeypatch.setattr(cache_size, "free_memory", lambda device: 1000)
    patterns = lambda name: name.endswith("hook_pattern")  # noqa: E731
    with pytest.warns(UserWarning, match=r"names_filter='blocks\.0\.attn\.hook_pattern', of one layer, takes"):
        llava.run_with_cache(inputs, names_filter=patterns)


def test_what_fits_is_cached_without_a_word(llava: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    inputs = tiny.batch("llava")
    _, whole = llava.run_with_cache(inputs)
    last = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    last[:, -1] = True
    free = sum(value.nbytes for value in whole.values())
    monkeypatch.setattr(cache_size, "free_memory", lambda device: free)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llava.run_with_cache(inputs, names_filter="blocks.1.attn.hook_pattern")
        llava.run_with_cache(inputs, queries=last, names_filter=lambda name: name.endswith("hook_pattern"))
        llava.run_with_cache(inputs, stop_at_layer=0)
    monkeypatch.setattr(cache_size, "free_memory", lambda device: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llava.run_with_cache(inputs)


def test_free_memory_is_that_of_the_device():
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 1e6
    assert free_memory(torch.device("meta")) is None
