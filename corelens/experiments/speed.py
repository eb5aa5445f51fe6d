"""Speed and memory of generation under sparse plans, measured side by side."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from corelens.hf.versions import CACHE
from corelens.model import HookedMLLM
from corelens.progress import nested_progress
from corelens.sparse.apply import apply
from corelens.sparse.cache import HeadSparseCache
from corelens.sparse.plan import HeadPlan


@dataclass(frozen=True)
class Speed:
    """Time and memory of one generation."""

    prefill: float
    """Seconds from the prompt to the first token."""

    token: float
    """Seconds for each further token."""

    cache: int
    """Bytes of keys and values at the end."""

    def speed_up(self, baseline: "Speed", n_tokens: int) -> float:
        """Speed-up over another for prefill and the generation of so many tokens."""
        return (baseline.prefill + n_tokens * baseline.token) / (self.prefill + n_tokens * self.token)


@torch.no_grad()
def measure_speed(
    model: HookedMLLM,
    inputs: Mapping[str, Any],
    plans: Mapping[str, HeadPlan | None],
    n_tokens: int = 16,
    repeats: int = 3,
) -> dict[str, Speed]:
    """Measure greedy generation under each plan in turn, and keep the fastest of several rounds.

    Args:
        model: The model.
        inputs: As returned by `prepare`.
        plans: Plans by name; None for the unchanged model, with Hugging Face's own cache.
        n_tokens: Number of tokens that are generated after the first.
        repeats: Rounds, each of which takes every plan once, so that a machine that slows down slows all.
    """
    prefills: dict[str, list[float]] = {name: [] for name in plans}
    tokens: dict[str, list[float]] = {name: [] for name in plans}
    cache_bytes: dict[str, int] = {}
    with tqdm(total=repeats * len(plans), desc="speed", unit="generation", disable=nested_progress()) as bar:
        for _ in range(repeats):
            for name, plan in plans.items():
                clock = Clock(model)
                with nullcontext() if plan is None else apply(model, plan, force=True):
                    cache = _generate(model, inputs, 1 + n_tokens, clock)
                prefills[name].append(clock.times[1] - clock.times[0])
                tokens[name].append((clock.times[-1] - clock.times[1]) / n_tokens)
                cache_bytes[name] = _n_bytes(cache)
                bar.update()
    return {name: Speed(min(prefills[name]), min(tokens[name]), cache_bytes[name]) for name in plans}


class Clock(StoppingCriteria):
    """Records the time of every token, and never stops generation."""

    def __init__(self, model: HookedMLLM) -> None:
        self.model = model
        self.times = [_now(model)]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self.times.append(_now(self.model))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _generate(model: HookedMLLM, inputs: Mapping[str, Any], n: int, clock: Clock) -> Any:
    """Generate exactly n tokens, and return the cache."""
    settings: dict[str, Any] = dict(max_new_tokens=n, min_new_tokens=n, do_sample=False, return_dict_in_generate=True)
    return model.generate(inputs, stopping_criteria=StoppingCriteriaList([clock]), **settings)[CACHE]


def _now(model: HookedMLLM) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _n_bytes(cache: Any) -> int:
    if isinstance(cache, HeadSparseCache):
        return cache.nbytes
    return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values) if isinstance(t, Tensor))
