"""The report of a study: verdicts first, then a section for each claim."""

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
from corelens.study.division import MEASURES
from corelens.study.generality import TOP
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
    result = {
        "model": study.scores["ram"].model,
        "findings": [finding.to_json() for finding in study.findings],
        "core heads": [str(head) for head in study.core],
        "accuracy": {
            "zero": _by_dataset(study.ablations),
            **{method: _by_dataset(results) for method, results in study.others.items()},
            "plans": _by_dataset(study.sparse_results),
        },
        "beside": {name: scores.model for name, scores in study.compared_models.items()},
        "times as fast": {
            name: round(speed_up(study.timing, name).value, 4) for name in study.timing.rounds[0] if name != BASELINE
        },
        "text-only": list(study.texts),
        "choices": dict(choices) | study.scores["ram"].choices,
        "skipped": dict(study.scores["ram"].skipped) | dict(study.ablations.skipped),
        "run": {name: manifest[name] for name in ("model", "revision", "weights", "dtype", "heads", "versions")},
    }
    atomic_write_json(folder / "study.json", result)
    html = page(folder).html()
    atomic_write(folder / "study.html", lambda path: path.write_text(html, encoding="utf-8"))
    return result


def _by_dataset(results: ConditionResults[Any]) -> dict[str, Any]:
    return {name: results.summary(name) for name in dict.fromkeys(results.datasets)}


def page(folder: Path) -> Page:
    """Build the report from the folder of a study.

    Raises:
        ValueError: If a run of the study is missing or unfinished.
    """
    required = ("model", "findings", "times as fast", "beside", "text-only", "choices", "run", "skipped")
    result = read_summary(folder / "study.json", *required)
    findings = result["findings"]
    verdicts = [finding["verdict"] for finding in findings]
    report = Page(
        f"Five claims about retrieval heads, tested on {result['model']}",
        f"{verdicts.count('supported')} supported, {verdicts.count('not supported')} not supported, "
        f"{verdicts.count('inconclusive')} inconclusive. The claims are those of arXiv 2606.05843; every rule was "
        f"fixed before this run, and a claim that is not supported for this model may hold for another.",
    )
    report.table(
        ["claim", "verdict", "what would change it"],
        [[finding["claim"], finding["verdict"], finding["what would change the verdict"]] for finding in findings],
    )
    scores, ablated = _scores(folder / "scan"), read_conditions(RunFolder.load(folder / "ablate"))
    report.text(
        f"Heads were chosen on {_counts(scores['ram'].datasets)}, and tested on {_counts(ablated.datasets)}. A "
        "criterion is met if the whole interval meets it, and not met if no part of the interval does; otherwise there "
        "are too few samples to tell."
    )
    figures = [
        [_sparsity(scores, _scores(folder / "untrained"))],
        [_generality(scores["ram"], result["beside"])],
        [_division(scores)],
        [[figure] for figure in _necessity(ablated, result["text-only"])],
        [[_acceleration(read_conditions(RunFolder.load(folder / "accelerate")), result["times as fast"])]],
    ]
    for finding, rows in zip(findings, figures, strict=True):
        _add_section(report, finding, rows)
    report.heading("Choices and sources")
    report.facts({name: str(value) for name, value in (result["choices"] | identity(result["run"])).items()})
    report.text(
        "Retrieval attention mass is inferred, since the paper's formula is not public: equation 9 of Elastic "
        "Attention (arXiv 2601.17367). CoRe heads are the top 5 % of all heads, chosen on every other sample and "
        "tested on the rest. Streaming heads are inferred from the same paper."
    )
    report.heading("Limits")
    report.text(
        "One model and the data sets named above. Intervals are 95 % bootstrap intervals over samples, and over heads "
        "where these are drawn at random, not over models or training runs, and for speed the slowest and fastest "
        "round; neither the five verdicts nor the numbers of each are corrected for multiple tests. The untrained "
        f"model has the same configuration and one draw of weights. Skipped samples: {len(result['skipped'])}."
    )
    return report


def _scores(folder: Path) -> dict[str, HeadScores]:
    """Scores of a finished scan, by metric."""
    return {path.stem: HeadScores.load(path) for path in RunFolder.load(folder).folder.glob("*.safetensors")}


