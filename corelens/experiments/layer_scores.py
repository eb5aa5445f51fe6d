"""Head scores of one layer, from the attention of its query tokens."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corelens import metrics as M
from corelens.hooks.points import layer_of
from corelens.hooks.rows import QueryRows
from corelens.metrics import Metric
from corelens.metrics.head_score import mean_over_queries
from corelens.metrics.presets import Queries
from corelens.model import HookedMLLM
from corelens.tokens import TokenMap


@dataclass(frozen=True)
class ScoringInputs:
    """Masks by which a pass is scored."""

    tokens: TokenMap
    evidence: Bool[Tensor, "batch position"] | Float[Tensor, "batch position"]
    """Positions of the evidence, as weights in [0, 1] if it covers tokens in part."""

    queries: Mapping[str, Bool[Tensor, "batch position"]]
    """Query tokens, by the kinds that the metrics name."""

    answer_tokens: Int[Tensor, "batch position"]
    """Next token of each position, -1 where none is known; for metrics weighted by contribution to the answer."""

    @property
    def every_query(self) -> Bool[Tensor, "batch position"]:
        """Query tokens of any kind: the rows of the pattern that a pass computes."""
        return torch.stack(list(self.queries.values())).any(0)


@dataclass(frozen=True)
class LayerAttention:
    """Attention of the query tokens in one layer."""

    model: HookedMLLM
    inputs: ScoringInputs
    layer: int
    pattern: Float[Tensor, "batch head row key"]
    activations: Mapping[str, Tensor]
    """Activations at earlier hook points of the layer, as far as the metrics need them."""

    @cached_property
    def rows(self) -> QueryRows:
        """Positions of the pattern's rows."""
        return QueryRows.of(self.inputs.every_query.to(self.pattern.device))

    def to_device(self, mask: Tensor) -> Tensor:
        """The mask on the device of the pattern."""
        return mask.to(self.pattern.device)

    def query_rows(self, queries: str) -> Bool[Tensor, "batch row"]:
        """Mask of the rows that are query tokens of a kind."""
        return self.to_device(self.inputs.queries[queries]).gather(1, self.rows.position) & self.rows.real

    @cached_property
    def sinks(self) -> Bool[Tensor, "batch position"]:
        """Mask of the attention sinks."""
        return M.attention_sinks(self.activations["resid_pre"]).to(self.pattern.device)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output projection of each head."""
        return self.model.blocks[self.layer].attn.W_O  # pyright: ignore

    def contributions(self, metric: Metric) -> Float[Tensor, "batch head row key"]:
        """The pattern, weighted by head outputs if the metric says so."""
        if metric.contribution == "attention":
            return self.pattern
        # Only keys that count are weighted, which are few if only the evidence does.
        evidence_only = metric.reduction in ("sum", "mean", "max") and metric.normalisation in ("none", "size")
        keys = self.to_device(self.inputs.evidence).bool().any(0) if evidence_only else slice(None)
        weighted = torch.zeros_like(self.pattern)
        weighted[..., keys] = self.pattern[..., keys] * self._weights(metric, self.activations["v"][:, keys])
        return weighted

    def _weights(
        self, metric: Metric, values: Float[Tensor, "batch key kv_head d_head"]
    ) -> Float[Tensor, "batch head #row key"]:
        """Norms or logit contributions of the head outputs from some keys."""
        if metric.contribution == "write_size":
            return M.output_norms(values, self.W_O)
        targets = self.to_device(self.inputs.answer_tokens)
        # Question tokens have no target: their outputs are weighted by the answer's first token.
        first = targets.gather(1, (targets >= 0).to(torch.uint8).argmax(-1, keepdim=True))
        of_rows = targets.gather(1, self.rows.position)
        unembedding = self.model.W_U.T
        tokens = torch.where(of_rows >= 0, of_rows, first).to(unembedding.device)
        direction = unembedding[tokens].to(self.pattern.device)
        return M.logit_contributions(values, self.W_O, direction)

    def score(self, metric: "AnyMetric") -> Float[Tensor, "batch head"]:
        """A metric, without its baseline."""
        if isinstance(metric, str):
            return DESCRIPTIVE_METRICS[metric].score(self, self.query_rows(query_kind(metric)))
        visual = self.to_device(self.inputs.tokens.visual)
        return M.head_score(
            self.contributions(metric),
            self.to_device(self.inputs.evidence),
            self.query_rows(metric.queries),
            visual,
            metric.reduction,
            metric.normalisation,
            self.sinks & visual if metric.sinks == "excluded" else None,
        )


Rows = Bool[Tensor, "batch row"]
"""Mask of the rows of a pattern that are query tokens."""


def _sink_share(layer: LayerAttention, queries: Rows) -> Float[Tensor, "batch head"]:
    # A sequence may hold no sink, and then no attention goes to one.
    to_sinks = reduce(layer.pattern * layer.sinks[:, None, None], "batch head row key -> batch head row", "sum")
    return mean_over_queries(to_sinks, queries)


def _visual_share(layer: LayerAttention, queries: Rows) -> Float[Tensor, "batch head"]:
    return M.visual_share(layer.pattern, layer.to_device(layer.inputs.tokens.visual), queries)


def _entropy(layer: LayerAttention, queries: Rows) -> Float[Tensor, "batch head"]:
    return M.attention_entropy(layer.pattern, queries)


def _write_norm(layer: LayerAttention, queries: Rows) -> Float[Tensor, "batch head"]:
    norms = M.write_norms(layer.pattern, layer.activations["v"], layer.W_O)
    return mean_over_queries(norms, queries)


def _spatial_entropy(layer: LayerAttention, queries: Rows) -> Float[Tensor, "batch head"]:
    """Spatial entropy over the first picture with a grid: over its overview if it has one, else its first view."""
    entropies = []
    for sample, rows in enumerate(queries):
        tokens = layer.inputs.tokens[sample].to(layer.pattern.device)
        in_grid = tokens.row >= 0
        if not in_grid.any():
            entropies.append(layer.pattern.new_full(layer.pattern.shape[1:2], torch.nan))
            continue
        picture = in_grid & (tokens.media == tokens.media[in_grid].min())
        overview = picture & tokens.overview
        first = (overview if overview.any() else picture).nonzero()[0, 1]
        attention = reduce(layer.pattern[sample, :, rows], "head row key -> head key", "mean")
        grid = tokens.grid(attention, int(tokens.media[0, first]), int(tokens.view[0, first]))
        entropies.append(M.spatial_entropy(grid))
    return torch.stack(entropies)


@dataclass(frozen=True)
class DescriptiveMetric:
    """A metric of a head's attention that needs no evidence."""

    score: Callable[[LayerAttention, Rows], Float[Tensor, "batch head"]]
    queries: Literal["question", "last"] = "last"
    needs_values: bool = False


