"""Report of a study, as JSON and as an HTML page: verdicts first, then a section for each claim."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from corelens.experiments.ablation import AblationCurve
from corelens.experiments.conditions import BASELINE, ConditionResults, read_conditions
from corelens.experiments.run_folder import RunFolder, atomic_write, atomic_write_json, read_summary
from corelens.heads import HeadSet
from corelens.reports.common import identity
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.study.acceleration import speed_up
from corelens.study.division import METRICS
from corelens.study.generality import TOP_SHARE
from corelens.study.run import Study, every_other
from corelens.study.sparsity import EXCESS, shuffled
from corelens.study.verdict import accuracy
from corelens.viz import (
    ablation_curves,
    accuracy_bars,
    depth_profiles,
    group_distributions,
    heads_by_two,
    lorenz_curves,
    overlap_matrix,
    speed_against_accuracy,
)


def save(study: Study, folder: Path, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Write `study.json` and `study.html` into the folder of the study, and return the content of the former."""
    manifest = RunFolder.load(folder / "scan").manifest
    summary = {
        "model": study.scores["ram"].model,
        "findings": [finding.to_json() for finding in study.findings],
        "core heads": [str(head) for head in study.core],
        "accuracy": {
            "zero": _summaries(study.ablations),
            **{method: _summaries(results) for method, results in study.other_ablations.items()},
            "plans": _summaries(study.sparse_results),
        },
        "compared with": {name: scores.model for name, scores in study.compared_models.items()},
        "times as fast": {
            name: round(speed_up(study.timing, name).value, 4) for name in study.timing.rounds[0] if name != BASELINE
        },
        "text-only": list(study.texts),
        "choices": dict(choices) | study.scores["ram"].choices,
        "skipped": dict(study.scores["ram"].skipped) | dict(study.ablations.skipped),
        "run": {name: manifest[name] for name in ("model", "revision", "weights", "dtype", "heads", "versions")},
    }
    atomic_write_json(folder / "study.json", summary)
    html = page(folder).html()
    atomic_write(folder / "study.html", lambda path: path.write_text(html, encoding="utf-8"))
    return summary


def page(folder: Path) -> Page:
    """Build the report from the folder of a study.

    Raises:
        ValueError: If a part of the study is missing or unfinished.
    """
    keys = ("model", "findings", "times as fast", "compared with", "text-only", "choices", "run", "skipped")
    summary = read_summary(folder / "study.json", *keys)
    findings = summary["findings"]
    verdicts = [finding["verdict"] for finding in findings]
    report = Page(
        f"What five claims about retrieval heads come to in {summary['model']}",
        f"{verdicts.count('supported')} supported, {verdicts.count('not supported')} not supported, "
        f"{verdicts.count('inconclusive')} inconclusive. The claims are those of arXiv 2606.05843; every rule stood "
        f"before this run, and a claim that is not supported of this model may hold of another.",
    )
    report.table(
        ["claim", "verdict", "what would change it"],
        [[finding["claim"], finding["verdict"], finding["what would change the verdict"]] for finding in findings],
    )
    scores, ablations = _scores(folder / "scan"), read_conditions(RunFolder.load(folder / "ablate"))
    report.text(
        f"Heads were chosen on {_counts(scores['ram'].datasets)}, and tested on {_counts(ablations.datasets)}. A "
        "number meets its need if its whole interval does, and does not if none of the interval does; otherwise this "
        "many samples cannot tell."
    )
    sparse_results = read_conditions(RunFolder.load(folder / "accelerate"))
    figure_rows = [
        [_sparsity(scores, _scores(folder / "untrained"))],
        [_generality(scores["ram"], summary["compared with"])],
        [_division(scores)],
        [[figure] for figure in _necessity(ablations, summary["text-only"])],
        [[_acceleration(sparse_results, summary["times as fast"])]],
    ]
    for finding, rows in zip(findings, figure_rows, strict=True):
        _section(report, finding, rows)
    report.heading("Choices and sources")
    report.facts({name: str(value) for name, value in (summary["choices"] | identity(summary["run"])).items()})
    report.text(
        "Retrieval attention mass is inferred, since the paper's formula is not public: equation 9 of Elastic "
        "Attention (arXiv 2601.17367). CoRe heads are the top 5 % of all heads, chosen on every other sample and "
        "tested on the rest. Streaming heads are inferred from the same paper."
    )
    report.heading("Limits")
    report.text(
        "One model and the data sets named above. Intervals are 95 % bootstrap intervals over samples, and over heads "
        "where these are drawn by chance, not over models or training runs, and of speed the slowest and fastest "
        "round; neither the five verdicts nor the numbers of each are corrected for being several. The untrained model "
        f"has the same configuration and one draw of weights. Samples left out: {len(summary['skipped'])}."
    )
    return report


