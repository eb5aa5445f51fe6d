"""The whole study of a model: scans, ablations and plans in one folder, and what they say of each claim."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import dispatch_model

from corelens.data import BoxUnit, Sample
from corelens.experiments.ablation import run_ablation
from corelens.experiments.conditions import ConditionResults, check_scoring
from corelens.experiments.resumable import flatten_datasets
from corelens.experiments.scan import scan_metrics
from corelens.experiments.sparse_eval import SparseResults, longest_prompt, run_sparse_eval
from corelens.heads import Head, HeadSet
from corelens.model import HookedMLLM
from corelens.progress import total_progress
from corelens.scores import HeadScores
from corelens.sparse import Streaming
from corelens.sparse.controls import plans_and_controls
from corelens.study.acceleration import Timing, acceleration, timing
from corelens.study.budget import FULL, SAMPLES_SCANNED, StudyBudget, Texts, halves, planned_work
from corelens.study.division import division
from corelens.study.generality import TOP, generality
from corelens.study.necessity import necessity
from corelens.study.sparsity import EXCESS, sparsity
from corelens.study.verdict import Finding


@dataclass(frozen=True)
class Study:
    """What was measured, and what it says of each claim."""

    findings: tuple[Finding, ...]
    scores: Mapping[str, HeadScores]
    untrained: Mapping[str, HeadScores]
    core: HeadSet
    ablations: ConditionResults[HeadSet]
    others: Mapping[str, ConditionResults[HeadSet]]
    sparse_results: SparseResults
    timing: Timing
    compared_models: Mapping[str, HeadScores]
    """Retrieval attention mass of other models."""

    texts: tuple[str, ...]
    """Which data sets are text-only."""


def run_study(
    model: HookedMLLM,
    samples: Mapping[str, Sequence[Sample]],
    texts: Texts,
    out: str | PathLike[str],
    size: StudyBudget = FULL,
    max_new_tokens: int = 32,
    box_unit: BoxUnit | None = None,
    beside: Mapping[str, HeadScores] | None = None,
    time_again: bool = False,
) -> Study:
    """Tests the five claims on a model.

    Args:
        model: The model.
        samples: Questions with media, answers and evidence, by data set.
        texts: Questions without media, the control for "cannot answer".
        out: A folder with a run folder for each part; the same study goes on where it was interrupted.
        size: How much is tried.
        max_new_tokens: Where answers are cut off.
        box_unit: The unit in which the model says boxes, for samples that ask for one.
        beside: Retrieval attention mass of other models, by name, with which depth, and where it has a meaning the
            heads, are compared.
        time_again: Measures speed anew although `out` holds it.

    Raises:
        ValueError: If a data set is too small, an answer cannot be scored, or anything that `scan_metrics`, `run_ablation`
            and `run_sparse_eval` say.
    """
    check_scoring(flatten_datasets({**samples, **texts}), box_unit)
    folder, works = Path(out), planned_work(samples, texts, size)
    found, seen = halves(samples)
    total = sum(work.total for work in works.values()) + size.rounds * size.n_timed
    with total_progress(total, "study", "pass") as bar:

        def begun(work: str) -> Path:
            bar.begin(work, works[work].conditions)
            return folder / work

        scores = scan_metrics(model, found, SAMPLES_SCANNED, out=begun("scan"))
        null = scan_metrics(untrained(model), found, ("ram", EXCESS), out=begun("untrained"))
        ram = scores["ram"]
        core = ram.top(TOP)

        conditions = ram.controls(TOP, range(size.seeds))
        for dose in size.doses:
            for kind, sets in _top_and_random(ram, dose, size.seeds).items():
                conditions[f"{kind} {dose:.0%}"] = sets
        ask: Any = partial(run_ablation, model, max_new_tokens=max_new_tokens, box_unit=box_unit)
        zeroed = ask({**seen, **texts}, conditions, out=begun("ablate"))
        others = {
            how if phase == "both" else f"{how} in {phase}": ask(
                seen, {"top": [core]}, how, phase, out=begun(f"ablate-{how}-{phase}")
            )
            for how, phase in size.operations
        }
        kept = {
            f"blinding all but {kind} {budget:.0%}": [complement(ram, heads) for heads in sets]
            for budget in size.budgets
            for kind, sets in _top_and_random(ram, budget, size.seeds).items()
        }
        others["sufficiency"] = ask(seen, kept, "blind", out=begun("blind"))

        longest = longest_prompt(model, seen)
        group_size = model.cfg.n_heads // model.cfg.n_key_value_heads
        cheap = streaming(longest["input_ids"].shape[1])
        plans = plans_and_controls(ram, group_size, cheap, size.budgets, range(size.seeds))
        accelerated = run_sparse_eval(
            model, seen, plans, max_new_tokens=max_new_tokens, box_unit=box_unit, out=begun("accelerate")
        )
        kinds = ("none", *(f"{kind} {100 * budget:g}%" for budget in size.budgets for kind in ("core", "random")))
        timed = {name: own for name, own in plans.items() if name in kinds}
        bar.begin("speed", size.n_timed)
        measured = timing(model, longest, timed, size.rounds, folder, time_again)

    first, second = (every_other(scores, start) for start in (0, 1))
    findings = (
        sparsity(scores[EXCESS.name], null[EXCESS.name]),
        generality(ram, null["ram"], beside or {}),
        division(ram, second, first["ram"].top(TOP)),
        necessity(zeroed, others, texts),
        acceleration(accelerated, measured),
    )
    return Study(findings, scores, null, core, zeroed, others, accelerated, measured, beside or {}, tuple(texts))


def untrained(model: HookedMLLM) -> HookedMLLM:
    """A model of the same configuration with the random weights that training would begin with, always the same.

    It takes as much memory as the model, beside it, on the same devices; while it is made, on the host.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = copy.deepcopy(model.hf_model.config)
        # Any: its own annotations do not say that models have a device.
        fresh: Any = type(model.hf_model)._from_config(config, dtype=model.hf_model.dtype)
    places = getattr(model.hf_model, "hf_device_map", {})
    spread = len(set(places.values())) > 1
    fresh = dispatch_model(fresh, places) if spread else fresh.to(model.device)
    made = HookedMLLM(fresh.eval(), model.processor)
    made.cfg.model_name = f"{model.cfg.model_name}, untrained"
    return made


def _top_and_random(scores: HeadScores, share: float, n_seeds: int) -> dict[str, list[HeadSet]]:
    """The top heads and, if there are as many others, random ones."""
    found = {"top": [scores.top(share)]}
    if 2 * len(found["top"][0]) <= scores.n_heads:
        found["random"] = [scores.random(seed, share) for seed in range(n_seeds)]
    return found


def complement(scores: HeadScores, kept: HeadSet) -> HeadSet:
    """All heads that have a score, without some."""
    others = [Head(*head) for head in scores.mask.nonzero().tolist() if Head(*head) not in kept]
    return HeadSet(tuple(others), f"all but {kept.name}")


def streaming(n_positions: int) -> Streaming:
    """What heads that do not see everything keep: the laboratory's 128 and 2,048, or less where prompts are short."""
    return Streaming(min(128, n_positions // 32), max(1, min(2048, n_positions // 4)))


def every_other(scores: Mapping[str, HeadScores], start: Literal[0, 1]) -> dict[str, HeadScores]:
    """Scores of half of the samples: the first half chooses heads whose looks are described on the second."""
    return {
        name: replace(one, values=one.values[start::2], samples=one.samples[start::2], datasets=one.datasets[start::2])
        for name, one in scores.items()
    }
