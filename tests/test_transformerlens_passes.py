"""Attention, ablations and patches against TransformerLens's own model, in every family that both load.

Half of these families' attention TransformerLens leaves to Hugging Face. There its `hook_attn_scores` holds the
pattern, after the softmax, and what a hook changes in the pattern is dropped, with a warning.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens import ActivationCache

from corelens import HookedMLLM
from tests.helpers import tiny
from tests.helpers.bridges import LEFT_TO_HUGGING_FACE, REBUILT, bridge_of

HEAD, POSITION = 1, -4


Edit = Callable[[Tensor, Tensor], None]
"""Changes an activation in place, given that of another prompt."""


class Pair(NamedTuple):
    """Both models of a family, their activations, and those of other inputs."""

    name: str
    model: HookedMLLM
    bridge: Any
    inputs: Mapping[str, Tensor]
    real: Bool[Tensor, "batch position"]
    """True where there is no padding."""

    logits: Float[Tensor, "token vocabulary"]
    cache: ActivationCache
    theirs: ActivationCache
    source: ActivationCache
    their_source: ActivationCache

    @property
    def layers(self) -> list[int]:
        """Layers that have heads."""
        return [layer for layer, _ in self.model.blocks_with("attn")]

    def called(self, point: str) -> str:
        """Our name of one of their hook points: their `hook_z` is what `W_O` reads, behind a gate."""
        gated = f"blocks.{self.layers[-1]}.attn.hook_o_in" in self.model.hook_dict
        return "attn.hook_o_in" if gated and point == "attn.hook_z" else point

    def run(self, point: str, edit: Edit) -> tuple[Tensor, Tensor]:
        """Logits of both models, with an edit in the last layer that has heads."""
        ours, theirs = (f"blocks.{self.layers[-1]}.{name}" for name in (self.called(point), point))
        hooks = [(ours, partial(_edited, edit=edit, source=self.source[ours]))]
        their_hooks = [(theirs, partial(_edited, edit=edit, source=self.their_source[theirs]))]
        with torch.no_grad():
            logits = self.model.run_with_hooks(self.inputs, fwd_hooks=hooks)
            their_logits = self.bridge.run_with_hooks(**bridged(self.inputs), fwd_hooks=their_hooks)
        return logits[self.real], their_logits[self.real]


def _edited(tensor: Tensor, hook: Any, edit: Edit, source: Tensor) -> Tensor:
    edit(edited := tensor.clone(), source)
    return edited


def bridged(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arguments of their passes."""
    return {"input" if name == "input_ids" else name: tensor for name, tensor in batch.items()}


@pytest.fixture(scope="module", params=[*REBUILT, *LEFT_TO_HUGGING_FACE])
def pair(request: pytest.FixtureRequest, toy_model: HookedMLLM) -> Pair:
    name = request.param
    model, bridge = HookedMLLM(tiny.build(name)), bridge_of(name, toy_model.tokenizer)
    inputs, other = tiny.batch(name), tiny.batch(name, seed=4)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs)
        source = model.run_with_cache(other)[1]
        theirs, their_source = (bridge.run_with_cache(**bridged(batch))[1] for batch in (inputs, other))
    return Pair(name, model, bridge, inputs, real, logits[real], cache, theirs, source, their_source)


def close(ours: Tensor, theirs: Tensor) -> None:
    """The same within 1e-5 of the largest."""
    assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=0)


def test_patterns(pair: Pair):
    for layer in pair.layers:
        rows = pair.real[:, None].expand(pair.cache["pattern", layer].shape[:3])
        close(pair.cache["pattern", layer][rows], pair.theirs["pattern", layer][rows])


def test_scores_are_those_before_the_softmax(pair: Pair):
    for layer in pair.layers:
        scores, theirs = pair.cache["attn_scores", layer], pair.theirs["attn_scores", layer]
        rows = pair.real[:, None].expand(scores.shape[:3])
        close(scores.softmax(-1)[rows], pair.theirs["pattern", layer][rows])
        if pair.name in LEFT_TO_HUGGING_FACE:
            assert torch.equal(theirs, pair.theirs["pattern", layer])
        else:
            masked = scores == torch.finfo(torch.float32).min
            assert torch.equal(masked, theirs == torch.finfo(torch.float32).min)
            close(scores[rows][~masked[rows]], theirs[rows][~masked[rows]])


@torch.no_grad()
def test_queries_and_keys_are_theirs_as_they_meet(pair: Pair):
    """Normed and rotated; their hook points of these names are before that, and their `hook_rot_q` is behind it."""
    for layer in pair.layers:
        ours = [pair.cache[part, layer][0] for part in ("q", "k")]
        if pair.name in REBUILT:
            # Of the sample without padding, since they count the positions of the other from its first token.
            for part, tensor in zip(("rot_q", "rot_k"), ours, strict=True):
                close(tensor, pair.theirs[part, layer][0])
        elif f"blocks.{layer}.attn.hook_k" in pair.theirs.cache_dict:  # not where Gemma 4 takes another layer's keys
            theirs = [normed(pair, "q", layer), normed(pair, "k", layer)]
            # Rotation keeps lengths, and products of a position with itself.
            for measure in (lambda q, k: q.norm(dim=-1), lambda q, k: k.norm(dim=-1), products):
                close(measure(*ours), measure(*theirs))


