"""Does a plan keep the answers? Accuracy and kept attention under plans and their controls, part by part."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from corelens import metrics
from corelens.causal import evaluate
from corelens.data import BoxUnit, Sample
from corelens.experiments.conditions import BASELINE, ConditionResults, check_scoring
from corelens.experiments.resumable import (
    Samples,
    flatten_datasets,
    model_fingerprint,
    prepare_samples,
    prompt_length,
    run_locally,
    run_resumable,
)
from corelens.hf.module_outputs import cached_vision
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions.token_pruning import TokenPruning, prune_tokens
from corelens.model import HookedMLLM
from corelens.progress import nested_progress
from corelens.sparse.apply import apply
from corelens.sparse.cache import HeadSparseCache
from corelens.sparse.plan import Full, HeadPlan, HeadRule, Streaming
from corelens.sparse.resolve import resolve


@torch.no_grad()
def attention_recall(
    model: HookedMLLM, inputs: PreparedInputs, plans: Sequence[HeadPlan]
) -> list[Float[Tensor, "batch"]]:
    """Share of the attention of the prompt's last token that each plan lets heads keep, in [0, 1].

    Measured in one pass without a plan. Heads count alike; layers that follow no plan do not count.
    """
    placed = [resolve(plan, model.hf_model).layers for plan in plans]
    rules = {layer.streaming for layers in placed for layer in layers.values() if layer.streaming}
    in_sight = {rule: _in_sight(inputs, rule) for rule in rules}
    found: list[list[Tensor]] = [[] for _ in plans]

    def look(pattern: Float[Tensor, "batch head 1 key"], hook: Any) -> None:
        row = torch.ones(len(pattern), 1, dtype=torch.bool, device=pattern.device)
        mass = {
            rule: metrics.retrieval_attention_mass(pattern, keys.to(pattern.device), row).cpu()
            for rule, keys in in_sight.items()
        }

        def kept(rule: HeadRule, head: int) -> Float[Tensor, "batch"]:
            return mass[rule][:, head] if rule in mass else torch.full((len(pattern),), float(isinstance(rule, Full)))

        for own, layers in zip(found, placed, strict=True):
            own += [kept(rule, head) for head, rule in enumerate(layers[hook.layer()].rules)]

    hooks = [(f"blocks.{layer}.attn.hook_pattern", look) for layer in (placed[0] if placed else ())]
    with model.hooks(fwd_hooks=hooks, queries=inputs.tokens.last):
        model(inputs)
    return [torch.stack(own, 1).mean(1) for own in found]


def _in_sight(inputs: PreparedInputs, rule: Streaming) -> Bool[Tensor, "batch position"]:
    """What the prompt's last token sees under a rule."""
    tokens = inputs.tokens
    real = ~tokens.padding
    near = torch.arange(real.shape[1], device=real.device) >= real.shape[1] - rule.window
    kept = real.cumsum(-1) <= rule.sink
    return real & (near | kept | (~tokens.visual if rule.keep_text else False))


@dataclass(frozen=True)
class Speed:
    """What one generation took."""

    prefill: float
    """Seconds from the prompt to the first token."""

    token: float
    """Seconds for each further token."""

    cache: int
    """Bytes of keys and values at the end."""

    def faster(self, plain: "Speed", n_tokens: int) -> float:
        """How many times as fast as another a prompt is read and so many tokens are generated."""
        return (plain.prefill + n_tokens * plain.token) / (self.prefill + n_tokens * self.token)


@torch.no_grad()
def measure_speed(
    model: HookedMLLM,
    inputs: Mapping[str, Any],
    plans: Mapping[str, HeadPlan | None],
    n_tokens: int = 16,
    repeats: int = 3,
) -> dict[str, Speed]:
    """Greedy generation under each plan in turn, the fastest of several rounds.

    Args:
        model: The model.
        inputs: What `prepare` returned.
        plans: By name; None for the model as it is, with Hugging Face's own cache.
        n_tokens: How many tokens are generated after the first.
        repeats: Rounds, each of which takes every plan once, so that a machine that slows down slows all.
    """
    first: dict[str, list[float]] = {name: [] for name in plans}
    others: dict[str, list[float]] = {name: [] for name in plans}
    held: dict[str, int] = {}
    with tqdm(total=repeats * len(plans), desc="speed", unit="generation", disable=nested_progress()) as bar:
        for _ in range(repeats):
            for name, plan in plans.items():
                clock = Clock(model)
                with nullcontext() if plan is None else apply(model, plan, force=True):
                    cache = _generated(model, inputs, 1 + n_tokens, clock)
                first[name].append(clock.times[1] - clock.times[0])
                others[name].append((clock.times[-1] - clock.times[1]) / n_tokens)
                held[name] = _bytes(cache)
                bar.update()
    return {name: Speed(min(first[name]), min(others[name]), held[name]) for name in plans}


class Clock(StoppingCriteria):
    """Stops nothing, and notes when each token was there."""

    def __init__(self, model: HookedMLLM) -> None:
        self.model = model
        self.times = [_now(model)]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self.times.append(_now(self.model))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _generated(model: HookedMLLM, inputs: Mapping[str, Any], n: int, clock: Clock) -> Any:
    """The cache after exactly n tokens."""
    settings: dict[str, Any] = dict(max_new_tokens=n, min_new_tokens=n, do_sample=False, return_dict_in_generate=True)
    return model.generate(inputs, stopping_criteria=StoppingCriteriaList([clock]), **settings).past_key_values


