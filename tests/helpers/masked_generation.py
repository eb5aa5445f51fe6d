"""Generation under a plan, and its oracle: stock generation under masks over all keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from corelens.heads import Head, HeadSet
from corelens.hf.versions import CACHE
from corelens.hooks.attention import AttentionCall
from corelens.sparse import Full, HeadPlan, Off, Streaming, StreamingBlocks, apply
from corelens.sparse.resolve import resolve
from tests.helpers.tiny import PAD

SINK, WINDOW = 2, 5


def core_heads(model: PreTrainedModel) -> HeadSet:
    """One head in each of the last two layers that can be planned."""
    layers = sorted(resolve(HeadPlan({}, Full()), model).layers)
    return HeadSet(tuple(Head(layer, 1 + 2 * (layer == layers[0])) for layer in layers[-2:]))


def random_texts(n: int, seed: int = 5, padding: int = 0) -> dict[str, Tensor]:
    """Two texts, the second with padding before it."""
    ids = torch.randint(3, 400, (2, n), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[1, :padding], mask[1, :padding] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: Any, inputs: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor, Any]:
    """Sequences, logits of each new token, and the cache."""
    settings = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False) | settings
    copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    torch.manual_seed(0)
    output = model.generate(**copies, **settings, output_logits=True, return_dict_in_generate=True)
    return output.sequences, torch.stack(output.logits, 1), output[CACHE]


def assert_same_generation(model: PreTrainedModel, plan: HeadPlan, inputs: dict[str, Tensor], **settings: Any) -> None:
    """Assert that tokens and logits under a plan are those under masks."""
    with masked_attention(model, plan):
        expected_tokens, expected_logits, _ = generate(model, inputs, **settings)
    with apply(model, plan, force=True):
        tokens, logits, _ = generate(model, inputs, **settings)
    assert_close(tokens, expected_tokens, rtol=0, atol=0)
    assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)


@contextmanager
def masked_attention(model: PreTrainedModel, plan: HeadPlan, text: Tensor | None = None) -> Iterator[None]:
    """Stock passes and caches of a model in which every head attends by softmax(q k^T scaling + mask of its rule) v."""
    resolved = resolve(plan, model)
    rules = {id(module): resolved.layers[layer].rules for layer, module in resolved.modules.items()}

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: Any = None, **kwargs: Any
    ):
        if id(module) not in rules:
            return AttentionCall(module, query, key, value, mask, scaling, kwargs).head_outputs(), None
        n_heads, n, total = query.shape[1], query.shape[2], key.shape[2]
        visible = mask.expand(len(query), n_heads, -1, -1).clone()
        q, p = torch.arange(total), torch.arange(total - n, total)
        begin = mask[:, 0, -1].int().argmax(-1)
        for head, rule in enumerate(rules[id(module)]):
            if isinstance(rule, Streaming):
                retained = q < begin[:, None] + rule.sink
                if rule.keep_text and text is not None:
                    retained |= torch.nn.functional.pad(text, (0, total))[:, :total]
                visible[:, head] &= (q > p[:, None] - rule.window) | retained[:, None]
            if isinstance(rule, StreamingBlocks) and n > 1:
                key_block = (q - begin[:, None])[:, None] // rule.block
                query_block = (p - begin[:, None])[:, :, None] // rule.block
                visible[:, head] &= (key_block < rule.sink) | (query_block - key_block < rule.window)
        key, value = (repeat(t, "b kv k d -> b (kv group) k d", group=n_heads // t.shape[1]) for t in (key, value))
        scores = (query @ key.mT).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        pattern = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
        for head, rule in enumerate(rules[id(module)]):
            if isinstance(rule, Off):
                pattern[:, head] = 0
        return rearrange(pattern.to(value) @ value, "b head p d -> b p head d").contiguous(), None

    AttentionInterface.register("masked", attention)
    AttentionMaskInterface.register("masked", lambda **k: sdpa_mask(**k | {"allow_is_causal_skip": False}))
    configs = {id(m.config): m.config for m in model.get_decoder().modules() if isinstance(m, PreTrainedModel)}
    original = {name: config._attn_implementation_internal for name, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = "masked"
        yield
    finally:
        for name, config in configs.items():
            config._attn_implementation_internal = original[name]