def _counts(datasets: Sequence[str]) -> str:
    """Number of samples of each data set, in words."""
    return ", ".join(f"{n} of {name}" for name, n in Counter(datasets).items())


def _add_section(report: Page, finding: Mapping[str, Any], figures: Sequence[Sequence[go.Figure]]) -> None:
    report.heading(f"{finding['claim']}: {finding['verdict']}")
    report.text(f"Rule: {finding['rule']}")
    words = {True: "met", False: "not met", None: "cannot tell"}
    effects = [
        [words[effect["met"]] if effect["needed"] else "reported", effect["name"], effect["said"], effect["needed"]]
        for effect in finding["effects"]
    ]
    if effects:
        report.table(["", "effect", "value, 95 % interval", "needed"], effects)
    for note in finding["notes"]:
        report.text(note)
    for row in figures:
        report.figures(*row)


def _sparsity(scores: Mapping[str, HeadScores], untrained: Mapping[str, HeadScores]) -> list[go.Figure]:
    excess = scores[EXCESS.name]
    values = excess.values.clone()
    values[:, excess.mask] = shuffled(excess.values[:, None, excess.mask], torch.Generator().manual_seed(0))[:, 0]
    curves = {
        "this model": excess,
        "heads shuffled": replace(excess, values=values),
        "untrained": untrained[EXCESS.name],
    }
    # If no head attends to the evidence more than to the rest, its curve has no total.
    curves = {name: curve for name, curve in curves.items() if bool((curve.per_head > 0).any())}
    return [lorenz_curves(curves)] if curves else []


def _generality(ram: HeadScores, beside: Mapping[str, str]) -> list[go.Figure]:
    by_dataset: dict[str, HeadScores] = {name: ram.for_dataset(name) for name in dict.fromkeys(ram.datasets)}
    matrix = [overlap_matrix(by_dataset, "shared", TOP)] if len(by_dataset) > 1 else []
    # Folders of other studies, if they still exist.
    scans = {name: path for name in beside if (path := Path(name) / "scan" / "ram.safetensors").exists()}
    others = {name: HeadScores.load(path) for name, path in scans.items()}
    models = [depth_profiles({"this model": ram, **others})] if others else []
    return [*matrix, depth_profiles(by_dataset), *models]


def _division(scores: Mapping[str, HeadScores]) -> list[go.Figure]:
    first, second = (every_other(scores, start) for start in (0, 1))
    core = first["ram"].top(TOP)
    distributions = group_distributions({name: second[name] for name in MEASURES}, core)
    return [heads_by_two(second["entropy"], second["vera"], core), distributions]


def _necessity(results: ConditionResults[HeadSet], texts: Sequence[str]) -> list[go.Figure]:
    shares = {float(name.split()[-1][:-1]) / 100 for name in results.conditions if name.endswith("%")}
    fractions = sorted(shares | {TOP})
    heads: dict[str, list[list[HeadSet]]] = {}
    accuracies: dict[str, list[list[float]]] = {}
    datasets = list(dict.fromkeys(results.datasets))
    with_pictures = [name for name in datasets if name not in texts]
    for kind in ("top", "random"):
        conditions = [kind if fraction == TOP else f"{kind} {fraction:.0%}" for fraction in fractions]
        heads[kind] = [list(results.conditions[condition]) for condition in conditions]
        by_condition = [[results.accuracies(condition, name) for name in with_pictures] for condition in conditions]
        accuracies[kind] = [np.mean(by_dataset, 0).tolist() for by_dataset in by_condition]
    controls = [condition for condition in results.conditions if not condition.endswith("%")]
    bars = {name: {condition: results.accuracies(condition, name) for condition in controls} for name in datasets}
    n_samples = sum(results.datasets.count(name) for name in with_pictures)
    return [ablation_curves(AblationCurve(tuple(fractions), heads, accuracies), n_samples), accuracy_bars(bars)]


def _acceleration(results: ConditionResults[Any], times_as_fast: Mapping[str, float]) -> go.Figure:
    ways: dict[str, dict[str, tuple[float, float]]] = {}
    for name, speed in times_as_fast.items():
        way, _, budget = name.rpartition(" ")
        ways.setdefault(way or name, {})[budget] = speed, accuracy(results, name, results.datasets)
    return speed_against_accuracy(ways, accuracy(results, BASELINE, results.datasets))
