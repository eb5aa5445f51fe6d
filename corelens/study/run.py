"""A study of a model: scans, ablations and sparse evaluations in one folder, and a finding for each claim."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import dispatch_model

from corelens.data import BoxUnit, Sample
from corelens.experiments.ablation import dose_conditions, run_ablation
from corelens.experiments.conditions import ConditionResults
from corelens.experiments.controls import WRITE_NORM
from corelens.experiments.key_token_results import KeyTokens
from corelens.experiments.key_tokens import rank_and_draw, scan_key_tokens
from corelens.experiments.remote import AnyModel, call, changed
from corelens.experiments.resumable import check_scoring, flatten_datasets
from corelens.experiments.scan import scan_metrics
from corelens.experiments.sparse_eval import SparseResults, run_sparse_eval, shape_and_longest
from corelens.experiments.sweep import run_sweep
from corelens.heads import Head, HeadSet
from corelens.model import HookedMLLM
from corelens.progress import progress, total_progress
from corelens.scores import HeadScores
from corelens.sparse import Streaming
from corelens.sparse.controls import plans_and_controls
from corelens.study.acceleration import Timing, acceleration, measure_timing, published_counts, run_published
from corelens.study.budget import FULL, SCANNED_METRICS, StudyBudget, Texts, halves, planned_work
from corelens.study.division import division, every_other
from corelens.study.generality import TOP_SHARE, generality
from corelens.study.key_tokens import key_token_finding, n_compared
from corelens.study.markers import markers, with_markers
from corelens.study.necessity import matched_controls, necessity, reliability
from corelens.study.other_evidence import with_other_evidence, with_other_questions
from corelens.study.query_tokens import QUERY_TOKENS, query_tokens
from corelens.study.relevance import MovedEvidence, relevance
from corelens.study.sparsity import EXCESS, sparsity
from corelens.study.tasks import (
    TASK_METRICS,
    cost_matrix,
    groups_by_heads,
    task_conditions,
    task_groups,
    tasks,
    unnamed,
)
from corelens.study.verdict import Finding, mean_chance


@dataclass(frozen=True)
class Study:
    """Results of all experiments of a study, and a finding for each claim."""

    findings: tuple[Finding, ...]
    scores: Mapping[str, HeadScores]
    untrained: tuple[Mapping[str, HeadScores], ...]
    """Scores of untrained models."""

    core: HeadSet
    ablations: ConditionResults[HeadSet]
    """Accuracy with heads zeroed."""

    text_ablations: ConditionResults[HeadSet] | None
    """The same of text-only questions; None if there are none."""

    other_ablations: Mapping[str, ConditionResults[HeadSet]]
    """Accuracy with heads ablated by other methods or in one phase, under the paper's mask, with all other heads
    blinded, and with the heads zeroed that other query tokens find."""

    task_costs: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Cost of zeroing the heads of each task, by metric, heads and questions; empty if there is one task."""

    key_tokens: KeyTokens
    sparse_results: SparseResults
    timing: Timing
    compared_models: Mapping[str, HeadScores]
    """Retrieval attention mass of other models."""


