"""QK attribution: the attention logit of a head from one query to some keys, as a sum over parts of both streams."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from corelens.causal.stream_parts import StreamPart, names_of_parts, stream_parts
from corelens.errors import optional_import
from corelens.heads import Head, as_head
from corelens.hf.layers import AttentionModule
from corelens.hf.norms import NormWeights
from corelens.hooks.attention import MASKED_LOGIT, AttentionCall
from corelens.hooks.connect import begin_pass
from corelens.hooks.points import hook_name
from corelens.hooks.positions import PassState, Positions
from corelens.hooks.query_key_map import QueryKeyMap, record_call
from corelens.hooks.rows import QueryRows
from corelens.model import HookedMLLM

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class QKAttribution:
    """Attention logits of one head from one query to some keys, divided among pairs of parts."""

    values: Float[Tensor, "query_part key key_part"]
    """Share of each pair in the logit of each key; they sum to `scores`."""

    scores: Float[Tensor, "key"]
    """The logits: query times key times the scaling, before a soft cap and before biases by position are added. Less
    their mean over the keys of `against`, if these were given."""

    head: Head
    query_parts: tuple[str, ...]
    """Names of what the query is made of: `embedding`, `L0H3`, `L0 MLP`, `b_Q` and so on."""

    key_parts: tuple[str, ...]
    """The same of the keys, with `b_K`."""

    query: str
    """The query's word."""

    keys: tuple[str, ...]
    """The words of the keys; visual tokens are `image 3,5`, row and column."""

    positions: Int[Tensor, "key"]
    """Positions of the keys."""

    def table(self, n: int = 20) -> list[dict[str, Any]]:
        """The `n` pairs with the largest shares by size, as rows with `query`, `key` and `share`."""
        flat = self.values.flatten()
        rows = []
        for index in flat.abs().topk(min(n, len(flat))).indices.tolist():
            rest, key_part = divmod(index, len(self.key_parts))
            query_part, key = divmod(rest, len(self.keys))
            rows.append(
                {
                    "query": f"{self.query_parts[query_part]} at {self.query}",
                    "key": f"{self.key_parts[key_part]} at {self.keys[key]}",
                    "share": float(flat[index]),
                }
            )
        return rows

    def to_frame(self, n: int = 20) -> "DataFrame":
        """The rows of `table` as a data frame of pandas."""
        with optional_import("data"):
            from pandas import DataFrame

        return DataFrame(self.table(n))


@torch.no_grad()
def qk_attribution(
    model: HookedMLLM,
    inputs: Mapping[str, Any],
    head: Head,
    query: Positions,
    keys: Positions,
    against: Positions | None = None,
) -> QKAttribution:
    r"""Divide a head's attention logits among the parts of the residual stream that its query and its keys are made of.

    $$s_{q,k} = c \sum_i \sum_j \big\langle Q_q\, x_{i,q},\; K_k\, x_{j,k} \big\rangle$$

    $x_i$ are what the embedding, each earlier head and each earlier MLP wrote, and biases; $Q$ and $K$ are the layer's
    norm, projections, norms of queries and keys and rotation at a position, applied by the model's own code. Norms are
    held at the scale that they had in the pass: an attribution says what was read, not what a norm would do without it.
    That the shares sum to the logits is checked.

    A logit that is the same for all keys changes no attention. To ask why a head attends to one region *rather than*
    elsewhere, give the other keys as `against`.

    Args:
        model: The model.
        inputs: One prompt, from `prepare`, or a mapping of its tensors.
        head: The head.
        query: One position: `last`, or a mask that selects one.
        keys: Positions of the keys, such as those of a box. Shares take memory for every key and every pair of parts.
        against: Keys whose mean is taken off; None for none.

    Returns:
        Shares of each pair of parts. A layer whose insides are not known is one part.

    Raises:
        ValueError: If there are several prompts or queries, the query cannot attend to a key, the head does not exist,
            its keys are not made from the stream, or what stands before its queries is not known.

    Source:
        Kamath et al. 2025, "Tracing attention computation through feature interactions"; theirs are features of
        dictionaries, ours are what heads and MLPs wrote. `against` is ours.
    """
    head = as_head(head)
    attention = _self_attention(model, head)
    state = begin_pass(model.hf_model, model.hf_layers, inputs, getattr(inputs, "tokens", None))
    if state.n_samples != 1 or state.n_cached:
        raise ValueError(
            f"the attribution is of one whole prompt, and these are {state.n_samples}: prepare one of them."
        )
    where = _Places.of(state, query, keys, against)
    with record_call(attention.module) as call:
        _, cache = model.run_with_cache(inputs, names_filter=names_of_parts(model, head.layer))
    if call.stream.shape[1] != state.n_prompt:
        raise ValueError(
            f"layer {head.layer} computes {call.stream.shape[1]} positions, which are not the {state.n_prompt} of the "
            f"prompt: where its queries and keys are is not known."
        )
    resid_pre = cache[hook_name(head.layer, "resid_pre")]
    norm = _input_norm(model, head.layer, resid_pre, call.stream)
    makes = QueryKeyMap(model, attention, call)
    where.check_visible(makes.measured, head)
    zero_query, zero_keys = where.vectors(makes(torch.zeros_like(call.stream)), head)
    of_query, of_keys = dict[str, Tensor](), dict[str, Tensor]()
    for name, part in _as_read(norm, resid_pre, stream_parts(model, cache, head.layer)):
        part_query, part_keys = where.vectors(makes(part), head)
        of_query[name], of_keys[name] = part_query - zero_query, part_keys - zero_keys
    of_query |= {"b_Q": zero_query} if zero_query.any() else {}
    of_keys |= {"b_K": zero_keys} if zero_keys.any() else {}
    values = einsum(
        torch.stack([*of_query.values()]),
        torch.stack([*of_keys.values()]),
        "query_part d, key_part key d -> query_part key key_part",
    )
    scores = einsum(*where.vectors(makes.measured, head), "d, key d -> key")
    factor = makes.measured.scaling or scores.new_tensor(len(zero_query) ** -0.5)
    values, scores = factor * values, factor * scores
    _check_sum(values, scores, head, call.stream.dtype)
    words = _words(model, inputs, state.n_prompt)
    at_keys = tuple(words[position] for position in where.keys.tolist())
    return QKAttribution(values, scores, head, (*of_query,), (*of_keys,), words[where.query], at_keys, where.keys)


