"""Circuits of heads: what a model does with some heads alone, and whether they are all that it needs.

Everywhere in this module a head outside of a circuit is ablated from the question on, so that passes share what comes
before; MLPs, and what heads do at earlier positions, stay. In MIB, where circuits are of edges or nodes, MLPs are
among them, and whatever is outside is replaced at all positions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.causal.effects import PatchingMetric, logit_margin
from corelens.data import Sample
from corelens.errors import check_choice
from corelens.experiments.ablation import ReferenceMethod, lazy_ablation
from corelens.experiments.sweep import Sweep, sweep
from corelens.heads import Head, HeadSet
from corelens.metrics.circuits import CircuitCurves, faithfulness
from corelens.metrics.score_distribution import Amount, head_count, plain_amount
from corelens.model import HookedMLLM

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of a model at which MIB evaluates circuits, before the whole."""

RANDOM = "random"
"""Name of the control: all heads in random order."""


def circuit_curves(
    model: HookedMLLM,
    samples: Iterable[Sample],
    rankings: Mapping[str, Iterable[Head]],
    sizes: Sequence[Amount] = MIB_SIZES,
    method: ReferenceMethod = "resample",
    metric: PatchingMetric = logit_margin,
    seeds: Sequence[int] = range(10),
) -> CircuitCurves:
    """Keep the first heads of a ranking and ablate all others, for several rankings and numbers of heads.

    Every set of heads is one exact pass of each sample, from the question on.

    Args:
        model: The model.
        samples: Questions with media and answers; others than those that heads were ranked by.
        rankings: Heads by name, most important first, such as `scores.ranked()`.
        sizes: Numbers of heads, or shares of all, rounded up; none and all come for free.
        method: What outputs of ablated heads are replaced by. The default is nearest to MIB's, which takes those under
            a counterfactual prompt; references are measured on these samples.
        metric: Computed for each answer. MIB's is a difference of logits, as the default is.
        seeds: Seeds of the random orders that rankings are compared with, under the name `random`.

    Raises:
        ValueError: If there is no sample or ranking, a ranking is named `random`, holds a head twice, one that does not
            exist, or fewer heads than are to be kept, or a size is no number of heads that the model has; before
            anything is computed.

    Source:
        MIB (Mueller et al. 2025, arXiv 2504.13151), for circuits of edges and nodes; circuits of heads, and random
        orders as the control, are ours.
    """
    check_choice("method", method, ReferenceMethod)
    every = HeadSet(tuple(model.heads))
    kept = _numbers(sizes, len(every))
    if not rankings or RANDOM in rankings:
        raise ValueError(f"give one ranking or more by name; {RANDOM!r} is the name of the control.")
    orders = {name: [HeadSet(tuple(heads), name)] for name, heads in rankings.items()}
    for name, (order,) in orders.items():
        model.check_heads(order)
        if len(order) < kept[-1]:
            raise ValueError(
                f"ranking {name!r} has {len(order)} heads, and {kept[-1]} are to be kept: give a longer ranking, or "
                f"smaller sizes."
            )
    shuffled = [np.random.default_rng(seed).permutation(len(every)) for seed in seeds]
    if shuffled:
        orders[RANDOM] = [HeadSet(tuple(every.heads[index] for index in order)) for order in shuffled]
    outside = [every - HeadSet(order.heads[:n]) for draws in orders.values() for order in draws for n in kept]
    swept = _ablated(model, samples, [every, *outside], method, metric)
    empty, *by_order = swept.values.T.split([1, *[len(kept)] * sum(map(len, orders.values()))])
    curves = iter(torch.cat([empty, of_order, swept.baseline[None]]) for of_order in by_order)
    values = {name: torch.stack([next(curves) for _ in draws]) for name, draws in orders.items()}
    return CircuitCurves((0, *kept, len(every)), values, swept.metric, method, swept.samples, swept.groups)


