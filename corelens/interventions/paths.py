"""Path patching: what one head tells another, or the logits, and nothing else."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens import ActivationCache

from corelens.heads import Head
from corelens.inputs import PreparedInputs
from corelens.interventions.hooks import FwdHooks
from corelens.interventions.patching import patch
from corelens.model import HookedMLLM
from corelens.passes import Named
from corelens.tokens import TokenMap


@torch.no_grad()
def path_patch(
    model: HookedMLLM,
    cache: ActivationCache | Mapping[str, Tensor],
    source: TokenMap,
    inputs: PreparedInputs,
    sender: Head,
    receivers: Iterable[Head] = (),
    through: Literal["q", "k", "v"] = "q",
    *,
    positions: Named | Bool[Tensor, "batch position"] | None = None,
) -> FwdHooks:
    """Patches a head's output on its way to some later heads alone, or to the logits alone.

    On the way every later head says what it says without the patch, and MLPs compute what they then see, as in path
    patching by Wang et al. (arXiv 2211.00593). For receivers this runs the inputs twice.

    Args:
        model: The model.
        cache: What the source's `run_with_cache` kept of `z` in the sender's layer.
        source: `tokens` of the source's inputs.
        inputs: The inputs that are patched.
        sender: The head whose output is that of the source.
        receivers: Heads of later layers that are told; none for the logits.
        through: Whether their queries, keys or values are told; for keys and values, key-value heads.
        positions: Where the sender is patched; see `patch`.

    Returns:
        Hooks for passes over the same inputs.

    Raises:
        ValueError: If a receiver is not in a later layer, or positions do not correspond.
    """
    receivers = tuple(receivers)
    model.check_heads((sender, *receivers))
    if early := [str(head) for head in receivers if head.layer <= sender.layer]:
        raise ValueError(f"{sender} tells {', '.join(early)} nothing: receivers stand in later layers.")
    later = [head for head in model.heads if head.layer > sender.layer]
    names = [name for name in model.attn_names("z") if int(name.split(".")[1]) > sender.layer]
    _, plain = model.run_with_cache(inputs, names_filter=names)
    hooks = patch(cache, source, inputs.tokens, heads=[sender], positions=positions)
    hooks += patch(plain, inputs.tokens, inputs.tokens, heads=later)
    if not receivers:
        return hooks
    told = sorted({f"blocks.{head.layer}.attn.hook_{through}" for head in receivers})
    with model.hooks(fwd_hooks=hooks):
        _, heard = model.run_with_cache(inputs, names_filter=told)
    return patch(heard, inputs.tokens, inputs.tokens, through, heads=receivers)
