"""Rankings of heads for circuits: by gradients, and by elimination in exact passes."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from corelens.causal.answers import append_answers
from corelens.causal.attribution import attribution_patch
from corelens.causal.effects import PatchingMetric, logit_margin
from corelens.causal.integrated_gradients import integrated_gradients
from corelens.data import Sample, prepare_batches
from corelens.errors import check_choice
from corelens.experiments.ablation import ReferenceMethod, lazy_ablation
from corelens.experiments.sweep import metric_label, sweep
from corelens.heads import HeadSet
from corelens.metrics import join_groups
from corelens.metrics.score_distribution import Amount, head_count, plain_amount
from corelens.model import HookedMLLM
from corelens.progress import total_progress
from corelens.scores import HeadScores

Attribution = Literal["attribution_patch", "integrated_gradients"]
"""Attribution to all heads from gradients: to first order, or along the way to the ablation of all."""

_ATTRIBUTIONS: dict[str, Callable[..., Float[Tensor, "batch layer head"]]] = {
    "attribution_patch": attribution_patch,
    "integrated_gradients": integrated_gradients,
}


def attribution_scores(
    model: HookedMLLM,
    samples: Iterable[Sample],
    by: Attribution = "attribution_patch",
    method: ReferenceMethod = "resample",
    metric: PatchingMetric = logit_margin,
) -> HeadScores:
    """Score every head by its share of what ablating heads from the question on takes from a metric.

    Args:
        model: The model.
        samples: Questions with media and answers.
        by: `attribution_patch`: the drop if that head alone were ablated, to first order. `integrated_gradients`:
            shares of the drop if all are, which they add up to.
        method: What outputs of ablated heads are replaced by, as for `circuit_curves`.
        metric: The number that drops; it needs a gradient.

    Returns:
        Drops by sample and head, which rank heads by what they add; NaN where there is no head.

    Raises:
        ValueError: If a choice is not known, there is no sample, or the metric has no gradient.
    """
    check_choice("by", by, Attribution)
    check_choice("method", method, ReferenceMethod)
    samples = list(samples)
    every = HeadSet(tuple(model.heads))
    ablate_all = lazy_ablation(method, model, samples, positions="from_question")(every)
    layers, numbers = torch.tensor(every.heads).T
    drops = []
    for batch, prompts in prepare_batches(model, samples, 1, by.replace("_", " ")):
        inputs = append_answers(model, prompts, [sample.answer for sample in batch])
        with torch.no_grad(), model.hooks(fwd_hooks=ablate_all):
            _, ablated = model.run_with_cache(inputs, names_filter=model.attn_names("z"))
        changes = _ATTRIBUTIONS[by](model, ablated, inputs.tokens, inputs, metric, positions="from_question").cpu()
        drop = torch.full_like(changes, torch.nan)
        drop[:, layers, numbers] = -changes[:, layers, numbers]
        drops.append(drop)
    ids = [sample.id for sample in samples]
    return HeadScores(
        torch.cat(drops), f"drop in {metric_label(metric)} by {by}", tuple(ids), model.cfg.model_name,
        choices={"how": method, "positions": "from_question"},
        groups=join_groups([(ids, [sample.group for sample in samples])]),
    )  # fmt: skip


def eliminate_heads(
    model: HookedMLLM,
    samples: Iterable[Sample],
    at_once: Amount = 0.1,
    method: ReferenceMethod = "resample",
    metric: PatchingMetric = logit_margin,
) -> HeadSet:
    """Rank all heads by greedy backward elimination: ablate those that the rest can best do without, round by round.

    Each round ablates, beside the heads that went before, every remaining one by itself, in an exact pass for each
    sample; those whose loss leaves the highest mean of the metric go. With one at a time, `n` heads take
    `n * (n + 1) / 2 - 1` sets of heads; with a tenth of what is left, about ten times `n`. The progress bar shows their
    number, times that of samples, before the first pass.

    Args:
        model: The model.
        samples: Questions with media and answers.
        at_once: Heads that go in a round: a number, or a share of those that are left, rounded up.
        method: What outputs of ablated heads are replaced by, as for `circuit_curves`.
        metric: Computed for each answer.

    Returns:
        All heads, the last that was left first: `circuit_curves` takes them as a ranking.

    Raises:
        ValueError: If `at_once` is no number of heads, a choice is not known, or there is no sample.

    Source:
        corelens's own. ACDC (Conmy et al. 2023, arXiv 2304.14997) eliminates edges, in the order of the model and by a
        threshold.
    """
    check_choice("method", method, ReferenceMethod)
    samples = list(samples)
    left, gone = list(model.heads), []
    rounds = _rounds(len(left), at_once)
    intervention = lazy_ablation(method, model, samples, positions="from_question")
    with total_progress(sum(rounds[:-1]) * len(samples), "eliminate heads", "pass") as bar:
        for n, n_next in pairwise(rounds):
            bar.begin(f"{n} heads left", n)
            units = [HeadSet((*gone, head)) for head in left]
            means = sweep(model, samples, intervention, metric, per=units, progress=False).values.double().mean(0)
            bar.advance(len(samples))
            order = means.argsort(descending=True, stable=True).tolist()
            gone += [left[index] for index in order[: n - n_next]]
            left = [head for head in left if head not in gone]
    return HeadSet((*left, *gone[::-1]), "heads by elimination")


def _rounds(n_heads: int, at_once: Amount) -> list[int]:
    """Number of heads that each round of an elimination begins with; the last is one."""
    plain = plain_amount(at_once)
    if not plain > 0 or (isinstance(plain, float) and plain >= 1):
        raise ValueError(f"at_once={plain} is no number of heads: give one, such as 1, or a share, such as 0.1.")
    rounds = [n_heads]
    while rounds[-1] > 1:
        going = plain if isinstance(plain, int) else head_count(plain, rounds[-1])
        rounds.append(max(rounds[-1] - going, 1))
    return rounds