@dataclass(frozen=True, eq=False)
class _Places:
    """Positions of the query and of the keys."""

    query: int
    keys: Int[Tensor, "key"]
    against: Int[Tensor, "other_key"] | None

    @classmethod
    def of(cls, state: PassState, query: Positions, keys: Positions, against: Positions | None) -> "_Places":
        """Read them from names or masks of one prompt."""
        rows, of_keys = _selected(state, query, "query"), _selected(state, keys, "keys")
        others = None if against is None else _selected(state, against, "against")
        if len(rows) != 1:
            raise ValueError(
                f"query selects {len(rows)} positions, and an attribution is of one, such as query='last'."
            )
        return cls(int(rows[0]), of_keys, others)

    def check_visible(self, call: AttentionCall, head: Head) -> None:
        """Raise a ValueError if the query cannot attend to one of the keys."""
        row = torch.tensor([[self.query]], device=call.query.device)
        scores = call.scores(QueryRows(row, torch.ones_like(row, dtype=torch.bool)))[0, head.head, 0].cpu()
        for name, positions in (("keys", self.keys), ("against", self.against)):
            if positions is not None and len(hidden := positions[scores[positions] < MASKED_LOGIT]):
                raise ValueError(
                    f"{head} cannot attend from position {self.query} to position {int(hidden[0])}, which `{name}` "
                    f"selects: it is later, padding, or outside of the layer's window. Leave it out."
                )

    def vectors(self, call: AttentionCall, head: Head) -> tuple[Float[Tensor, "d_qk"], Float[Tensor, "key d_qk"]]:
        """The head's query and its keys, less the mean of those that they are compared with."""
        key_head = head.head // (call.query.shape[1] // call.key.shape[1])
        all_keys = call.key[0, key_head].float()
        keys = all_keys[self.keys.to(all_keys.device)]
        return call.query[0, head.head, self.query].float(), (
            keys if self.against is None else keys - all_keys[self.against.to(all_keys.device)].mean(0)
        )


def _selected(state: PassState, positions: Positions, name: str) -> Int[Tensor, "chosen"]:
    """Numbers of the positions of one prompt that a mask or a name selects."""
    chosen = state.mask(positions, name)[0].cpu().nonzero().flatten()
    if not len(chosen):
        raise ValueError(f"{name} selects no position of this prompt.")
    return chosen


def _self_attention(model: HookedMLLM, head: Head) -> AttentionModule:
    model.check_heads([head])
    attention = model.hf_layers[head.layer].attentions["attn"]
    if attention.is_cross_attention:
        raise ValueError(f"{head} attends to an encoder, so that its keys are no positions of the residual stream.")
    return attention


def _input_norm(
    model: HookedMLLM, layer: int, resid_pre: Tensor, stream: Float[Tensor, "batch position d_model"]
) -> NormWeights | None:
    """Norm between the residual stream and what attention reads; None if it reads the stream itself."""
    # Any: pyright sees no attributes of a module.
    norm: Any = model.blocks[layer]._modules.get("ln1")
    if norm is not None:
        return norm.weights
    if not torch.equal(resid_pre.to(stream), stream):
        raise ValueError(
            f"what stands between the residual stream and the attention of layer {layer} is not known: "
            f"{model.hf_layers[layer].missing['ln1']}."
        )
    return None


def _as_read(norm: NormWeights | None, resid_pre: Tensor, parts: Iterable[StreamPart]) -> Iterator[StreamPart]:
    """Parts of the stream as attention reads them, and the bias of the norm before it."""
    if norm is None:
        yield from parts
        return
    scale = norm.scale(resid_pre)
    for name, part in parts:
        yield name, norm.at_scale(part.to(scale), scale)
    if norm.bias.any():
        yield "norm's bias", norm.bias.expand_as(resid_pre)


def _check_sum(
    values: Float[Tensor, "query_part key key_part"], scores: Float[Tensor, "key"], head: Head, dtype: torch.dtype
) -> None:
    """Raise a ValueError if shares do not sum to the logits: queries or keys are made in another way."""
    missed = (values.sum((0, 2)) - scores).abs().max()
    if missed > max(1e-3, torch.finfo(dtype).eps ** 0.5) * values.abs().sum((0, 2)).max():
        raise ValueError(
            f"the logits of {head} are no sum of parts of the stream (off by {float(missed):.1e}): its queries or keys "
            f"are not made from what its layer reads by projections, norms and rotation alone."
        )


def _words(model: HookedMLLM, inputs: Mapping[str, Any], n_positions: int) -> list[str]:
    """Name of every position: its word in quotes, or the place of a visual token."""
    if model.processor is None or "input_ids" not in inputs:
        return [f"position {position}" for position in range(n_positions)]
    tokens = getattr(inputs, "tokens", None)
    visual = [False] * n_positions if tokens is None else tokens.visual[0].tolist()
    words: Any = model.to_str_tokens(inputs)
    return [word if is_visual else repr(word) for word, is_visual in zip(words, visual, strict=True)]
