"""Accuracy and attention recall under sparse plans and their controls, over many samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens import metrics
from corelens.causal import evaluate
from corelens.data import BoxUnit, Sample
from corelens.experiments.conditions import BASELINE, ConditionResults
from corelens.experiments.controls import full_heads, n_writing
from corelens.experiments.passes import finite_passes
from corelens.experiments.remote import AnyModel, Evaluate, checked_fingerprint
from corelens.experiments.resumable import (
    SampleSets,
    check_scoring,
    flatten_datasets,
    prepare_samples,
    prompt_length,
    run_resumable,
)
from corelens.experiments.speed import Speed, measure_speed
from corelens.heads import Head
from corelens.hf.module_outputs import cached_vision
from corelens.hooks.points import hook_name
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions.token_pruning import TokenPruning, prune_tokens
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.sparse.apply import apply
from corelens.sparse.kernels import near_or_first_blocks
from corelens.sparse.plan import HeadPlan
from corelens.sparse.resolve import resolve
from corelens.sparse.rules import Full, HeadRule, Streaming, StreamingBlocks


@torch.no_grad()
def attention_recall(
    model: HookedMLLM, inputs: PreparedInputs, plans: Sequence[HeadPlan]
) -> list[Float[Tensor, "batch"]]:
    """Share of the last prompt token's attention that falls on keys that heads keep under each plan, in [0, 1].

    Computed in one pass without a plan. Heads count alike; layers that follow no plan do not count.
    """
    resolved = [resolve(plan, model.hf_model).layers for plan in plans]
    rules = {rule for layers in resolved for layer in layers.values() for rule in layer.rules}
    visible = {rule: _visible_keys(inputs, rule) for rule in rules if isinstance(rule, Streaming | StreamingBlocks)}
    recalls: list[list[Tensor]] = [[] for _ in plans]

    def add_layer(pattern: Float[Tensor, "batch head 1 key"], hook: Any) -> None:
        row = torch.ones(len(pattern), 1, dtype=torch.bool, device=pattern.device)
        mass = {
            rule: metrics.retrieval_attention_mass(pattern, keys.to(pattern.device), row).cpu()
            for rule, keys in visible.items()
        }

        def recall(rule: HeadRule, head: int) -> Float[Tensor, "batch"]:
            return mass[rule][:, head] if rule in mass else torch.full((len(pattern),), float(isinstance(rule, Full)))

        for of_plan, layers in zip(recalls, resolved, strict=True):
            of_plan += [recall(rule, head) for head, rule in enumerate(layers[hook.layer()].rules)]

    hooks = [(hook_name(layer, "attn.pattern"), add_layer) for layer in (resolved[0] if resolved else ())]
    with model.hooks(fwd_hooks=hooks, queries=inputs.tokens.last):
        model(inputs)
    return [torch.stack(of_plan, 1).mean(1) for of_plan in recalls]


def _visible_keys(inputs: PreparedInputs, rule: Streaming | StreamingBlocks) -> Bool[Tensor, "batch position"]:
    """Mask of the keys that the last prompt token attends to under a rule."""
    tokens = inputs.tokens
    real = ~tokens.padding
    position = torch.arange(real.shape[1], device=real.device)
    if isinstance(rule, StreamingBlocks):
        blocks = near_or_first_blocks(position[-1:], position, **asdict(rule), start=tokens.padding.sum(-1))
        return real & blocks[:, 0, 0]
    window = position >= real.shape[1] - rule.window
    sink = real.cumsum(-1) <= rule.sink
    return real & (window | sink | (~tokens.visual if rule.keep_text else False))


SHARD_SIZE = 16
"""Samples that are kept or lost together when a run is interrupted: each is answered under every plan."""

N_GENERATED = 256
"""Tokens of the generation whose speed-up the summary gives."""

RECALL = "kept attention, "
"""Prefix of its columns in run folders."""

Plans = Mapping[str, Sequence[HeadPlan | TokenPruning]]
"""Plans of heads, or prunings of visual tokens as a comparison, by condition; several where heads are drawn at random,
one for each seed."""


NO_PLAN = HeadPlan({}, Full(), name="no plan")
"""The baseline's plan."""