@dataclass(frozen=True, eq=False)
class CircuitCriteria:
    """Faithfulness of a circuit, without each of its heads, and without some of them at a time."""

    circuit: HeadSet

    faithfulness: float
    """That of the circuit."""

    without_each: Float[Tensor, "head"]
    """Faithfulness of the circuit without each of its heads."""

    subsets: tuple[HeadSet, ...]
    """Subsets of the circuit; the first is all of it."""

    circuit_without: Float[Tensor, "subset"]
    """Faithfulness of the circuit without each subset."""

    model_without: Float[Tensor, "subset"]
    """Faithfulness of the whole model without each subset."""

    @property
    def minimality(self) -> Float[Tensor, "head"]:
        """Faithfulness that each head adds to the others of the circuit."""
        return self.faithfulness - self.without_each

    @property
    def incompleteness(self) -> Float[Tensor, "subset"]:
        """Distance of the circuit from the model, each without the same heads; large if others stand in for these."""
        return (self.circuit_without - self.model_without).abs()

    def unneeded(self, tolerance: float) -> HeadSet:
        """Heads that the circuit can lose, one at a time, for at most so much faithfulness."""
        heads = [head for head, loss in zip(self.circuit, self.minimality.tolist(), strict=True) if loss <= tolerance]
        return HeadSet(tuple(heads), f"unneeded of {self.circuit.name}")


def circuit_criteria(
    model: HookedMLLM,
    samples: Iterable[Sample],
    circuit: HeadSet,
    method: ReferenceMethod = "resample",
    metric: PatchingMetric = logit_margin,
    seeds: Sequence[int] = range(10),
) -> CircuitCriteria:
    """Measure whether a circuit is faithful, minimal and complete.

    Args:
        model: The model.
        samples: Questions with media and answers; others than those that the circuit was found by.
        circuit: The heads.
        method: As for `circuit_curves`.
        metric: As for `circuit_curves`.
        seeds: Seeds of random subsets of the circuit, each head in or out with even chances.

    Raises:
        ValueError: If the circuit is empty or all of the model, a head does not exist, or there is no sample.

    Source:
        Wang et al. 2022 (arXiv 2211.00593), who call a circuit complete if it and the model do alike without any subset
        of it, and minimal if for each head there is some subset without which that head matters. Here that subset is
        none, so that a head whose work others of the circuit do as well counts as unneeded. Differences are shares of
        what the model does beyond its ablated self, as in MIB (arXiv 2504.13151); there they are of logits.
    """
    check_choice("method", method, ReferenceMethod)
    model.check_heads(circuit)
    every = HeadSet(tuple(model.heads))
    outside = every - circuit
    if not len(circuit) or not len(outside):
        raise ValueError(f"a circuit is some heads of the model, and these are {len(circuit)} of {len(every)}.")
    draws = [np.random.default_rng(seed).random(len(circuit)) < 0.5 for seed in seeds]
    subsets = [circuit]
    subsets += [HeadSet(tuple(head for head, drawn in zip(circuit, draw, strict=True) if drawn)) for draw in draws]
    single = [HeadSet((head,)) for head in circuit]
    removed = [every, outside, *(outside | part for part in (*single, *subsets)), *subsets]
    swept = _ablated(model, samples, removed, method, metric)
    means = swept.values.double().mean(0)
    shares = faithfulness(means, full=swept.baseline.double().mean(), empty=means[0])
    _, whole, without_each, circuit_without, model_without = shares.split(
        [1, 1, len(single), len(subsets), len(subsets)]
    )
    return CircuitCriteria(circuit, float(whole), without_each, tuple(subsets), circuit_without, model_without)


def _numbers(sizes: Sequence[Amount], n_heads: int) -> list[int]:
    """Numbers of heads of sizes that are neither none nor all of them, smallest first."""
    plain = [plain_amount(size) for size in sizes]
    numbers = {size if isinstance(size, int) else head_count(size, n_heads) for size in plain}
    if wrong := [size for size in numbers if not 0 <= size <= n_heads]:
        raise ValueError(f"a circuit of {wrong[0]} heads was asked for, and the model has {n_heads}.")
    if not (between := sorted(numbers - {0, n_heads})):
        raise ValueError(f"sizes={tuple(plain)}: give at least one number of heads between none and all {n_heads}.")
    return between


def _ablated(
    model: HookedMLLM,
    samples: Iterable[Sample],
    removed: Sequence[HeadSet],
    method: ReferenceMethod,
    metric: PatchingMetric,
) -> Sweep:
    """Measure a metric without each of some sets of heads, from the question on."""
    samples = list(samples)
    return sweep(model, samples, lazy_ablation(method, model, samples, positions="from_question"), metric, per=removed)
