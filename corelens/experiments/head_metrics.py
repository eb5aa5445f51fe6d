"""Head scores of one batch: each layer is reduced to one number per head before the next layer runs.

`score_batch` chooses the passes that the metrics of a scan need; `score_heads` is one pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from corelens import metrics as M
from corelens.causal.answers import answer_positions, answer_targets, append_answers, greedy_answers
from corelens.data import Sample, evidence_tokens
from corelens.experiments.passes import run_pattern_hooks, stack_layers
from corelens.experiments.resumable import prepare_samples, sample_errors
from corelens.hf.prefix_cache import PrefixCache
from corelens.hooks.attention import in_float32
from corelens.hooks.rows import QueryRows
from corelens.inputs.prepare import PreparedInputs
from corelens.metrics import Metric
from corelens.metrics.head_score import mean_over_queries
from corelens.metrics.presets import Queries
from corelens.model import HookedMLLM
from corelens.tokens import BoxRule, TokenMap, Views


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
        W_O: Tensor = self.model.blocks[self.layer].attn.W_O  # pyright: ignore
        if metric.contribution == "write_size":
            return M.output_norms(values, W_O)
        targets = self.to_device(self.inputs.answer_tokens)
        # Question tokens have no target: their outputs are weighted by the answer's first token.
        first = targets.gather(1, (targets >= 0).to(torch.uint8).argmax(-1, keepdim=True))
        of_rows = targets.gather(1, self.rows.position)
        unembedding = self.model.W_U.T
        tokens = torch.where(of_rows >= 0, of_rows, first).to(unembedding.device)
        direction = unembedding[tokens].to(self.pattern.device)
        return M.logit_contributions(values, W_O, direction)

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


DESCRIPTIVE_METRICS = {
    "vision_heads": DescriptiveMetric(_visual_share, "question"),
    "visual_share": DescriptiveMetric(_visual_share),
    "question_entropy": DescriptiveMetric(_entropy, "question"),
    "question_spatial_entropy": DescriptiveMetric(_spatial_entropy, "question"),
    "entropy": DescriptiveMetric(_entropy),
    "concentration": DescriptiveMetric(lambda layer, queries: M.concentration(layer.pattern, queries)),
    "distance": DescriptiveMetric(
        lambda layer, queries: M.attention_distance(layer.pattern, queries, layer.rows.position)
    ),
    "sink_share": DescriptiveMetric(_sink_share),
    "spatial_entropy": DescriptiveMetric(_spatial_entropy),
}
"""Metrics that need no evidence. `vision_heads`: attention of the question's tokens to all visual tokens, by which
arXiv 2606.05843 ranks vision heads (section 4.2). Of the others, those named `question_` take the question's tokens,
too, and all else the last prompt token; see the functions of these names in `corelens.metrics`."""

AnyMetric = Metric | str
"""A metric, or the name of one in `DESCRIPTIVE_METRICS`."""


@torch.no_grad()
def score_heads(
    model: HookedMLLM,
    inputs: Mapping[str, Any],
    scoring: ScoringInputs,
    metrics: Sequence[AnyMetric],
    prefix: PrefixCache | None = None,
) -> dict[str, Float[Tensor, "batch layer head"]]:
    """Score every head by every metric in one pass over one batch; no activation of the pass is kept.

    Args:
        model: The model.
        inputs: The tensors of the pass.
        scoring: Query tokens, evidence and answer tokens.
        metrics: Metrics, whose baselines are left out here, and names of `DESCRIPTIVE_METRICS`.
        prefix: As returned by `model.prefix` for these inputs, if all query tokens come after it.

    Returns:
        Scores by metric name, on the CPU; NaN where there is no head: in layers without softmax attention, and in
        layers with fewer heads than others.
    """
    scores: dict[str, dict[int, Tensor]] = {metric_name(metric): {} for metric in metrics}
    activations: dict[str, Tensor] = {}
    if any(map(_needs_sinks, metrics)):
        prefix = None  # sinks are found in the residual stream of all positions

    def keep(tensor: Tensor, hook: Any) -> None:
        if prefix is not None:  # sliding caches drop the first keys
            n_dropped = scoring.tokens.role.shape[1] - tensor.shape[1]
            tensor = pad(tensor, (0, 0, 0, 0, n_dropped, 0))
        activations[hook.name.rpartition("hook_")[2]] = tensor

    def score_layer(pattern: Tensor, hook: Any) -> None:
        layer = LayerAttention(model, scoring, hook.layer(), pattern, activations)
        for metric in metrics:
            scores[metric_name(metric)][hook.layer()] = layer.score(metric)
        activations.clear()

    patterns = model.attn_names("pattern")
    hooks = [(name.replace("pattern", "v"), keep) for name in patterns if any(map(_needs_values, metrics))]
    if any(map(_needs_sinks, metrics)):
        hooks += [(name.replace("attn.hook_pattern", "hook_resid_pre"), keep) for name in patterns]
    hooks += [(name, in_float32(score_layer)) for name in patterns]
    run_pattern_hooks(model, inputs, hooks, scoring.every_query, prefix)
    return {name: stack_layers(layers, model) for name, layers in scores.items()}


def metric_name(metric: AnyMetric) -> str:
    """The name of a metric, which is also that of its file."""
    return metric.name if isinstance(metric, Metric) else metric


def query_kind(metric: AnyMetric) -> Queries:
    """The query tokens of a metric."""
    return metric.queries if isinstance(metric, Metric) else DESCRIPTIVE_METRICS[metric].queries


def _needs_values(metric: AnyMetric) -> bool:
    return isinstance(metric, Metric) and metric.contribution != "attention"


def _needs_sinks(metric: AnyMetric) -> bool:
    return metric.sinks == "excluded" if isinstance(metric, Metric) else metric == "sink_share"


OTHER_QUESTIONS = {"minus_null": "N/A", "over_generic": "Describe the image."}
"""Questions that the baselines of metrics ask in place of the sample's own."""


