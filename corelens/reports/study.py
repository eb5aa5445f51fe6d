"""A study as one HTML page and one JSON object: verdicts first, then a section for each claim."""

import json
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
from corelens.experiments.run_folder import RunFolder, atomic_write, read_summary
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
    """Writes `study.json` and `study.html` into the folder of the study, and returns what the former holds."""
    about = RunFolder.load(folder / "scan").manifest
    result = {
        "model": study.scores["ram"].model,
        "findings": [finding.to_json() for finding in study.findings],
        "core heads": [str(head) for head in study.core],
        "accuracy": {
            "zero": {name: study.ablations.summary(name) for name in dict.fromkeys(study.ablations.datasets)},
            **{
                how: {name: found.summary(name) for name in dict.fromkeys(found.datasets)}
                for how, found in study.others.items()
            },
            "plans": {
                name: study.sparse_results.summary(name) for name in dict.fromkeys(study.sparse_results.datasets)
            },
        },
        "beside": {name: one.model for name, one in study.compared_models.items()},
        "times as fast": {
            name: round(speed_up(study.timing, name).value, 4) for name in study.timing.rounds[0] if name != BASELINE
        },
        "text-only": list(study.texts),
        "choices": dict(choices) | study.scores["ram"].choices,
        "skipped": dict(study.scores["ram"].skipped) | dict(study.ablations.skipped),
        "run": {name: about[name] for name in ("model", "revision", "weights", "dtype", "heads", "versions")},
    }
    text = json.dumps(result, indent=1)
    atomic_write(folder / "study.json", lambda path: path.write_text(text))
    html = page(folder).html()
    atomic_write(folder / "study.html", lambda path: path.write_text(html, encoding="utf-8"))
    return result


def page(folder: Path) -> Page:
    """The report, from what the folder of a study holds.

    Raises:
        ValueError: If a part of the study is missing or unfinished.
    """
    needed = ("model", "findings", "times as fast", "beside", "text-only", "choices", "run", "skipped")
    result = read_summary(folder / "study.json", *needed)
    findings = result["findings"]
    verdicts = [finding["verdict"] for finding in findings]
    made = Page(
        f"What five claims about retrieval heads come to in {result['model']}",
        f"{verdicts.count('supported')} supported, {verdicts.count('not supported')} not supported, "
        f"{verdicts.count('inconclusive')} inconclusive. The claims are those of arXiv 2606.05843; every rule stood "
        f"before this run, and a claim that is not supported of this model may hold of another.",
    )
    made.table(
        ["claim", "verdict", "what would change it"],
        [[finding["claim"], finding["verdict"], finding["what would change the verdict"]] for finding in findings],
    )
    scores, ablated = _scores(folder / "scan"), read_conditions(RunFolder.load(folder / "ablate"))
    made.text(
        f"Heads were chosen on {_counted(scores['ram'].datasets)}, and tested on {_counted(ablated.datasets)}. A "
        "number meets its need if its whole interval does, and does not if none of the interval does; otherwise this "
        "many samples cannot tell."
    )
    rows = [
        [_sparsity(scores, _scores(folder / "untrained"))],
        [_generality(scores["ram"], result["beside"])],
        [_division(scores)],
        [[one] for one in _necessity(ablated, result["text-only"])],
        [[_acceleration(read_conditions(RunFolder.load(folder / "accelerate")), result["times as fast"])]],
    ]
    for finding, own in zip(findings, rows, strict=True):
        _section(made, finding, own)
    made.heading("Choices and sources")
    made.facts({name: str(value) for name, value in (result["choices"] | identity(result["run"])).items()})
    made.text(
        "Retrieval attention mass is inferred, since the paper's formula is not public: equation 9 of Elastic "
        "Attention (arXiv 2601.17367). CoRe heads are the top 5 % of all heads, chosen on every other sample and "
        "tested on the rest. Streaming heads are inferred from the same paper."
    )
    made.heading("Limits")
    made.text(
        "One model and the data sets named above. Intervals are 95 % bootstrap intervals over samples, and over heads "
        "where these are drawn by chance, not over models or training runs, and of speed the slowest and fastest "
        "round; neither the five verdicts nor the numbers of each are corrected for being several. The untrained model "
        f"has the same configuration and one draw of weights. Samples left out: {len(result['skipped'])}."
    )
    return made