def _summaries(results: ConditionResults[Any]) -> dict[str, Any]:
    return {name: results.summary(name) for name in dict.fromkeys(results.datasets)}


def _scores(folder: Path) -> dict[str, HeadScores]:
    """Scores of a finished scan by metric."""
    return {path.stem: HeadScores.load(path) for path in RunFolder.load(folder).folder.glob("*.safetensors")}


def _counts(datasets: Sequence[str]) -> str:
    return ", ".join(f"{n} of {name}" for name, n in Counter(datasets).items())


def _section(report: Page, finding: Mapping[str, Any], figure_rows: Sequence[Sequence[go.Figure]]) -> None:
    """Add a claim with its verdict, rule, measurements, notes and rows of figures."""
    report.heading(f"{finding['claim']}: {finding['verdict']}")
    report.text(f"Rule: {finding['rule']}")
    outcomes = {True: "met", False: "not met", None: "cannot tell"}
    rows = [
        [
            outcomes[measurement["met"]] if measurement["needed"] else "reported",
            measurement["name"],
            measurement["text"],
            measurement["needed"],
        ]
        for measurement in finding["measurements"]
    ]
    if rows:
        report.table(["", "measurement", "value, 95 % interval", "needed"], rows)
    for note in finding["notes"]:
        report.text(note)
    for figures in figure_rows:
        report.figures(*figures)


def _sparsity(scores: Mapping[str, HeadScores], untrained: Mapping[str, HeadScores]) -> list[go.Figure]:
    excess = scores[EXCESS.name]
    shuffled_values = excess.values.clone()
    head_values = excess.values[:, None, excess.mask]
    shuffled_values[:, excess.mask] = shuffled(head_values, torch.Generator().manual_seed(0))[:, 0]
    curves = {
        "this model": excess,
        "heads shuffled": replace(excess, values=shuffled_values),
        "untrained": untrained[EXCESS.name],
    }
    # Where no head attends to the evidence more than to the rest, there is no mass to share out.
    curves = {name: heads for name, heads in curves.items() if bool((heads.per_head > 0).any())}
    return [lorenz_curves(curves)] if curves else []


def _generality(ram: HeadScores, compared_models: Mapping[str, str]) -> list[go.Figure]:
    by_dataset: dict[str, HeadScores] = {name: ram.for_dataset(name) for name in dict.fromkeys(ram.datasets)}
    matrix = [overlap_matrix(by_dataset, "shared", TOP_SHARE)] if len(by_dataset) > 1 else []
    # Folders of other studies, unless they were moved since.
    paths = {name: path for name in compared_models if (path := Path(name) / "scan" / "ram.safetensors").exists()}
    others = {name: HeadScores.load(path) for name, path in paths.items()}
    models = [depth_profiles({"this model": ram, **others})] if others else []
    return [*matrix, depth_profiles(by_dataset), *models]


def _division(scores: Mapping[str, HeadScores]) -> list[go.Figure]:
    first, second = (every_other(scores, start) for start in (0, 1))
    core = first["ram"].top(TOP_SHARE)
    distributions = group_distributions({name: second[name] for name in METRICS}, core)
    return [heads_by_two(second["entropy"], second["vera"], core), distributions]


def _necessity(ablations: ConditionResults[HeadSet], texts: Sequence[str]) -> list[go.Figure]:
    conditions = ablations.conditions
    fractions = sorted({float(name.split()[-1][:-1]) / 100 for name in conditions if name.endswith("%")} | {TOP_SHARE})
    heads: dict[str, list[list[HeadSet]]] = {}
    accuracies: dict[str, list[list[float]]] = {}
    datasets = list(dict.fromkeys(ablations.datasets))
    visual_sets = [name for name in datasets if name not in texts]
    for kind in ("top", "random"):
        names = [kind if fraction == TOP_SHARE else f"{kind} {fraction:.0%}" for fraction in fractions]
        heads[kind] = [list(conditions[name]) for name in names]
        by_dataset = [[ablations.accuracies(name, dataset) for dataset in visual_sets] for name in names]
        accuracies[kind] = [np.mean(values, 0).tolist() for values in by_dataset]
    bars = {
        dataset: {name: ablations.accuracies(name, dataset) for name in conditions if not name.endswith("%")}
        for dataset in datasets
    }
    n_samples = sum(ablations.datasets.count(name) for name in visual_sets)
    return [ablation_curves(AblationCurve(tuple(fractions), heads, accuracies), n_samples), accuracy_bars(bars)]


def _acceleration(sparse_results: ConditionResults[Any], times_as_fast: Mapping[str, float]) -> go.Figure:
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for name, speed in times_as_fast.items():
        kind, _, fraction = name.rpartition(" ")
        points.setdefault(kind or name, {})[fraction] = speed, accuracy(sparse_results, name, sparse_results.datasets)
    return speed_against_accuracy(points, accuracy(sparse_results, BASELINE, sparse_results.datasets))