def normed(pair: Pair, part: Literal["q", "k"], layer: int) -> Tensor:
    """Queries or keys as corelens has them: those of TransformerLens's hook point, normed and scaled."""
    attention: Any = pair.model.blocks[layer].attn  # pyright: ignore[reportAttributeAccessIssue]
    norm = attention.hf_attention.norms.get(part, nn.Identity())
    factor = getattr(attention.hf_attention.module, "qk_scale_factor", 1) if part == "q" else 1
    return norm(pair.theirs[part, layer][0]) * factor


def products(query: Tensor, key: Tensor) -> Tensor:
    return (query * key.repeat_interleave(query.shape[1] // key.shape[1], 1)).sum(-1)


def zero_head(tensor: Tensor, source: Tensor) -> None:
    tensor[..., HEAD, :] = 0


def patch_head(tensor: Tensor, source: Tensor) -> None:
    tensor[:, POSITION, HEAD] = source[:, POSITION, HEAD]


def patch_position(tensor: Tensor, source: Tensor) -> None:
    tensor[:, POSITION] = source[:, POSITION]


def zero(tensor: Tensor, source: Tensor) -> None:
    tensor[:] = 0


EDITS: dict[str, tuple[str, Callable[[Tensor, Tensor], None]]] = {
    "a head zeroed": ("attn.hook_z", zero_head),
    "a head patched at a position": ("attn.hook_z", patch_head),
    "a query patched at a position": ("attn.hook_q", patch_head),
    "a key patched at a position": ("attn.hook_k", patch_head),
    "a value patched at a position": ("attn.hook_v", patch_head),
    "the stream patched at a position": ("hook_resid_pre", patch_position),
    "the stream after a layer patched at a position": ("hook_resid_post", patch_position),
    "attention zeroed": ("hook_attn_out", zero),
    "an MLP zeroed": ("hook_mlp_out", zero),
    "neurons patched at a position": ("mlp.hook_post", patch_position),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_have_the_same_logits(pair: Pair, edit: str):
    point, function = EDITS[edit]
    name = f"blocks.{pair.layers[-1]}.{pair.called(point)}"
    if name not in pair.model.hook_dict:
        with pytest.raises(ValueError, match=r"is not known|mixture of experts"):
            pair.model.check_hook_name(name)
        return
    theirs = pair.theirs.cache_dict.get(f"blocks.{pair.layers[-1]}.{point}")
    if theirs is None or theirs.shape != pair.cache[name].shape:
        # Keys and values that Gemma 4 takes from another layer, and queries of Qwen3.5 with their gates among them.
        assert pair.name.startswith(("gemma4", "qwen3_5"))
        return
    ours, theirs = pair.run(point, function)
    assert not torch.allclose(ours, pair.logits, atol=1e-3)
    close(ours, theirs)


def own_pattern(tensor: Tensor, source: Tensor) -> None:
    """A head attends to its own position alone."""
    tensor[:, HEAD] = torch.eye(tensor.shape[-1])


def own_scores(tensor: Tensor, source: Tensor) -> None:
    """The same, before the softmax."""
    tensor[:, HEAD] = torch.finfo(tensor.dtype).min
    tensor[:, HEAD].diagonal(dim1=-2, dim2=-1).zero_()


@pytest.mark.parametrize(("point", "edit"), [("pattern", own_pattern), ("attn_scores", own_scores)])
def test_edits_of_patterns_and_scores_act(pair: Pair, point: str, edit: Edit):
    """Where TransformerLens leaves attention to Hugging Face, it drops them."""
    dropped = pair.name in LEFT_TO_HUGGING_FACE
    with pytest.warns(UserWarning, match="The edit is discarded") if dropped else nullcontext():
        ours, theirs = pair.run(f"attn.hook_{point}", edit)
    assert not torch.allclose(ours, pair.logits, atol=1e-2)
    close(theirs, pair.logits if dropped else ours)

    value = pair.cache["v", pair.layers[-1]]
    kv_head = HEAD * value.shape[2] // pair.cache["z", pair.layers[-1]].shape[2]

    def write_own_value(z: Tensor, hook: Any) -> None:
        z[:, :, HEAD] = value[:, :, kv_head]

    hooks = [(f"blocks.{pair.layers[-1]}.attn.hook_z", write_own_value)]
    with torch.no_grad():
        close(ours, pair.model.run_with_hooks(pair.inputs, fwd_hooks=hooks)[pair.real])


def test_experts_are_theirs(pair: Pair):
    names = [name for name in pair.model.hook_dict if name.endswith("hook_expert_weights")]
    assert bool(names) == (pair.name in ("qwen3_vl_moe", "qwen3_5_moe", "llama4"))
    # Llama 4's router returns another form, for which TransformerLens has no hook point.
    for name in names if pair.name != "llama4" else ():
        ours = pair.cache[name]
        close(ours[pair.real], pair.theirs[name].view(ours.shape)[pair.real])