def run_study(
    model: AnyModel,
    samples: Mapping[str, Sequence[Sample]],
    texts: Texts,
    out: str | PathLike[str],
    budget: StudyBudget = FULL,
    max_new_tokens: int = 32,
    box_unit: BoxUnit | None = None,
    compare_with: Mapping[str, HeadScores] | None = None,
    time_again: bool = False,
) -> Study:
    """Test the paper's claims on a model, and three questions about how its heads are found.

    Args:
        model: The model.
        samples: Questions with media, answers and evidence, by data set.
        texts: Questions without media, the control for "cannot answer".
        out: Folder with a run folder for each experiment; the same study resumes where it was interrupted.
        budget: Conditions that are tried.
        max_new_tokens: Length at which answers are cut off.
        box_unit: Unit of the boxes in the model's answers, for samples that ask for a box.
        compare_with: Retrieval attention mass of other models, by name. Depths are compared, and heads where both
            models have as many.
        time_again: Measure speed again although `out` holds it.

    Raises:
        ValueError: If a data set is too small, an answer cannot be scored, or any that `scan_metrics`, `run_ablation`
            and `run_sparse_eval` raise.
    """
    check_scoring(flatten_datasets({**samples, **texts}), box_unit)
    folder = Path(out)
    scanned, tested = halves(samples)
    facts = call(model, partial(_facts, scanned=scanned, tested=tested))
    works, n_heads, n_positions = planned_work(samples, texts, budget, facts.n_heads), facts.n_heads, facts.n_positions
    seeds, doses = range(budget.n_seeds), budget.doses_of(n_heads)
    counts = published_counts(n_positions, n_heads)
    n_published = 1 + (1 + budget.n_seeds) * len(counts) if counts else 0
    total = sum(work.total for work in works.values()) + budget.n_rounds * budget.n_timed_plans
    total += n_published * works["accelerate"].samples
    with total_progress(total, "study", "pass") as bar:

        def begin(name: str) -> Path:
            bar.begin(name, works[name].conditions)
            return folder / name

        scores = scan_metrics(model, scanned, SCANNED_METRICS, out=begin("scan"))
        ram = scores["ram"]
        core = ram.top(TOP_SHARE)
        asked = {name: with_other_questions(half) for name, half in scanned.items()}
        moved_ram, asked_ram = (
            scan_metrics(model, with_partners, ("ram",), out=begin(name))["ram"] if with_partners else None
            for name, with_partners in (
                ("other-evidence", {name: of_half.samples for name, of_half in facts.moved.items() if of_half.samples}),
                ("other-questions", {name: half for name, half in asked.items() if half}),
            )
        )
        untrained_scores, untrained_key_tokens = [], []
        for init_seed in range(budget.n_untrained):
            untrained_model = changed(model, partial(untrained, seed=init_seed))
            of_untrained = scan_metrics(untrained_model, scanned, ("ram", EXCESS), out=begin(f"untrained-{init_seed}"))
            untrained_scores.append(of_untrained)
            if init_seed == 0:
                top = {"top": [of_untrained["ram"].top(n_compared(n_heads))]}
                untrained_key_tokens.append(
                    scan_key_tokens(untrained_model, tested, top, out=begin("untrained-key-tokens"))
                )
            del untrained_model  # before another is built

        of_doses = dose_conditions(ram, doses, seeds) if doses else {}
        controls = ram.controls(TOP_SHARE, seeds)
        matched, no_controls = matched_controls(core, scores[WRITE_NORM], budget.n_matched)
        answers: dict[str, Any] = dict(max_new_tokens=max_new_tokens, box_unit=box_unit)
        ablate: Any = partial(run_ablation, model, **answers, write_norm=scores[WRITE_NORM])
        ablations = ablate(tested, controls | matched | _of_kinds(of_doses, "top", "random"), out=begin("ablate"))
        text_ablations = ablate(texts, controls, out=begin("ablate-texts")) if texts else None
        masked = ablate(tested, _of_kinds(of_doses, "top", "random", "bottom"), "uniform_all_keys", out=begin("mask"))
        key_tokens = scan_key_tokens(model, tested, rank_and_draw(ram, seeds=seeds), out=begin("key-tokens"))
        by_query_tokens = {f"{name} {dose}": [scores[name].top(dose)] for name in QUERY_TOKENS for dose in doses}
        query_ablations = ablate(tested, by_query_tokens, out=begin("query-tokens"))
        by_heads, about_groups = {}, []
        if without_tasks := {name: tested[name] for name in unnamed(samples)}:
            by_heads, about_groups = groups_by_heads(
                scores, scan_metrics(model, without_tasks, TASK_METRICS, out=begin("unnamed-tasks"))
            )
        groups = task_groups(scanned, tested, by_heads)
        of_tasks = task_conditions(scores, groups)
        task_ablations = None
        if of_tasks:
            n_conditions = 1 + len(of_tasks)
            bar.extend(sum(map(len, tested.values())) * n_conditions - works["tasks"].total)
            bar.begin("tasks", n_conditions)
            task_ablations = ablate(tested, of_tasks, out=folder / "tasks")
        effects = run_sweep(
            model, {name: half[: budget.n_effects] for name, half in tested.items()}, out=begin("effects")
        ).scores()
        marked = {name: with_markers(half) for name, half in scanned.items()}
        marked_ram = scan_metrics(model, marked, ("ram",), out=begin("markers"))["ram"]
        other_ablations = {
            method if phase == "both" else f"{method} in {phase}": ablate(
                tested, {"top": [core]}, method, phase, out=begin(f"ablate-{method}-{phase}")
            )
            for method, phase in budget.methods
        }
        blinded = {
            f"blinding all but {kind} {fraction:.0%}": [complement(ram, heads) for heads in sets]
            for fraction in budget.kept_fractions
            for kind, sets in _top_and_random(ram, fraction, budget.n_seeds).items()
        }
        other_ablations["sufficiency"] = ablate(tested, blinded, "blind", out=begin("blind"))

        plans = plans_and_controls(ram, facts.group_size, streaming(n_positions), budget.kept_fractions, seeds)
        writing: Any = answers | {"write_norm": scores[WRITE_NORM]}
        sparse_results = run_sparse_eval(model, tested, plans, out=begin("accelerate"), **writing)
        published_results = None
        if counts:
            bar.begin("published", n_published)
            published_results = run_published(
                model, tested, ram, facts.group_size, counts, seeds, folder / "published", **writing
            )
        timed_names = (
            "none",
            *(f"{kind} {100 * fraction:g}%" for fraction in budget.kept_fractions for kind in ("core", "random")),
        )
        timed_plans = {name: plans[name] for name in plans if name in timed_names}
        bar.begin("speed", budget.n_timed_plans)
        timing = measure_timing(model, tested, timed_plans, budget.n_rounds, folder, time_again)

    chance = {name: mean_chance(dataset) for name, dataset in {**tested, **texts}.items()}
    first, second = (every_other(scores, start) for start in (0, 1))
    chosen = first["ram"].top(TOP_SHARE)
    relevant = relevance(second["ram"], moved_ram, asked_ram, chosen, facts.moved)
    untrained_ram, untrained_excess = ([of[name] for of in untrained_scores] for name in ("ram", EXCESS.name))
    chosen_again = reliability(ram, TOP_SHARE)
    claims: list[Callable[[], Finding]] = [
        partial(sparsity, scores[EXCESS.name], untrained_excess, relevant),
        partial(generality, ram, untrained_ram, compare_with or {}),
        partial(division, first["ram"], second, chosen, relevant),
        partial(necessity, ablations, text_ablations, other_ablations, masked, chosen_again, chance, no_controls),
        partial(key_token_finding, key_tokens, *untrained_key_tokens),
        partial(acceleration, sparse_results, timing, published_results, chance),
        partial(query_tokens, scores, query_ablations, ablations, effects),
        partial(tasks, task_ablations, groups, about_groups),
        partial(markers, ram, marked_ram, TOP_SHARE),
    ]
    findings = []
    with progress(len(claims), "verdicts", "claim") as advance:
        for find in claims:
            findings.append(find())
            advance(1)
    return Study(
        findings=tuple(findings),
        scores=scores,
        untrained=tuple(untrained_scores),
        core=core,
        ablations=ablations,
        text_ablations=text_ablations,
        other_ablations={**other_ablations, "uniform_all_keys": masked, "query tokens": query_ablations},
        task_costs={metric: cost_matrix(task_ablations, groups, metric) for metric in TASK_METRICS if task_ablations},
        key_tokens=key_tokens,
        sparse_results=sparse_results,
        timing=timing,
        compared_models=compare_with or {},
    )