DESCRIPTIVE_METRICS = {
    "vision_heads": DescriptiveMetric(_visual_share, "question"),
    "visual_share": DescriptiveMetric(_visual_share),
    "question_entropy": DescriptiveMetric(_entropy, "question"),
    "question_spatial_entropy": DescriptiveMetric(_spatial_entropy, "question"),
    "question_write_norm": DescriptiveMetric(_write_norm, "question", needs_values=True),
    "entropy": DescriptiveMetric(_entropy),
    "concentration": DescriptiveMetric(lambda layer, queries: M.concentration(layer.pattern, queries)),
    "distance": DescriptiveMetric(
        lambda layer, queries: M.attention_distance(layer.pattern, queries, layer.rows.position)
    ),
    "sink_share": DescriptiveMetric(_sink_share),
    "spatial_entropy": DescriptiveMetric(_spatial_entropy),
    "write_norm": DescriptiveMetric(_write_norm, needs_values=True),
}
"""Metrics that need no evidence. `vision_heads`: attention of the question's tokens to all visual tokens, by which
arXiv 2606.05843 ranks vision heads (section 4.2). Of the others, those named `question_` take the question's tokens,
too, and all else the last prompt token; see the functions of these names in `corelens.metrics`."""

AnyMetric = Metric | str
"""A metric, or the name of one in `DESCRIPTIVE_METRICS`."""


def metric_name(metric: AnyMetric) -> str:
    """The name of a metric, which is also that of its file."""
    return metric.name if isinstance(metric, Metric) else metric


def query_kind(metric: AnyMetric) -> Queries:
    """The query tokens of a metric."""
    return metric.queries if isinstance(metric, Metric) else DESCRIPTIVE_METRICS[metric].queries


def check_can_score(model: HookedMLLM, metrics: Iterable[AnyMetric]) -> None:
    """Raise a ValueError if a metric needs matrices that the model does not have, before any pass."""
    for metric in filter(needs_values, metrics):
        try:
            for name in model.attn_names("v"):
                _ = model.blocks[layer_of(name)].attn.W_O  # pyright: ignore
            if isinstance(metric, Metric) and metric.contribution == "write_answer":
                _ = model.W_U
        except ValueError as cause:
            raise ValueError(f"{metric_name(metric)} cannot be computed: {cause}") from cause


def needs_values(metric: AnyMetric) -> bool:
    """True if a metric is computed from the values of the layer."""
    if isinstance(metric, Metric):
        return metric.contribution != "attention"
    return DESCRIPTIVE_METRICS[metric].needs_values


def needs_sinks(metric: AnyMetric) -> bool:
    """True if a metric is computed from the residual stream, in which sinks are found."""
    return metric.sinks == "excluded" if isinstance(metric, Metric) else metric == "sink_share"
