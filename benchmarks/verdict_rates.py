"""How often each rule of the study errs: verdicts on made-up models of which a claim is true, and of which it is not.

A model of which a claim is false must seldom be `supported`, and one of which it is true must seldom be `not
supported`; how often it is supported is the rule's power. What is made up are the numbers that a study measures: scores
of 96 heads, and right and wrong answers. Where a claim is false, its main number is as in the controls, or misses what
the rule needs. `division of labour` has curves of its own in error_rates.py.

No model runs and no time is measured; the numbers are the same on every machine. The last line is JSON.

    python benchmarks/verdict_rates.py [--experiments 40] [--claims tasks markers]
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from corelens.experiments.conditions import ConditionResults
from corelens.experiments.key_token_results import KeyTokens
from corelens.experiments.sparse_eval import SparseResults
from corelens.experiments.speed import Speed
from corelens.heads import Head, HeadSet
from corelens.scores import HeadScores
from corelens.study.acceleration import Timing, acceleration
from corelens.study.generality import generality
from corelens.study.key_tokens import key_token_finding
from corelens.study.markers import markers
from corelens.study.necessity import necessity
from corelens.study.query_tokens import QUERY_TOKENS, query_tokens
from corelens.study.sparsity import sparsity
from corelens.study.tasks import TASK_METRICS, tasks
from corelens.study.verdict import Finding, Measurement

N_SAMPLES = (20, 80, 320)
"""Samples that test a claim, of all data sets together."""

N_LAYERS, N_HEADS, N_TOP = 6, 16, 5
DATASETS = ("scenes", "pages")
MET = Measurement("a need that other numbers meet", 1.0, 1.0, 1.0, at_least=0.5)


def names(n: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and data sets of samples."""
    return tuple(map(str, range(n))), tuple(DATASETS[number % 2] for number in range(n))


def head_scores(per_head: np.ndarray, n: int, rng: np.random.Generator) -> HeadScores:
    """Scores of samples about those of heads: [layer head], or [sample layer head]; a sample's noise is as large."""
    ids, datasets = names(n)
    noisy = per_head * rng.lognormal(0, 1, (n, N_LAYERS, N_HEADS))
    return HeadScores(torch.from_numpy(noisy).float(), "ram", ids, datasets=datasets)


def masses(rng: np.random.Generator) -> np.ndarray:
    """Mass of every head of a model that has no heads of a kind of their own: [layer head]."""
    return rng.lognormal(0, 0.5, (N_LAYERS, N_HEADS))