class _Facts(NamedTuple):
    """Numbers of a model, and of samples as its processor prepares them."""

    n_heads: int
    group_size: int
    """Heads that share keys and values."""

    n_positions: int
    """Length of the longest prompt."""

    moved: dict[str, MovedEvidence]
    """Samples with the evidence of others, by data set."""


def _facts(
    model: HookedMLLM, scanned: Mapping[str, Sequence[Sample]], tested: Mapping[str, Sequence[Sample]]
) -> _Facts:
    shape, n_positions = shape_and_longest(model, tested)
    moved = {name: with_other_evidence(model, half) for name, half in scanned.items()}
    return _Facts(len(shape.heads), shape.group_size, n_positions, moved)


def untrained(model: HookedMLLM, seed: int) -> HookedMLLM:
    """Build a model of the same configuration with random initial weights, the same for a seed.

    It takes as much memory as the model, in addition, on the same devices; while it is built, on the host.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the host
        config = copy.deepcopy(model.hf_model.config)
        # Any: its own annotations do not say that models have a device.
        hf_model: Any = type(model.hf_model)._from_config(config, dtype=model.hf_model.dtype)
    device_map = getattr(model.hf_model, "hf_device_map", {})
    on_several_devices = len(set(device_map.values())) > 1
    hf_model = dispatch_model(hf_model, device_map) if on_several_devices else hf_model.to(model.device)
    untrained_model = HookedMLLM(hf_model.eval(), model.processor)
    untrained_model.cfg.model_name = f"{model.cfg.model_name}, untrained, seed {seed}"
    return untrained_model


def _top_and_random(scores: HeadScores, fraction: float, n_seeds: int) -> dict[str, list[HeadSet]]:
    """The top heads and, if there are as many others, random ones."""
    controls = scores.controls(fraction, range(n_seeds))
    return {kind: controls[kind] for kind in ("top", "random") if kind in controls}


def _of_kinds(conditions: Mapping[str, list[HeadSet]], *kinds: str) -> dict[str, list[HeadSet]]:
    """The conditions of some kinds, such as `top 5` and `top 10`."""
    return {name: sets for name, sets in conditions.items() if name.rpartition(" ")[0] in kinds}


def complement(scores: HeadScores, heads: HeadSet) -> HeadSet:
    """All heads that have a score, except some."""
    others = [Head(*head) for head in scores.mask.nonzero().tolist() if Head(*head) not in heads]
    return HeadSet(tuple(others), f"all but {heads.name}")


def streaming(n_positions: int) -> Streaming:
    """Rule of heads that do not attend to everything: the laboratory's 128 and 2,048, or less for short prompts."""
    return Streaming(min(128, n_positions // 32), max(1, min(2048, n_positions // 4)))
