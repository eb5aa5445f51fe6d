"""How fast a model generates under plans, measured side by side."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from corelens.model import HookedMLLM
from corelens.progress import within_whole
from corelens.sparse.cache import HeadSparseCache
from corelens.sparse.generate import apply
from corelens.sparse.plan import HeadPlan


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
    with tqdm(total=repeats * len(plans), desc="speed", unit="generation", disable=within_whole()) as bar:
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
