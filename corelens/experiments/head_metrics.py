"""Head scores in one pass over one batch: every layer is reduced to one number per head before the next one runs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from corelens import metrics
from corelens.hf.prefix_cache import PrefixCache
from corelens.hooks.rows import QueryRows
from corelens.metrics import Metric
from corelens.metrics.head_score import mean_over_queries
from corelens.model import HookedMLLM
from corelens.tokens import TokenMap

Evidence = Bool[Tensor, "batch position"] | Float[Tensor, "batch position"]
"""Which positions hold the evidence, as weights in [0, 1] if it covers tokens in part."""


@dataclass(frozen=True)
class ScoringInputs:
    """What a pass is measured with."""

    tokens: TokenMap
    evidence: Evidence
    queries: Mapping[str, Bool[Tensor, "batch position"]]
    """The query tokens of each kind that the measures name."""

    answer_tokens: Int[Tensor, "batch position"]
    """The token that each position says, -1 where none is known; for measures that weigh writing."""

    @property
    def every_query(self) -> Bool[Tensor, "batch position"]:
        """Query tokens of any kind: the rows that a pass has to show."""
        return torch.stack(list(self.queries.values())).any(0)


@dataclass(frozen=True)
class LayerAttention:
    """What one layer shows of the query tokens' attention."""

    model: HookedMLLM
    inputs: ScoringInputs
    layer: int
    pattern: Float[Tensor, "batch head row key"]
    activations: Mapping[str, Tensor]
    """What other hook points of the layer showed before, of those that the measures need."""

    @cached_property
    def rows(self) -> QueryRows:
        """Which positions the rows of the pattern are."""
        return QueryRows.of(self.inputs.every_query.to(self.pattern.device))

    def of(self, mask: Tensor) -> Tensor:
        return mask.to(self.pattern.device)

    def chosen(self, queries: str) -> Bool[Tensor, "batch row"]:
        """Which rows are query tokens of a kind."""
        return self.of(self.inputs.queries[queries]).gather(1, self.rows.position) & self.rows.real

    @cached_property
    def sinks(self) -> Bool[Tensor, "batch position"]:
        return metrics.attention_sinks(self.activations["resid_pre"]).to(self.pattern.device)

    def contributions(self, metric: Metric) -> Float[Tensor, "batch head row key"]:
        """The pattern, times what the heads write if the metric weighs it."""
        if metric.contribution == "attention":
            return self.pattern
        # Only what counts is weighed, which is little if that is the evidence alone.
        alone = metric.reduction in ("sum", "mean", "max") and metric.normalisation in ("none", "size")
        counts = self.of(self.inputs.evidence).bool().any(0) if alone else slice(None)
        weighed = torch.zeros_like(self.pattern)
        weighed[..., counts] = self.pattern[..., counts] * self._weights(metric, self.activations["v"][:, counts])
        return weighed

    def _weights(
        self, metric: Metric, values: Float[Tensor, "batch key kv_head d_head"]
    ) -> Float[Tensor, "batch head #row key"]:
        """What the heads would write from some keys: how much, or how far towards the answer."""
        W_O: Tensor = self.model.blocks[self.layer].attn.W_O  # pyright: ignore
        if metric.contribution == "write_size":
            return metrics.output_norms(values, W_O)
        said = self.of(self.inputs.answer_tokens)
        # Tokens of the question say nothing: what they fetch is weighed for the answer's first token.
        first = said.gather(1, (said >= 0).to(torch.uint8).argmax(-1, keepdim=True))
        own = said.gather(1, self.rows.position)
        unembedding = self.model.W_U.T
        direction = unembedding[torch.where(own >= 0, own, first).to(unembedding.device)].to(self.pattern.device)
        return metrics.logit_contributions(values, W_O, direction)

    def score(self, metric: Metric) -> Float[Tensor, "batch head"]:
        """A metric, before a baseline is taken off."""
        visual = self.of(self.inputs.tokens.visual)
        return metrics.head_score(
            self.contributions(metric),
            self.of(self.inputs.evidence),
            self.chosen(metric.queries),
            visual,
            metric.reduction,
            metric.normalisation,
            self.sinks & visual if metric.sinks == "excluded" else None,
        )


def _sink_share(look: LayerAttention) -> Float[Tensor, "batch head"]:
    # A sequence may hold no sink, and then no attention goes to one.
    to_sinks = reduce(look.pattern * look.sinks[:, None, None], "batch head row key -> batch head row", "sum")
    return mean_over_queries(to_sinks, look.chosen("last"))


def _distance(look: LayerAttention) -> Float[Tensor, "batch head"]:
    return metrics.attention_distance(look.pattern, look.chosen("last"), look.rows.position)


