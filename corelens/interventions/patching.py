"""Activation patching and path patching: activations of one pass, the source, written into another, the target.

TransformerLens patches by position number, which is right only if two prompts are equally long. Here positions
correspond by address: their role and, for visual tokens, picture, view, row and column. `align` finds for every target
position the source position of the same address, and raises an error if there is none:

    source    [system][image 0,0][image 0,1][question ...][last]            cache: [source_batch source_position ...]
                  |       \\           \\          \\           \\
    target    [padding][system][image 0,0][image 0,1][question ...][last]   index: [batch position] -> source position

`patch` makes one `Replace` hook per layer from such an index (for rows of attention patterns, `ReplaceRows`).
`path_patch` is made of patches: the sender's output comes from the source, all later heads are frozen, and receivers
are patched with what they read in that pass.

Read on: `interventions/replace.py` for the hook function, `causal/attribution.py` for the first-order estimate,
`causal/session.py` for running many patches of one batch. docs/interventions.md has the examples.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens import ActivationCache

from corelens.errors import check_choice, docs_link
from corelens.heads import Head, HeadSet
from corelens.hooks.points import hook_name, layer_of
from corelens.hooks.positions import PassState, PositionName, PositionSelector
from corelens.hooks.rows import row_mask
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions.replace import FwdHooks, Replace
from corelens.model import HookedMLLM
from corelens.tokens import TokenMap

HeadPoint = Literal["z", "o_in", "q", "k", "v", "pattern"]
StreamPoint = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]

MATCHED_COLUMNS = ("role", "media", "view", "row", "column")
"""Columns of a token map that make up the address of a position."""


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
    """Build hooks that write activations of one pass into passes over other inputs, at positions of the same address.

    A position's address is its role and, for visual tokens, its picture, view, row and column. Two pictures of one
    grid with one question correspond everywhere, also if they are padded differently. Inputs with different questions
    still correspond at `image` or at `last`.

    Args:
        cache: The cache of the source's `run_with_cache`. For `pattern`, rows: run it with `queries` set to the
            positions that are patched.
        source: `tokens` of the inputs whose activations they are.
        target: `tokens` of the inputs that are patched.
        point: A hook point of heads: `z`, `o_in`, `q`, `k`, `v`, `pattern`; or of the residual stream: `resid_pre`,
            `attn_out`, `resid_mid`, `mlp_out`, `resid_post`. `k` and `v` are patched where they stand in the sequence,
            for every query that attends to them.
        heads: For points of heads, the heads; for `k` and `v`, key-value heads, which groups of heads share.
        layers: For points of the residual stream, the layers.
        positions: By name, or as a mask of the target; None for all that are not padding.

    Returns:
        One hook per layer, which acts in the prompt.

    Raises:
        ValueError: If positions do not correspond; shows both. If the cache does not hold the point in a layer, a head
            does not exist, or heads are given where layers are meant.
    """
    check_choice("point", point, (*get_args(HeadPoint), *get_args(StreamPoint)))
    by_head = point in get_args(HeadPoint)
    heads, layers = tuple(heads), tuple(layers)
    if bool(layers) == by_head and (heads or layers):
        raise ValueError(f"hook_{point} is patched by {'heads' if by_head else 'layers'}.")
    if isinstance(cache, ActivationCache) and point not in ("k", "v"):
        model: Any = cache.model
        model.check_heads(heads)
    index = align(source, target, positions)
    where = PositionSelector(index >= 0, "prefill")
    hooks: FwdHooks = []
    numbers_by_layer = HeadSet(heads).by_layer() if by_head else {layer: [] for layer in layers}
    for layer, numbers in numbers_by_layer.items():
        layer_heads = tuple(Head(layer, number) for number in numbers)
        name = hook_name(layer, f"attn.{point}") if by_head else hook_name(layer, point)
        if name not in list(cache):
            raise ValueError(f"the cache does not hold {name}; keep it, e.g. with names_filter={name!r}.")
        if point == "pattern":
            rows = _aligned_rows(cache[name], source, index, align(source, target, None))
            hooks.append((name, ReplaceRows(layer_heads, where, rows)))
            continue
        activations = cache[name] if by_head else cache[name][:, :, None]
        if activations.shape[:2] != source.role.shape:
            raise ValueError(
                f"{name} in the cache has (batch, position) = {tuple(activations.shape[:2])}, and the source's token "
                f"map {tuple(source.role.shape)}: it belongs to other inputs."
            )
        for number in numbers:
            if number >= activations.shape[2]:
                raise ValueError(
                    f"L{layer}H{number} has no {point} of its own: layer {layer} has {activations.shape[2]}."
                )
        hooks.append((name, Replace(name, layer_heads, where, AlignedActivations(activations, index))))
    return hooks


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
    """Build hooks that patch a head's output on its path to some later heads alone, or to the logits alone.

    On the path every later head has its output without the patch, and MLPs compute theirs from what reaches them, as
    in path patching by Wang et al. (arXiv 2211.00593). For receivers this runs the inputs twice.

    Args:
        model: The model.
        cache: The source's cache of `z` in the sender's layer.
        source: `tokens` of the source's inputs.
        inputs: The inputs that are patched.
        sender: The head whose output is that of the source.
        receivers: Heads of later layers that read the patched output; none for the logits.
        through: The receivers' queries, keys or values; for keys and values, `receivers` are key-value heads.
        positions: Where the sender is patched; see `patch`.

    Returns:
        Hooks for passes over the same inputs.

    Raises:
        ValueError: If a receiver is not in a later layer, or positions do not correspond.
    """
    receivers = tuple(receivers)
    model.check_heads((sender, *receivers))
    if early := [str(head) for head in receivers if head.layer <= sender.layer]:
        raise ValueError(f"{sender} does not reach {', '.join(early)}: receivers stand in later layers.")
    later_heads = [head for head in model.heads if head.layer > sender.layer]
    later_names = [name for name in model.attn_names("z") if layer_of(name) > sender.layer]
    hooks = patch(cache, source, inputs.tokens, heads=[sender], positions=positions)
    if later_heads:  # no head stands between the last layer and the logits
        _, clean_cache = model.run_with_cache(inputs, names_filter=later_names)
        hooks += patch(clean_cache, inputs.tokens, inputs.tokens, heads=later_heads)
    if not receivers:
        return hooks
    receiver_names = sorted({hook_name(head.layer, f"attn.{through}") for head in receivers})
    with model.hooks(fwd_hooks=hooks):
        _, receiver_cache = model.run_with_cache(inputs, names_filter=receiver_names)
    return patch(receiver_cache, inputs.tokens, inputs.tokens, through, heads=receivers)


def align(
    source: TokenMap, target: TokenMap, positions: PositionName | Bool[Tensor, "batch position"] | None
) -> Int[Tensor, "batch position"]:
    """Find for every chosen target position the source position of the same address; -1 for all others.

    Raises:
        ValueError: If the chosen positions of some sample have other addresses in the source; shows both.
    """
    if len(source) != len(target):
        raise ValueError(f"the source has {len(source)} samples and the target {len(target)}: {source}; {target}.")
    if isinstance(positions, str):
        source_mask, target_mask = getattr(source, positions), getattr(target, positions)
    else:
        # A mask is one of the target; in the source it means the positions of the same order.
        source_mask, target_mask = ~source.padding, ~target.padding
    index = torch.full(target.role.shape, -1, device=target.role.device)
    for sample in range(len(target)):
        sources, targets = source_mask[sample].nonzero()[:, 0], target_mask[sample].nonzero()[:, 0]
        columns = [(getattr(source, c)[sample, sources], getattr(target, c)[sample, targets]) for c in MATCHED_COLUMNS]
        if len(sources) != len(targets) or not all(torch.equal(a.to(b), b) for a, b in columns):
            raise ValueError(
                f"sample {sample}: {positions if isinstance(positions, str) else 'all'} positions of the source do "
                f"not have the addresses of those of the target. Source: {source[sample]}. Target: {target[sample]}. "
                f"Choose positions that both have, e.g. positions='last'. {docs_link('alignment')}"
            )
        index[sample, targets] = sources.to(index)
    return torch.where(positions.to(index.device), index, -1) if isinstance(positions, Tensor) else index


@dataclass(frozen=True, eq=False)
class AlignedActivations:
    """Activations of the source by position of the target; the reference of a `Replace` hook."""

    activations: Float[Tensor, "batch source head d_head"]
    index: Int[Tensor, "batch position"]

    def check(self, name: str, where: PositionSelector, state: PassState) -> None:
        """Accept every pass: `align` has found a source for each position that is patched."""

    def at(
        self, name: str, state: PassState, positions: Int[Tensor, "position"]
    ) -> Float[Tensor, "sample position head d_head"]:
        """Activations of the source at the positions that correspond to these."""
        index = self.index.to(self.activations.device)[:, positions.clamp(max=self.index.shape[1] - 1)].clamp(min=0)
        return self.activations[torch.arange(len(index))[:, None], index]


@dataclass(frozen=True, eq=False)
class ReplaceRows:
    """Replaces rows of attention patterns."""

    heads: tuple[Head, ...]
    where: PositionSelector
    rows: Float[Tensor, "batch head row key"] = field(repr=False)

    def check(self, state: PassState) -> None:
        """Raise a ValueError if a pass in this state cannot act at these rows."""
        self.where.check(state)
        state.check_keys(self.heads[0].layer)

    def __call__(self, pattern: Float[Tensor, "batch head row key"], hook: Any) -> Tensor:
        rows = self.rows.repeat_interleave(len(pattern) // len(self.rows), 0).to(pattern)
        if rows.shape[2] != pattern.shape[2]:
            raise ValueError(
                f"{hook.name} computes {pattern.shape[2]} of the {rows.shape[2]} rows that are patched: patch them in "
                f"one pass over the whole prompt."
            )
        pattern = pattern.clone()
        numbers = [number for _, number in self.heads]
        # A pass over part of the prompt has fewer keys; later ones have no weight in a causal row.
        pattern[:, numbers] = pad(rows, (0, pattern.shape[-1] - rows.shape[-1]))[:, numbers]
        return pattern


def _aligned_rows(
    rows: Float[Tensor, "batch head row source"],
    source: TokenMap,
    index: Int[Tensor, "batch key"],
    keys: Int[Tensor, "batch key"],
) -> Float[Tensor, "batch head row key"]:
    """Rows of the source's patterns, with their keys in the order of the target."""
    shape = (len(source), row_mask(index >= 0).shape[1], source.role.shape[1])
    if (len(rows), *rows.shape[2:]) != shape:
        raise ValueError(
            f"the cache holds patterns of (batch, row, key) = {(len(rows), *rows.shape[2:])}, and patching these "
            f"positions needs {shape}: run the source with queries=, the same positions of its own."
        )
    keys = keys.to(rows.device)[:, None, None].expand(*rows.shape[:3], -1)
    return rows.gather(-1, keys.clamp(min=0)).masked_fill(keys < 0, 0)
