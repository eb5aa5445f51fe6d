"""Head scores of one batch: each layer is reduced to one number per head before the next layer runs.

`score_batch` chooses the passes that the metrics of a scan need; `score_heads` is one pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from corelens.causal.answers import answer_positions, answer_targets, append_answers, greedy_answers
from corelens.data import Sample, evidence_tokens
from corelens.errors import docs_link
from corelens.experiments.layer_scores import (
    AnyMetric,
    LayerAttention,
    ScoringInputs,
    metric_name,
    needs_sinks,
    needs_values,
    query_kind,
)
from corelens.experiments.passes import finite_passes, run_pattern_hooks, stack_layers
from corelens.experiments.resumable import SampleError, prepare_samples, sample_errors
from corelens.hf.prefix_cache import PrefixCache
from corelens.hooks.attention import in_float32
from corelens.inputs.prepare import PreparedInputs
from corelens.metrics import Metric
from corelens.model import HookedMLLM
from corelens.tokens import BoxRule, Views


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
    if any(map(needs_sinks, metrics)):
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
    hooks = [(name.replace("pattern", "v"), keep) for name in patterns if any(map(needs_values, metrics))]
    if any(map(needs_sinks, metrics)):
        hooks += [(name.replace("attn.hook_pattern", "hook_resid_pre"), keep) for name in patterns]
    hooks += [(name, in_float32(score_layer)) for name in patterns]
    run_pattern_hooks(model, inputs, hooks, scoring.every_query, prefix)
    return {name: stack_layers(layers, model) for name, layers in scores.items()}


WHOLE = "evidence is all visual tokens"
"""Name of the value of a batch that is one for samples whose evidence is all of their visual tokens, else zero. Their
retrieval attention mass is attention on the picture, whatever a head retrieves."""

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
) -> dict[str, Float[Tensor, "batch layer head"] | Float[Tensor, "batch"]]:
    """Score every head by all metrics of a scan on one batch.

    Returns:
        Scores by metric name, and `WHOLE` if some metric needs evidence.

    Raises:
        SampleError: If a sample cannot be scored.
    """
    by_sequence: dict[str, list[AnyMetric]] = {}
    for metric in config.metrics:
        by_sequence.setdefault(_sequence(metric), []).append(metric)
    if len(by_sequence) > 1 and (of_prompt := by_sequence.pop("prompt", [])):
        # Attention of the prompt does not change with what follows it: one pass serves both.
        next(iter(by_sequence.values())).extend(of_prompt)
    scores: dict[str, Tensor] = {}
    for sequence, metrics in by_sequence.items():
        inputs, scoring = _scoring_inputs(model, samples, sequence, metrics, config)
        if of_evidence := [metric for metric in metrics if isinstance(metric, Metric)]:
            scores[WHOLE] = _is_whole(samples, scoring, of_evidence)
        with finite_passes(model, inputs):
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


def _is_whole(samples: Sequence[Sample], scoring: ScoringInputs, metrics: Sequence[Metric]) -> Float[Tensor, "batch"]:
    """One for samples whose evidence is all of their visual tokens, else zero.

    Raises:
        SampleError: If there is such a sample, and a metric compares its evidence with the other visual tokens.
    """
    whole = ~(scoring.tokens.visual & (scoring.evidence == 0)).any(-1)
    if whole.any() and (contrasting := [metric.name for metric in metrics if metric.contrasts]):
        raise SampleError(
            f"sample {samples[int(whole.nonzero()[0])].id}: its evidence is all of its visual tokens, and "
            f"{', '.join(contrasting)} compares evidence with the others. {docs_link('whole')}"
        )
    return whole.float().cpu()


def _with_question(samples: Sequence[Sample], baseline: str) -> list[Sample]:
    """The samples with the question of a baseline in place of their own."""
    with sample_errors():
        return [sample.with_question(OTHER_QUESTIONS[baseline]) for sample in samples]


@torch.no_grad()
def _most_uncertain(model: HookedMLLM, inputs: PreparedInputs) -> Bool[Tensor, "batch position"]:
    """Mask of the answer position whose next-token distribution has the highest entropy."""
    positions = answer_positions(inputs.tokens)
    entropy = torch.distributions.Categorical(logits=model(inputs).float()).entropy()
    highest = entropy.masked_fill(~positions, -torch.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(positions).scatter_(-1, highest, True)