def _spatial_entropy(look: LayerAttention) -> Float[Tensor, "batch head"]:
    """Of the first picture with a grid: of its overview if it has one, else of its first view."""
    found = []
    for sample, row in enumerate(look.chosen("last")):
        tokens = look.inputs.tokens[sample].to(look.pattern.device)
        seen = (
            (tokens.row >= 0) & (tokens.media == tokens.media[tokens.row >= 0].min()) if tokens.row.max() >= 0 else None
        )
        if seen is None:
            found.append(look.pattern.new_full(look.pattern.shape[1:2], torch.nan))
            continue
        first = (seen & tokens.overview if (seen & tokens.overview).any() else seen).nonzero()[0, 1]
        of_key = reduce(look.pattern[sample, :, row], "head row key -> head key", "mean")
        found.append(
            metrics.spatial_entropy(tokens.grid(of_key, int(tokens.media[0, first]), int(tokens.view[0, first])))
        )
    return torch.stack(found)


DESCRIPTIVE_METRICS: dict[str, Callable[[LayerAttention], Float[Tensor, "batch head"]]] = {
    "entropy": lambda look: metrics.attention_entropy(look.pattern, look.chosen("last")),
    "concentration": lambda look: metrics.concentration(look.pattern, look.chosen("last")),
    "distance": _distance,
    "visual_share": lambda look: metrics.visual_share(look.pattern, look.inputs.tokens.visual, look.chosen("last")),
    "sink_share": _sink_share,
    "spatial_entropy": _spatial_entropy,
}
"""What heads do whatever the evidence is, by the last token of the prompt; see the functions of the same names in
`corelens.metrics`."""

AnyMetric = Metric | str
"""A metric, or the name of a description."""


@torch.no_grad()
def score_heads(
    model: HookedMLLM,
    inputs: Mapping[str, Any],
    asked: ScoringInputs,
    measures: Sequence[AnyMetric],
    prefix: PrefixCache | None = None,
) -> dict[str, Float[Tensor, "batch layer head"]]:
    """Every measure of every head in one pass over one batch; nothing of the pass is kept.

    Args:
        model: The model.
        inputs: The tensors of the pass.
        asked: What to measure with.
        measures: Metrics, whose baseline is not taken off here, and names of descriptions.
        prefix: What `model.prefix` computed of these inputs, if all query tokens come after it.

    Returns:
        By name, on the CPU; NaN where there is no head: in layers without softmax attention, and in layers with fewer
        heads than others.
    """
    found: dict[str, dict[int, Tensor]] = {metric_name(one): {} for one in measures}
    shown: dict[str, Tensor] = {}
    if any(map(_needs_sinks, measures)):
        prefix = None  # sinks are seen in the residual stream of all positions

    def keep(tensor: Tensor, hook: Any) -> None:
        if prefix is not None:  # sliding caches drop the first keys
            dropped = asked.tokens.role.shape[1] - tensor.shape[1]
            tensor = pad(tensor, (0, 0, 0, 0, dropped, 0))
        shown[hook.name.rpartition("hook_")[2]] = tensor

    def look(pattern: Tensor, hook: Any) -> None:
        seen = LayerAttention(model, asked, hook.layer(), pattern, shown)
        for one in measures:
            score = seen.score(one) if isinstance(one, Metric) else DESCRIPTIVE_METRICS[one](seen)
            found[metric_name(one)][hook.layer()] = score
        shown.clear()

    patterns = model.attn_names("pattern")
    hooks = [(name.replace("pattern", "v"), keep) for name in patterns if any(map(_weighs_writing, measures))]
    if any(map(_needs_sinks, measures)):
        hooks += [(name.replace("attn.hook_pattern", "hook_resid_pre"), keep) for name in patterns]
    hooks += [(name, look) for name in patterns]
    takes = inspect.signature(model.hf_model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    # Nobody reads the logits or the cache of a scan.
    savings = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    savings |= {"use_cache": False} if prefix is None and (takes_any or "use_cache" in takes) else {}
    with model.hooks(fwd_hooks=hooks, queries=asked.every_query):
        model(inputs, prefix=prefix, **savings)
    return {name: _by_layer(of_layer, model) for name, of_layer in found.items()}


def metric_name(one: AnyMetric) -> str:
    return one.name if isinstance(one, Metric) else one


def _weighs_writing(one: AnyMetric) -> bool:
    return isinstance(one, Metric) and one.contribution != "attention"


def _needs_sinks(one: AnyMetric) -> bool:
    return one.sinks == "excluded" if isinstance(one, Metric) else one == "sink_share"


def _by_layer(found: Mapping[int, Float[Tensor, "batch head"]], model: HookedMLLM) -> Float[Tensor, "batch layer head"]:
    """Layers in order; NaN where there is no head."""
    batch = len(next(iter(found.values())))
    whole = torch.full((batch, model.cfg.n_layers, model.cfg.n_heads), torch.nan)
    for layer, values in found.items():
        whole[:, layer, : values.shape[1]] = values
    return whole