@dataclass(frozen=True)
class SparseResults(ConditionResults[HeadPlan | TokenPruning]):
    """Scores of answers under plans, and attention recall."""

    recall: Mapping[str, Float[Tensor, "sample _draw"]]
    """Share of the last prompt token's attention, all heads together, on keys that heads keep under a plan, in [0, 1];
    NaN for prunings, which change attention itself."""

    def attention_recall(self, condition: str) -> float:
        """Mean attention recall over samples and draws."""
        return self.recall[condition].mean().item()


def run_sparse_eval(
    model: AnyModel,
    samples: SampleSets,
    plans: Plans,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    box_unit: BoxUnit | None = None,
    chosen_by: str | None = None,
    write_norm: HeadScores | None = None,
    out: str | PathLike[str] | None = None,
) -> SparseResults:
    """Answer greedily under no plan and under each plan, and score by the data set's rule.

    Args:
        model: The model.
        samples: Questions with media, or without; a mapping if there are several data sets.
        plans: The plans.
        batch_size: Most samples a pass; fewer after running out of memory.
        max_new_tokens: Length at which answers are cut off.
        box_unit: The unit of the boxes that the model answers with, for samples that ask for one.
        chosen_by: Name of the scores that chose the heads, for the manifest of `out`.
        write_norm: Length of what each head writes (`question_write_norm`), by which results say how many of the heads
            that attend to everything write anything. What the others attend to changes nothing.
        out: A folder that keeps finished shards. The same run into the same folder resumes it.

    Raises:
        ValueError: If a plan does not fit the model, there is no sample, every sample is skipped, one has no rule that
            can score it, or `out` holds another run; the message names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    listed = flatten_datasets(samples)
    check_scoring(listed, box_unit)
    conditions: dict[str, list[HeadPlan | TokenPruning]] = {BASELINE: [NO_PLAN]}
    conditions |= {name: list(draws) for name, draws in plans.items()}
    fingerprint, _ = checked_fingerprint(model, out is not None, partial(_check_plans, conditions=conditions))
    evaluator = partial(_answer_batches, conditions=conditions, max_new_tokens=max_new_tokens, box_unit=box_unit)
    writing = {
        name: [n_writing(full_heads(plan), write_norm) for plan in draws if isinstance(plan, HeadPlan)]
        for name, draws in plans.items()
        if write_norm is not None and isinstance(draws[0], HeadPlan)
    }
    choices = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "box_unit": box_unit,
        "chosen_by": chosen_by,
        "plans": {name: [_plan_json(plan) for plan in draws] for name, draws in conditions.items()},
    } | ({"heads that write": writing} if writing else {})
    results = run_resumable("accelerate", model, listed, evaluator, fingerprint, choices, SHARD_SIZE, batch_size, out)
    values = {name: results.values[name] for name in conditions}
    recall = {name: results.values[RECALL + name] for name in conditions}
    return SparseResults(
        conditions,
        values,
        results.samples,
        results.datasets,
        results.skipped,
        recall,
        groups=results.groups,
        n_writing=writing,
    )


def _check_plans(model: HookedMLLM, conditions: Plans) -> None:
    for plan in _head_plans(conditions):
        resolve(plan, model.hf_model)


def _head_plans(conditions: Plans) -> list[HeadPlan]:
    return [plan for draws in conditions.values() for plan in draws if isinstance(plan, HeadPlan)]


def _answer_batches(model: HookedMLLM, conditions: Plans, max_new_tokens: int, box_unit: BoxUnit | None) -> Evaluate:
    """Evaluation of answers under each plan."""
    head_plans = _head_plans(conditions)

    def answer_batch(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _draw"]]:
        inputs = prepare_samples(model, batch)
        batches = [(batch, inputs)]

        def scores(plan: HeadPlan | TokenPruning) -> Float[Tensor, "batch"]:
            if isinstance(plan, TokenPruning):
                hooks = prune_tokens(model, inputs, plan)
                evaluation = evaluate(model, batches, hooks, max_new_tokens, box_unit=box_unit)
            else:
                with finite_passes(model, inputs) if plan == NO_PLAN else apply(model, plan, force=True):
                    evaluation = evaluate(model, batches, None, max_new_tokens, box_unit=box_unit)
            return evaluation.scores.masked_fill(~evaluation.parsed, torch.nan)

        unknown = torch.full((len(batch),), torch.nan)
        results = {}
        with cached_vision(model.hf_model):
            recalls = iter(attention_recall(model, inputs, head_plans))
            for name, draws in conditions.items():
                results[name] = torch.stack([scores(plan) for plan in draws], 1)
                recall = [next(recalls) if isinstance(plan, HeadPlan) else unknown for plan in draws]
                results[RECALL + name] = torch.stack(recall, 1)
        return results

    return answer_batch


def measured_summary(model: HookedMLLM, samples: SampleSets, results: SparseResults) -> dict[str, Any]:
    """Plans, accuracies and skipped samples of a sparse evaluation, ready for JSON, with speeds on the longest prompt.

    Every plan of heads has both of its budgets: the share of heads that attend to everything, and of the cache of the
    prompt that is stored; and whether it is full attention, since its sinks and window cover the prompt.

    Args:
        model: The model.
        samples: The samples that were evaluated.
        results: As returned by `run_sparse_eval`.
    """
    prompt = longest_prompt(model, samples)
    n_positions = prompt["input_ids"].shape[1]
    speeds = measure_speeds(model, prompt, results.conditions)
    return {
        "positions": n_positions,
        "plans": {name: _plan_summary(model, results, name, n_positions, speeds) for name in results.conditions},
        "data": results.summary_by_dataset(),
        "skipped": dict(results.skipped),
    }


def _plan_summary(
    model: HookedMLLM, results: SparseResults, name: str, n_positions: int, speeds: Mapping[str, Speed]
) -> dict[str, Any]:
    draws = results.conditions[name]
    summary: dict[str, Any] = {"heads": [plan.name for plan in draws]}
    if not isinstance(draws[0], HeadPlan):
        return summary
    resolved, baseline = resolve(draws[0], model.hf_model), speeds[BASELINE]
    return summary | {
        "full heads": round(resolved.share_of_full_heads, 4),
        "whole groups of keys": round(resolved.share_of_full_kv_heads, 4),
        "stored cache": round(resolved.share_of_cache(n_positions), 4),
        "full attention": resolved.is_full(n_positions),
        "kept attention": round(results.attention_recall(name), 4),
        "cache": speeds[name].cache,
        "prefill": round(baseline.prefill / speeds[name].prefill, 3),
        "generation": round(speeds[name].speed_up(baseline, N_GENERATED), 3),
    }


def longest_prompt(model: HookedMLLM, samples: SampleSets) -> PreparedInputs:
    """Prepare the longest prompt, as far as lengths are known before media are read."""
    _, longest = max(flatten_datasets(samples), key=lambda named: prompt_length(named[1]))
    return prepare_samples(model, [longest])


class HeadShape(NamedTuple):
    """The heads of a model, which plans are made for."""

    heads: tuple[Head, ...]
    group_size: int
    """Heads that share keys and values."""


def shape_and_longest(model: HookedMLLM, samples: SampleSets) -> tuple[HeadShape, int]:
    """Heads of the model, and number of positions of the longest prompt."""
    shape = HeadShape(tuple(model.heads), model.cfg.n_heads // model.cfg.n_key_value_heads)
    return shape, longest_prompt(model, samples)["input_ids"].shape[1]


def measure_speeds(
    model: HookedMLLM, inputs: PreparedInputs, plans: Plans, n_tokens: int = 16, repeats: int = 3
) -> dict[str, Speed]:
    """Measure the speed of a prompt under the first draw of every plan.

    Returns:
        Speeds by plan; `plain` is the unchanged model. Prunings have none.
    """
    first = {name: draws[0] for name, draws in plans.items() if isinstance(draws[0], HeadPlan)} | {BASELINE: None}
    return measure_speed(model, inputs, first, n_tokens, repeats)


def _plan_json(plan: HeadPlan | TokenPruning) -> dict[str, Any]:
    return plan.to_json() if isinstance(plan, HeadPlan) else asdict(plan)