def _now(model: HookedMLLM) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _bytes(cache: Any) -> int:
    if isinstance(cache, HeadSparseCache):
        return cache.nbytes
    return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values) if isinstance(t, Tensor))


SHARD_SIZE = 16
"""Samples that are kept or lost together when the work is interrupted: each is answered under every plan."""

RECALL = "kept attention, "
"""Begins the columns of run folders that hold it."""

Plans = Mapping[str, Sequence[HeadPlan | TokenPruning]]
"""Plans of heads, or prunings of visual tokens to compare them with, by what they are; several where heads are drawn by
chance, one for each seed."""


@dataclass(frozen=True)
class SparseResults(ConditionResults[HeadPlan | TokenPruning]):
    """How good answers are under plans, and how much attention they keep."""

    recall: Mapping[str, Float[Tensor, "sample _draw"]]
    """Share of the attention of the prompt's last token, all heads together, that a plan lets heads keep, in [0, 1];
    NaN for prunings, after which attention is another."""

    def attention_recall(self, condition: str) -> float:
        """Mean over samples and draws."""
        return self.recall[condition].mean().item()


def run_sparse_eval(
    model: HookedMLLM,
    samples: Samples,
    plans: Plans,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    box_unit: BoxUnit | None = None,
    chosen_by: str | None = None,
    out: str | PathLike[str] | None = None,
) -> SparseResults:
    """Greedy answers under no plan and under each plan, scored by the rule of their data set.

    Args:
        model: The model.
        samples: Questions with media, or without; a mapping if there are several data sets.
        plans: The plans.
        batch_size: Most samples a pass; fewer after running out of memory.
        max_new_tokens: Where answers are cut off.
        box_unit: The unit in which the model says boxes, for samples that ask for one.
        chosen_by: Whose scores chose the heads, which `out` says too.
        out: A folder that keeps finished parts. The same work into the same folder goes on where it was interrupted.

    Raises:
        ValueError: If a plan does not fit the model, there is no sample, none can be asked, one has no rule that can
            score it, or `out` holds another run; names the difference.
        RuntimeError: If another process is writing to `out`.
    """
    every = flatten_datasets(samples)
    check_scoring(every, box_unit)
    full = HeadPlan({}, Full(), name="no plan")
    all_plans: dict[str, list[HeadPlan | TokenPruning]] = {
        BASELINE: [full],
        **{n: list(own) for n, own in plans.items()},
    }
    of_heads = [plan for own in all_plans.values() for plan in own if isinstance(plan, HeadPlan)]
    for plan in of_heads:
        resolve(plan, model.hf_model)

    def measure(batch: list[Sample]) -> dict[str, Float[Tensor, "batch _unit"]]:
        inputs = prepare_samples(model, batch)
        asked = [(batch, inputs)]

        def under(plan: HeadPlan | TokenPruning) -> Float[Tensor, "batch"]:
            if isinstance(plan, TokenPruning):
                found = evaluate(model, asked, prune_tokens(model, inputs, plan), max_new_tokens, box_unit=box_unit)
            else:
                with nullcontext() if plan is full else apply(model, plan, force=True):
                    found = evaluate(model, asked, None, max_new_tokens, box_unit=box_unit)
            return found.scores.masked_fill(~found.parsed, torch.nan)

        unknown = torch.full((len(batch),), torch.nan)
        found = {}
        with cached_vision(model.hf_model):
            masses = iter(attention_recall(model, inputs, of_heads))
            for name, own in all_plans.items():
                found[name] = torch.stack([under(plan) for plan in own], 1)
                kept = [next(masses) if isinstance(plan, HeadPlan) else unknown for plan in own]
                found[RECALL + name] = torch.stack(kept, 1)
        return found

    choices = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "box_unit": box_unit,
        "chosen_by": chosen_by,
        "plans": {name: [_written(plan) for plan in own] for name, own in all_plans.items()},
    }
    whole = run_resumable(
        "accelerate", every, SHARD_SIZE, model_fingerprint(model), choices, out, run_locally(batch_size, measure)
    )
    values = {name: whole.values[name] for name in all_plans}
    kept = {name: whole.values[RECALL + name] for name in all_plans}
    return SparseResults(all_plans, values, whole.samples, whole.datasets, whole.skipped, kept)


def longest_prompt(model: HookedMLLM, samples: Samples) -> PreparedInputs:
    """The longest prompt, as far as lengths are known before media are read."""
    _, longest = max(flatten_datasets(samples), key=lambda own: prompt_length(own[1]))
    return prepare_samples(model, [longest])


def measure_speeds(
    model: HookedMLLM, inputs: PreparedInputs, plans: Plans, n_tokens: int = 16, repeats: int = 3
) -> dict[str, Speed]:
    """How fast a prompt is answered under the first draw of every plan.

    Returns:
        The speeds; `plain` is the model as it is. Prunings have none.
    """
    first = {name: own[0] for name, own in plans.items() if isinstance(own[0], HeadPlan)} | {BASELINE: None}
    return measure_speed(model, inputs, first, n_tokens, repeats)


def _written(plan: HeadPlan | TokenPruning) -> dict[str, Any]:
    return plan.to_json() if isinstance(plan, HeadPlan) else asdict(plan)