def with_top_heads(per_head: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same with five heads that have forty times as much as the mean."""
    changed = per_head.copy()
    changed.flat[rng.choice(per_head.size, N_TOP, replace=False)] = 40 * per_head.mean()
    return changed


def results(accuracies: Mapping[str, float | Sequence[float]], n: int, rng: np.random.Generator) -> Any:
    """Answers that are right with these probabilities, by condition; several where a condition has several draws."""
    ids, datasets = names(n)
    luck = rng.random((n, 1))  # what is right with a low probability is right with a higher one
    values = {
        name: torch.from_numpy(np.where(rng.random((n, 1)) < 0.1, rng.random((n, 1)), luck) < np.atleast_1d(rates))
        for name, rates in accuracies.items()
    }
    sets = {name: [HeadSet(())] * of.shape[1] for name, of in values.items()}
    return ConditionResults(sets, {name: of.float() for name, of in values.items()}, ids, datasets, {})


def sparse(is_true: bool, n: int, rng: np.random.Generator) -> Finding:
    """Five heads hold 70 % of the mass; or heads are as in the untrained models."""
    per_head = with_top_heads(masses(rng), rng) if is_true else masses(rng)
    return sparsity(head_scores(per_head, n, rng), [head_scores(masses(rng), n, rng) for _ in range(3)], [MET])


def general(is_true: bool, n: int, rng: np.random.Generator) -> Finding:
    """Data sets have the same top heads and ranks; or each has its own, as heads of untrained models have."""
    per_head = with_top_heads(masses(rng), rng)
    others = per_head if is_true else with_top_heads(masses(rng), rng)

    def scores(*of_datasets: np.ndarray) -> HeadScores:
        return head_scores(np.stack([of_datasets[number % 2] for number in range(n)]), n, rng)

    return generality(scores(per_head, others), [scores(masses(rng), masses(rng)) for _ in range(3)])


def needed(is_true: bool, n: int, rng: np.random.Generator) -> Finding:
    """Without the top heads 50 of 90 points are lost, and no more than 5 without others; or 50 without any."""
    control = 0.85 if is_true else 0.4
    draws = [control] * 10
    zeroed = {"plain": 0.9, "top": 0.4, "next-ranked": control, "write-matched": draws, "bottom": control}
    on_text = replace(results({"plain": 0.95, "top": 0.95}, n, rng), datasets=("copy",) * n)
    mean = results({"plain": 0.9, "top": 0.4}, n, rng)
    masked = results({"plain": 0.9, "top 5": 0.4, "random 5": [control] * 3, "bottom 5": control}, n, rng)
    return necessity(results(zeroed, n, rng), on_text, {"mean": mean}, masked, MET)


def key_tokens(is_true: bool, n: int, rng: np.random.Generator) -> Finding:
    """Top heads hit the evidence in 30 % of samples, others in 5 %; or all in 5 %."""
    top = HeadSet(tuple(Head(0, head) for head in range(15)))
    others = [HeadSet(tuple(Head(layer, head) for head in range(15))) for layer in (1, 2)]

    def made_up(rate: float) -> KeyTokens:
        hits = rng.random((n, N_LAYERS, N_HEADS)) < 0.05
        hits[:, 0] = rng.random((n, N_HEADS)) < rate
        ids, datasets = names(n)
        ratios = HeadScores(torch.from_numpy(hits).float(), "key_token_ratio", ids, datasets=datasets)
        rankings = {"top": [top], "random": others[:1], "bottom": others[1:]}
        coverage = {
            kind: torch.from_numpy(hits[:, [draw.heads[0].layer for draw in draws], :15]).float().cummax(-1).values
            for kind, draws in rankings.items()
        }
        return KeyTokens(ratios, rankings, coverage, torch.full((n,), 100), torch.full((n,), 4))

    return key_token_finding(made_up(0.3 if is_true else 0.05), made_up(0.05))


def fast(is_true: bool, n: int, rng: np.random.Generator) -> Finding:
    """Accuracy stays, at twice the speed; or ten of 90 points are lost."""
    of_answers = results({"plain": 0.9, "core 5%": 0.9 if is_true else 0.8, "random 5%": [0.3] * 3}, n, rng)
    recall = {name: torch.ones(n, 1) for name in of_answers.conditions}
    conditions: Any = {name: [] for name in of_answers.conditions}
    under_plans = SparseResults(conditions, of_answers.values, of_answers.samples, of_answers.datasets, {}, recall)
    speeds = [{"plain": Speed(ratio, 1.0, 1), "core 5%": Speed(1.0, 1.0, 1)} for ratio in (1.9, 2.0, 2.1)]
    return acceleration(under_plans, Timing(speeds, n, "an abacus"))


def by_question(is_true: bool, n: int, rng: np.random.Generator) -> Finding:
    """Heads of the question cost 15 points more than those of other tokens; or 15 less."""
    costs = dict.fromkeys(QUERY_TOKENS, 0.3) | {"ram": 0.45 if is_true else 0.15}
    ablations = results({"plain": 0.9} | {f"{metric} 5": 0.9 - cost for metric, cost in costs.items()}, n, rng)
    scores = {metric: head_scores(masses(rng), 4, rng) for metric in QUERY_TOKENS}
    return query_tokens(scores, ablations, results({"plain": 0.9, "random 5": 0.9}, n, rng), scores["ram"])


def by_task(is_true: bool, n: int, rng: np.random.Generator) -> Finding:
    """The heads of a task cost 50 points in it and 5 in the other; or 30 in both."""
    own, other = (0.4, 0.85) if is_true else (0.6, 0.6)
    ids, datasets = names(n)
    values = {"plain": torch.from_numpy(rng.random((n, 1)) < 0.9).float()}
    for metric in TASK_METRICS:
        for task in DATASETS:
            rates = np.array([own if dataset == task else other for dataset in datasets]) / 0.9
            values[f"{metric}, {task}"] = values["plain"] * torch.from_numpy(rng.random(n) < rates).float()[:, None]
    sets = {name: [HeadSet((Head(0, number),))] for number, name in enumerate(values)}
    ablations = ConditionResults(sets, values, ids, datasets, {})
    return tasks(ablations, {(dataset, sample): dataset for dataset, sample in zip(datasets, ids, strict=True)})


def unmarked(is_true: bool, n: int, rng: np.random.Generator) -> Finding:
    """With markers scores are as without, but for noise; or other heads are the top."""
    per_head = with_top_heads(masses(rng), rng)
    plain = head_scores(per_head, n, rng)
    if not is_true:
        return markers(plain, head_scores(with_top_heads(masses(rng), rng), n, rng), 0.05)
    noise = torch.from_numpy(rng.lognormal(0, 0.05, tuple(plain.values.shape))).float()
    return markers(plain, HeadScores(plain.values * noise, "ram", plain.samples, datasets=plain.datasets), 0.05)


CLAIMS: dict[str, Callable[[bool, int, np.random.Generator], Finding]] = {
    "sparsity": sparse,
    "generality": general,
    "necessity": needed,
    "key tokens": key_tokens,
    "acceleration": fast,
    "query tokens": by_question,
    "tasks": by_task,
    "markers": unmarked,
}


def verdict_rates(claim: str, is_true: bool, n: int, n_experiments: int) -> dict[str, float]:
    """Share of each verdict among made-up models."""
    rng = np.random.default_rng(0)
    verdicts = [CLAIMS[claim](is_true, n, rng).verdict for _ in range(n_experiments)]
    return {verdict: verdicts.count(verdict) / n_experiments for verdict in dict.fromkeys(verdicts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=40)
    parser.add_argument("--claims", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    arguments = parser.parse_args()
    rates: dict[str, Any] = {}
    print(f"{'claim':<16}{'truth':<8}{'verdict':<16}", *(f"{n:>6}" for n in N_SAMPLES))
    for claim in tqdm(arguments.claims):
        for truth in ("false", "true"):
            by_n = {n: verdict_rates(claim, truth == "true", n, arguments.experiments) for n in N_SAMPLES}
            rates.setdefault(claim, {})[truth] = by_n
            for verdict in ("supported", "not supported"):
                shares = (f"{of.get(verdict, 0):>6.0%}" for of in by_n.values())
                print(f"{claim:<16}{truth:<8}{verdict:<16}", *shares, flush=True)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
