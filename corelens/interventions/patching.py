"""Patching: activations of one pass put into another, position by position of the same address."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens import ActivationCache

from corelens.errors import docs_link
from corelens.heads import Head
from corelens.hooks.positions import PassState, PositionName, PositionSelector
from corelens.hooks.rows import row_mask
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions.replace import FwdHooks, Replace, by_layer
from corelens.model import HookedMLLM
from corelens.tokens import TokenMap

HeadPoint = Literal["z", "o_in", "q", "k", "v", "pattern"]
StreamPoint = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]


def patch(
    cache: ActivationCache | Mapping[str, Tensor],
    source: TokenMap,
    target: TokenMap,
    point: HeadPoint | StreamPoint = "z",
    *,
    heads: Iterable[Head] = (),
    layers: Iterable[int] = (),
    positions: PositionName | Bool[Tensor, "batch position"] | None = None,
) -> FwdHooks:
    """Puts what one pass found into passes over other inputs, where positions have the same address.

    A position's address is its role and, for visual tokens, its picture, view, row and column. Two pictures of one
    grid with one question correspond everywhere, also if they are padded differently. Inputs with different questions
    still correspond at `image` or at `last`.

    Args:
        cache: What the source's `run_with_cache` kept. For `pattern`, rows: run it with `queries` set to the positions
            that are patched.
        source: `tokens` of the inputs whose activations they are.
        target: `tokens` of the inputs that are patched.
        point: A hook point of heads: `z`, `o_in`, `q`, `k`, `v`, `pattern`; or of the residual stream: `resid_pre`,
            `attn_out`, `resid_mid`, `mlp_out`, `resid_post`. `k` and `v` are patched where they stand in the sequence,
            for every query that looks at them.
        heads: Of points of heads, which; of `k` and `v`, key-value heads, which groups of heads share.
        layers: Of points of the residual stream, which.
        positions: By name, or as a mask of the target; None for all that are not padding.

    Returns:
        One hook per layer, which acts in the prompt.

    Raises:
        ValueError: If positions do not correspond; shows both. If the cache does not hold the point in a layer, a head
            does not exist, or heads are given where layers are meant.
    """
    by_head = point in get_args(HeadPoint)
    if not by_head and point not in get_args(StreamPoint):
        known = (*get_args(HeadPoint), *get_args(StreamPoint))
        raise ValueError(f"point={point!r} is not known; patched can be {', '.join(known)}.")
    heads, layers = tuple(heads), tuple(layers)
    if bool(layers) == by_head and (heads or layers):
        raise ValueError(f"hook_{point} is patched by {'heads' if by_head else 'layers'}.")
    if isinstance(cache, ActivationCache) and point not in ("k", "v"):
        model: Any = cache.model
        model.check_heads(heads)
    index = align(source, target, positions)
    where = PositionSelector(index >= 0, "prefill")
    chosen = by_layer(heads) if by_head else dict.fromkeys(layers, ())
    hooks: FwdHooks = []
    for layer, own in chosen.items():
        name = f"blocks.{layer}.attn.hook_{point}" if by_head else f"blocks.{layer}.hook_{point}"
        if name not in list(cache):
            raise ValueError(f"the cache does not hold {name}; keep it, e.g. with names_filter={name!r}.")
        if point == "pattern":
            rows = _rows(cache[name], source, index, align(source, target, None))
            hooks.append((name, ReplaceRows(own, where, rows)))
            continue
        found = cache[name] if by_head else cache[name][:, :, None]
        if found.shape[:2] != source.role.shape:
            raise ValueError(
                f"{name} in the cache has (batch, position) = {tuple(found.shape[:2])}, and the source's token map "
                f"{tuple(source.role.shape)}: it belongs to other inputs."
            )
        for _, head in own:
            if head >= found.shape[2]:
                raise ValueError(f"L{layer}H{head} has no {point} of its own: layer {layer} has {found.shape[2]}.")
        hooks.append((name, Replace(name, own, where, AlignedActivations(found, index))))
    return hooks


def align(
    source: TokenMap, target: TokenMap, positions: PositionName | Bool[Tensor, "batch position"] | None
) -> Int[Tensor, "batch position"]:
    """For every chosen position of the target the position of the same address in the source; -1 for all others.

    Raises:
        ValueError: If the chosen positions of some sample have other addresses in the source; shows both.
    """
    if len(source) != len(target):
        raise ValueError(f"the source has {len(source)} samples and the target {len(target)}: {source}; {target}.")
    chosen = ~target.padding if positions is None else positions
    if isinstance(chosen, str):
        there, here = getattr(source, chosen), getattr(target, chosen)
    else:
        # A mask speaks of the target; in the source it means the positions of the same order.
        there, here = ~source.padding, ~target.padding
    index = torch.full(target.role.shape, -1, device=target.role.device)
    for sample in range(len(target)):
        from_, to = there[sample].nonzero()[:, 0], here[sample].nonzero()[:, 0]
        columns = [(getattr(source, c)[sample, from_], getattr(target, c)[sample, to]) for c in MATCHED_COLUMNS]
        if len(from_) != len(to) or not all(torch.equal(a.to(b), b) for a, b in columns):
            raise ValueError(
                f"sample {sample}: {positions if isinstance(positions, str) else 'all'} positions of the source do "
                f"not have the addresses of those of the target. Source: {source[sample]}. Target: {target[sample]}. "
                f"Choose positions that both have, e.g. positions='last'. {docs_link('alignment')}"
            )
        index[sample, to] = from_.to(index)
    return index if isinstance(chosen, str) else torch.where(chosen.to(index.device), index, -1)


MATCHED_COLUMNS = ("role", "media", "view", "row", "column")
"""Columns of a token map that say where a position is."""


@dataclass(frozen=True, eq=False)
class AlignedActivations:
    """Activations of one pass, by position of another."""

    activations: Float[Tensor, "batch source head d_head"]
    index: Int[Tensor, "batch position"]

    def check(self, name: str, where: PositionSelector, progress: PassState) -> None:
        """Every position that is patched has its source; `align` saw to that."""

    def at(
        self, name: str, progress: PassState, positions: Int[Tensor, "position"]
    ) -> Float[Tensor, "sample position head d_head"]:
        index = self.index.to(self.activations.device)[:, positions.clamp(max=self.index.shape[1] - 1)].clamp(min=0)
        return self.activations[torch.arange(len(index))[:, None], index]


@dataclass(frozen=True, eq=False)
class ReplaceRows:
    """Replaces rows of attention patterns."""

    heads: tuple[Head, ...]
    where: PositionSelector
    rows: Float[Tensor, "batch head row key"] = field(repr=False)

    def check(self, progress: PassState) -> None:
        self.where.check(progress)
        progress.check_keys(self.heads[0].layer)

    def __call__(self, pattern: Float[Tensor, "batch head row key"], hook: Any) -> Tensor:
        rows = self.rows.repeat_interleave(len(pattern) // len(self.rows), 0).to(pattern)
        if rows.shape[2] != pattern.shape[2]:
            raise ValueError(
                f"{hook.name} computes {pattern.shape[2]} of the {rows.shape[2]} rows that are patched: patch them in "
                f"one pass over the whole prompt."
            )
        pattern = pattern.clone()
        numbers = [number for _, number in self.heads]
        # A pass over part of the prompt sees fewer keys; later ones have no weight in a causal row.
        pattern[:, numbers] = pad(rows, (0, pattern.shape[-1] - rows.shape[-1]))[:, numbers]
        return pattern


def _rows(
    rows: Float[Tensor, "batch head row source"],
    source: TokenMap,
    index: Int[Tensor, "batch key"],
    keys: Int[Tensor, "batch key"],
) -> Float[Tensor, "batch head row key"]:
    """Rows of the source's patterns, their keys in the order of the target."""
    wanted = (len(source), row_mask(index >= 0).shape[1], source.role.shape[1])
    if (len(rows), *rows.shape[2:]) != wanted:
        raise ValueError(
            f"the cache holds patterns of (batch, row, key) = {(len(rows), *rows.shape[2:])}, and patching these "
            f"positions needs {wanted}: run the source with queries=, the same positions of its own."
        )
    keys = keys.to(rows.device)[:, None, None].expand(*rows.shape[:3], -1)
    return rows.gather(-1, keys.clamp(min=0)).masked_fill(keys < 0, 0)


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
    positions: PositionName | Bool[Tensor, "batch position"] | None = None,
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