@dataclass(frozen=True)
class ScanConfig:
    """Settings of a scan that shape its scores."""

    metrics: tuple[AnyMetric, ...]
    rule: BoxRule = "overlap"
    views: Views = "all"
    batch_size: int = 16
    max_new_tokens: int = 32


def score_batch(
    model: HookedMLLM, samples: Sequence[Sample], config: ScanConfig
) -> dict[str, Float[Tensor, "batch layer head"]]:
    """Score every head by all metrics of a scan on one batch.

    Raises:
        SampleError: If a sample cannot be scored.
    """
    by_sequence: dict[str, list[AnyMetric]] = {}
    for metric in config.metrics:
        by_sequence.setdefault(_sequence(metric), []).append(metric)
    if len(by_sequence) > 1 and (of_prompt := by_sequence.pop("prompt", [])):
        # Attention of the prompt does not change with what follows it: one pass serves both.
        next(iter(by_sequence.values())).extend(of_prompt)
    scores = {}
    for sequence, metrics in by_sequence.items():
        inputs, scoring = _scoring_inputs(model, samples, sequence, metrics, config)
        scores |= score_heads(model, inputs, scoring, metrics)
    # Baselines last: the same pass about another question.
    for baseline in OTHER_QUESTIONS:
        metrics = [metric for metric in config.metrics if isinstance(metric, Metric) and metric.baseline == baseline]
        if metrics:
            inputs, scoring = _scoring_inputs(model, _with_question(samples, baseline), "prompt", metrics, config)
            for name, score in score_heads(model, inputs, scoring, metrics).items():
                scores[name] = scores[name] - score if baseline == "minus_null" else scores[name] / score
    return scores


def _sequence(metric: AnyMetric) -> str:
    """Sequence that a metric needs: `prompt`, or `answer` or `generated` if an answer follows it."""
    if isinstance(metric, Metric):
        if metric.queries in ("generated", "uncertain"):
            return "generated"
        if metric.queries == "answer" or metric.contribution == "write_answer":
            return "answer"
    return "prompt"


def _scoring_inputs(
    model: HookedMLLM, samples: Sequence[Sample], sequence: str, metrics: Sequence[AnyMetric], config: ScanConfig
) -> tuple[PreparedInputs, ScoringInputs]:
    """Tensors of a pass, and the masks by which it is scored."""
    inputs = prepare_samples(model, samples)
    tokens = inputs.tokens
    n = tokens.role.shape[1]
    needs_evidence = any(isinstance(metric, Metric) for metric in metrics)
    with sample_errors():
        evidence = evidence_tokens(samples, tokens, config.rule, config.views) if needs_evidence else tokens.visual
    queries = {"last": tokens.last, "question": tokens.question}
    if sequence != "prompt":
        generated = sequence == "generated"
        answers = greedy_answers(model, inputs, config.max_new_tokens) if generated else [s.answer for s in samples]
        with sample_errors():
            inputs = append_answers(model, inputs, answers)
        padding = (0, inputs.tokens.role.shape[1] - n)
        evidence = pad(evidence, padding)
        queries = {name: pad(mask, padding) for name, mask in queries.items()}
        queries[sequence] = answer_positions(inputs.tokens)
        if any(isinstance(metric, Metric) and metric.queries == "uncertain" for metric in metrics):
            queries["uncertain"] = _most_uncertain(model, inputs)
    of_metrics = {kind: queries[kind] for kind in map(query_kind, metrics)}
    scoring = ScoringInputs(inputs.tokens, evidence, of_metrics, answer_targets(inputs))
    return inputs, scoring


def _with_question(samples: Sequence[Sample], baseline: str) -> list[Sample]:
    """The samples with the question of a baseline in place of their own."""
    return [sample.with_question(OTHER_QUESTIONS[baseline]) for sample in samples]


@torch.no_grad()
def _most_uncertain(model: HookedMLLM, inputs: PreparedInputs) -> Bool[Tensor, "batch position"]:
    """Mask of the answer position whose next-token distribution has the highest entropy."""
    positions = answer_positions(inputs.tokens)
    entropy = torch.distributions.Categorical(logits=model(inputs).float()).entropy()
    highest = entropy.masked_fill(~positions, -torch.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(positions).scatter_(-1, highest, True)
