"""A study as one HTML page and one JSON object: verdicts first, then a section for each claim."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from corelens.causal import DoseCurve
from corelens.conditions import PLAIN
from corelens.heads import HeadSet
from corelens.scores import HeadScores
from corelens.store import write_whole
from corelens.study.acceleration import accuracy, speed_up
from corelens.study.finding import Finding
from corelens.study.generality import TOP
from corelens.study.run import Study
from corelens.study.sparsity import EXCESS
from corelens.viz import (
    accuracy_bars,
    depth_profiles,
    dose_curves,
    lorenz_curves,
    overlap_matrix,
    speed_against_accuracy,
)
from corelens.viz.curves import heads_by_two
from corelens.viz.report import Page


def save(study: Study, folder: Path, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `study.json` and `study.html`, and returns what the former holds."""
    result = {
        "model": study.scores["ram"].model,
        "findings": [finding.to_json() for finding in study.findings],
        "core heads": [str(head) for head in study.core],
        "accuracy": {
            "zero": {name: study.zeroed.summary(name) for name in dict.fromkeys(study.zeroed.datasets)},
            **{
                how: {name: found.summary(name) for name in dict.fromkeys(found.datasets)}
                for how, found in study.others.items()
            },
            "plans": {name: study.accelerated.summary(name) for name in dict.fromkeys(study.accelerated.datasets)},
        },
        "beside": {name: one.model for name, one in study.beside.items()},
        "choices": dict(choices) | study.scores["ram"].choices,
        "skipped": dict(study.scores["ram"].skipped) | dict(study.zeroed.skipped),
        "versions": {package: version(package) for package in ("corelens", "torch", "transformers")},
    }
    text, html = json.dumps(result, indent=1), page(study, result).html()
    write_whole(folder / "study.json", lambda path: path.write_text(text))
    write_whole(folder / "study.html", lambda path: path.write_text(html, encoding="utf-8"))
    return result


def page(study: Study, result: Mapping[str, Any]) -> Page:
    """The report."""
    counts = [finding.verdict for finding in study.findings]
    made = Page(
        f"What five claims about retrieval heads come to in {result['model']}",
        f"{counts.count('supported')} supported, {counts.count('not supported')} not supported, "
        f"{counts.count('inconclusive')} inconclusive. The claims are those of arXiv 2606.05843; every rule was set "
        f"before the run, and a claim that is not supported of this model may hold of another.",
    )
    made.table(
        ["claim", "verdict", "what would change it"],
        [[finding.claim, finding.verdict, finding.would_change] for finding in study.findings],
        -1,
    )
    figures = [_sparsity(study), _generality(study), _division(study), _necessity(study), [_acceleration(study)]]
    for finding, own in zip(study.findings, figures, strict=True):
        _section(made, finding, own)
    made.heading("Choices and sources")
    made.text("; ".join(f"{name}: {value}" for name, value in result["choices"].items()))
    made.text(
        "Retrieval attention mass is inferred, since the paper's formula is not public: equation 9 of Elastic "
        "Attention (arXiv 2601.17367). CoRe heads are the top 5 % of all heads, chosen on every other sample and "
        "tested on the rest. Streaming heads are inferred from the same paper."
    )
    made.heading("Limits")
    made.text(
        "One model and the data sets named above. Intervals are 95 % bootstrap intervals over samples, not over models "
        "or training runs, and five verdicts are not corrected for being five. The untrained model has the same "
        f"configuration and one draw of weights. Samples left out: {len(result['skipped'])}."
    )
    return made


def _section(made: Page, finding: Finding, figures: list[go.Figure]) -> None:
    made.heading(f"{finding.claim}: {finding.verdict}")
    made.text(f"Rule: {finding.rule}")
    said = {True: "met", False: "not met", None: "open"}
    rows = [[one.name, str(one), one.need, said[one.met] if one.needed else "reported"] for one in finding.effects]
    if rows:
        made.table(["effect", "value, 95 % interval", "needed", ""], rows, -1)
    for note in finding.notes:
        made.text(note)
    if figures:
        made.figures(*figures)


def _sparsity(study: Study) -> list[go.Figure]:
    name = EXCESS.name
    return [lorenz_curves({"this model": study.scores[name], "untrained": study.untrained[name]})]


def _generality(study: Study) -> list[go.Figure]:
    ram = study.scores["ram"]
    by_name: dict[str, HeadScores] = {name: ram.of_dataset(name) for name in dict.fromkeys(ram.datasets)}
    matrix = [overlap_matrix(by_name, "jaccard", TOP)] if len(by_name) > 1 else []
    models = [depth_profiles({"this model": ram, **study.beside})] if study.beside else []
    return [*matrix, depth_profiles(by_name), *models]


def _division(study: Study) -> list[go.Figure]:
    return [heads_by_two(study.scores["entropy"], study.scores["vera"], study.core)]


def _necessity(study: Study) -> list[go.Figure]:
    found, n = study.zeroed, len(study.zeroed.samples)
    doses = sorted({float(name.split()[-1][:-1]) / 100 for name in found.conditions if name.endswith("%")} | {TOP})
    heads: dict[str, list[list[HeadSet]]] = {}
    measured: dict[str, list[list[float]]] = {}
    pictures = [name for name in dict.fromkeys(found.datasets) if name not in study.texts]
    for choice in ("top", "random"):
        names = [choice if dose == TOP else f"{choice} {dose:.0%}" for dose in doses]
        heads[choice] = [list(found.conditions[name]) for name in names]
        by_set = [[found.accuracies(name, of) for of in pictures] for name in names]
        measured[choice] = [np.mean(one, 0).tolist() for one in by_set]
    bars = {
        name: {one: found.accuracies(one, name) for one in found.conditions if not one.endswith("%")}
        for name in dict.fromkeys(found.datasets)
    }
    return [dose_curves(DoseCurve(tuple(doses), heads, measured), n), accuracy_bars(bars)]


def _acceleration(study: Study) -> go.Figure:
    found = study.accelerated
    timed = [name for name in study.timing.rounds[0] if name != PLAIN]
    ways: dict[str, dict[str, tuple[float, float]]] = {}
    for name in timed:
        way, _, budget = name.rpartition(" ")
        speed = speed_up(study.timing, name).value
        ways.setdefault(way or name, {})[budget] = speed, accuracy(found, name)
    return speed_against_accuracy(ways, accuracy(found, PLAIN))