def _scores(folder: Path) -> dict[str, HeadScores]:
    """Of a finished scan."""
    return {path.stem: HeadScores.load(path) for path in RunFolder.load(folder).folder.glob("*.safetensors")}


def _counted(datasets: Sequence[str]) -> str:
    return ", ".join(f"{n} of {name}" for name, n in Counter(datasets).items())


def _section(made: Page, finding: Mapping[str, Any], figures: Sequence[Sequence[go.Figure]]) -> None:
    made.heading(f"{finding['claim']}: {finding['verdict']}")
    made.text(f"Rule: {finding['rule']}")
    said = {True: "met", False: "not met", None: "cannot tell"}
    effects = [
        [said[one["met"]] if one["needed"] else "reported", one["name"], one["said"], one["needed"]]
        for one in finding["effects"]
    ]
    if effects:
        made.table(["", "effect", "value, 95 % interval", "needed"], effects)
    for note in finding["notes"]:
        made.text(note)
    for row in figures:
        made.figures(*row)


def _sparsity(scores: Mapping[str, HeadScores], untrained: Mapping[str, HeadScores]) -> list[go.Figure]:
    own = scores[EXCESS.name]
    mixed = own.values.clone()
    mixed[:, own.mask] = shuffled(own.values[:, None, own.mask], torch.Generator().manual_seed(0))[:, 0]
    every = {"this model": own, "heads shuffled": replace(own, values=mixed), "untrained": untrained[EXCESS.name]}
    # Where no head looks at the evidence more than at the rest, there is nothing to share out.
    shown = {name: one for name, one in every.items() if bool((one.per_head > 0).any())}
    return [lorenz_curves(shown)] if shown else []


def _generality(ram: HeadScores, beside: Mapping[str, str]) -> list[go.Figure]:
    by_name: dict[str, HeadScores] = {name: ram.for_dataset(name) for name in dict.fromkeys(ram.datasets)}
    matrix = [overlap_matrix(by_name, "shared", TOP)] if len(by_name) > 1 else []
    # Folders of other studies, as long as they stand where they stood.
    scans = {name: path for name in beside if (path := Path(name) / "scan" / "ram.safetensors").exists()}
    others = {name: HeadScores.load(path) for name, path in scans.items()}
    models = [depth_profiles({"this model": ram, **others})] if others else []
    return [*matrix, depth_profiles(by_name), *models]


def _division(scores: Mapping[str, HeadScores]) -> list[go.Figure]:
    first, second = (every_other(scores, start) for start in (0, 1))
    core = first["ram"].top(TOP)
    apart = group_distributions({name: second[name] for name in MEASURES}, core)
    return [heads_by_two(second["entropy"], second["vera"], core), apart]


def _necessity(found: ConditionResults[HeadSet], texts: Sequence[str]) -> list[go.Figure]:
    doses = sorted({float(name.split()[-1][:-1]) / 100 for name in found.conditions if name.endswith("%")} | {TOP})
    heads: dict[str, list[list[HeadSet]]] = {}
    measured: dict[str, list[list[float]]] = {}
    pictures = [name for name in dict.fromkeys(found.datasets) if name not in texts]
    for choice in ("top", "random"):
        names = [choice if dose == TOP else f"{choice} {dose:.0%}" for dose in doses]
        heads[choice] = [list(found.conditions[name]) for name in names]
        by_set = [[found.accuracies(name, of) for of in pictures] for name in names]
        measured[choice] = [np.mean(one, 0).tolist() for one in by_set]
    bars = {
        name: {one: found.accuracies(one, name) for one in found.conditions if not one.endswith("%")}
        for name in dict.fromkeys(found.datasets)
    }
    n_samples = sum(found.datasets.count(name) for name in pictures)
    return [ablation_curves(AblationCurve(tuple(doses), heads, measured), n_samples), accuracy_bars(bars)]


def _acceleration(found: ConditionResults[Any], times_as_fast: Mapping[str, float]) -> go.Figure:
    ways: dict[str, dict[str, tuple[float, float]]] = {}
    for name, speed in times_as_fast.items():
        way, _, budget = name.rpartition(" ")
        ways.setdefault(way or name, {})[budget] = speed, accuracy(found, name, found.datasets)
    return speed_against_accuracy(ways, accuracy(found, BASELINE, found.datasets))
