"""The report of a study: verdicts first, then a section for each claim."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch

from corelens.data.published import published_model
from corelens.errors import docs_link
from corelens.experiments.ablation_summary import KINDS, dose_curve
from corelens.experiments.conditions import BASELINE, MATCHED, ConditionResults, read_conditions
from corelens.experiments.key_token_results import KeyTokens, read_key_tokens
from corelens.experiments.published_comparison import compare_with_published
from corelens.experiments.run_folder import RunFolder, read_summary, run_hashes
from corelens.heads import HeadSet
from corelens.metrics import stable_heads
from corelens.reports.common import add_limits, identity
from corelens.reports.page import Page
from corelens.scores import HeadScores
from corelens.study.division import METRICS, every_other
from corelens.study.generality import TOP_SHARE
from corelens.study.key_tokens import n_compared
from corelens.study.query_tokens import QUERY_TOKENS
from corelens.study.sparsity import EXCESS, shuffled
from corelens.study.verdict import accuracy
from corelens.viz import (
    ablation_curves,
    accuracy_bars,
    binned_head_maps,
    coverage_curves,
    cross_ablation_map,
    depth_profiles,
    group_distributions,
    heads_by_two,
    hit_rate_bars,
    lorenz_curves,
    overlap_matrix,
    speed_against_accuracy,
    stable_head_map,
)
from corelens.viz.styles import literal


def page(folder: Path) -> Page:
    """Build the report from the folder of a study.

    Raises:
        ValueError: If a part of the study is missing or unfinished, or is not the one that the findings are of.
    """
    keys = ("model", "findings", "times as fast", "compared with", "choices", "run", "runs", "skipped", "tasks")
    summary = read_summary(folder / "study.json", *keys)
    found = run_hashes(folder)
    if differing := [name for name, run in summary["runs"].items() if found.get(name, run) != run]:
        raise ValueError(
            f"{folder / 'study.json'} is not of the run in {differing[0]}: run the study into this folder again, which "
            f"takes what is finished from it. {docs_link('damaged')}"
        )
    findings = summary["findings"]
    counts = Counter(finding["verdict"] for finding in findings)
    report = Page(
        f"What the paper's claims about retrieval heads come to in {summary['model']}",
        f"{', '.join(f'{n} {verdict}' for verdict, n in counts.items())}. The claims are those of arXiv 2606.05843, "
        "and three questions about how its heads are found; every rule stood before this run, and a claim that is not "
        "supported of this model may hold of another.",
    )
    report.table(
        ["claim", "verdict", "found", "what would change it"],
        [
            [finding[name] for name in ("claim", "verdict", "found", "what would change the verdict")]
            for finding in findings
        ],
    )
    scores, ablations = _scores(folder / "scan"), read_conditions(RunFolder.load(folder / "ablate"))
    report.text(
        f"Heads were chosen on {_counts(scores['ram'].datasets)}, and tested on {_counts(ablations.datasets)}. A "
        "number meets its need if its whole interval does, and does not if none of the interval does; otherwise this "
        "many samples cannot tell."
    )
    sparse_results = read_conditions(RunFolder.load(folder / "accelerate"))
    figure_rows = [
        [_sparsity(scores, _scores(folder / "untrained-0"))],
        _generality(scores["ram"], summary["compared with"]),
        [[binned_head_maps({"CoRe heads": scores["ram"], "vision heads": scores["vision_heads"]})], _division(scores)],
        _necessity(folder, ablations),
        [_key_tokens(read_key_tokens(RunFolder.load(folder / "key-tokens")))],
        [[_acceleration(sparse_results, summary["times as fast"])]],
        _query_tokens(read_conditions(RunFolder.load(folder / "query-tokens"))),
        [[cross_ablation_map(costs, f"by {metric}")] for metric, costs in summary["tasks"].items()],
        [[overlap_matrix({"without": scores["ram"], "with markers": _scores(folder / "markers")["ram"]}, "shared")]],
    ]
    for finding, rows in zip(findings, figure_rows, strict=True):
        _section(report, finding, rows)
    _add_published(report, folder, summary["model"])
    report.heading("Choices and sources")
    report.facts({name: str(value) for name, value in (summary["choices"] | identity(summary["run"])).items()})
    report.text(
        "Retrieval attention mass is that of the paper: attention of the question's tokens to the evidence, summed "
        "over the evidence and averaged over the question's tokens (equation 1), and, a choice of corelens, over "
        "samples. CoRe heads are the top 5 % of all heads, chosen on every other sample and tested on the rest. The "
        "plans whose speed is measured are corelens's own, which store less for heads that do not attend to everything."
    )
    add_limits(
        report,
        folder,
        "One model and the data sets named above. Intervals are 95 % bootstrap intervals over samples, and over heads "
        "where these are drawn by chance, not over models or training runs, and of speed the slowest and fastest "
        "round; neither the verdicts nor the numbers of each are corrected for being several. Untrained models "
        f"have the same configuration and other weights each. Samples left out: {len(summary['skipped'])}.",
    )
    return report


def _add_published(report: Page, folder: Path, model: str) -> None:
    """Add what the paper prints about the model beside the numbers of the study."""
    report.heading("Beside the paper's numbers")
    try:
        published_model(model)
    except ValueError:
        report.text("The paper has no numbers about this model.")
        return
    # Prompts may have been too short for the paper's plan.
    for part in ("scan", "mask", "key-tokens", *["published"] * (folder / "published").exists()):
        try:
            tables = compare_with_published(folder / part, model)
        except (OSError, ValueError) as cause:
            report.text(f"{part}: {cause}")
            continue
        for table in tables:
            report.text(f"{table.where}: {table.of}, on {table.dataset}. {table.note}")
            report.table(["", "paper", "this run"], [number.texts for number in table.numbers])


def _scores(folder: Path) -> dict[str, HeadScores]:
    """Scores of a finished scan by metric."""
    return {path.stem: HeadScores.load(path) for path in RunFolder.load(folder).folder.glob("*.safetensors")}


def _counts(datasets: Sequence[str]) -> str:
    return ", ".join(f"{n} of {name}" for name, n in Counter(datasets).items())


def _section(report: Page, finding: Mapping[str, Any], figure_rows: Sequence[Sequence[go.Figure]]) -> None:
    """Add a claim with its verdict, rule, measurements, notes and rows of figures."""
    report.heading(f"{finding['claim']}: {finding['verdict']}")
    report.text(f"Found: {finding['found']}")
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


def _generality(ram: HeadScores, compared_models: Mapping[str, str]) -> list[list[go.Figure]]:
    by_dataset: dict[str, HeadScores] = {name: ram.for_dataset(name) for name in dict.fromkeys(ram.datasets)}
    # Folders of other studies, unless they were moved since.
    paths = {name: path for name in compared_models if (path := Path(name) / "scan" / "ram.safetensors").exists()}
    others = {name: HeadScores.load(path) for name, path in paths.items()}
    models = [depth_profiles({"this model": ram, **others})] if others else []
    depths = [depth_profiles(by_dataset), *models]
    if len(by_dataset) < 2:
        return [depths]
    stable = stable_heads(torch.stack([scores.per_head for scores in by_dataset.values()]), TOP_SHARE)
    return [[overlap_matrix(by_dataset, "spearman"), stable_head_map(stable)], depths]


def _division(scores: Mapping[str, HeadScores]) -> list[go.Figure]:
    first, second = (every_other(scores, start) for start in (0, 1))
    core = first["ram"].top(TOP_SHARE)
    distributions = group_distributions({name: second[name] for name in METRICS}, core)
    return [heads_by_two(second["question_entropy"], second["evidence_share"], core), distributions]


def _necessity(folder: Path, ablations: ConditionResults[HeadSet]) -> list[list[go.Figure]]:
    """Accuracy under the paper's mask by number of heads, and with heads zeroed, also on text."""
    texts = [read_conditions(RunFolder.load(path)) for path in (folder / "ablate-texts",) if path.exists()]
    bars = {
        dataset: {
            name: results.accuracies(name, dataset)
            for name in (BASELINE, *KINDS, MATCHED)
            if name in results.conditions
        }
        for results in (ablations, *texts)
        for dataset in dict.fromkeys(results.datasets)
    }
    masked = read_conditions(RunFolder.load(folder / "mask"))
    curves = [_dose_curves(masked, name) for name in dict.fromkeys(masked.datasets)]
    return [[curve] for curve in curves if curve is not None] + [[accuracy_bars(bars)]]


def _dose_curves(results: ConditionResults[HeadSet], dataset: str) -> go.Figure | None:
    """Accuracy under the paper's mask by number of heads; None in a model of too few heads."""
    curve = dose_curve(results, dataset)
    if curve is None:
        return None
    figure = ablation_curves(curve, results.n_groups(dataset))
    return figure.update_layout(title=literal(f"Accuracy under the paper's mask, {dataset}"))


def _key_tokens(key_tokens: KeyTokens) -> list[go.Figure]:
    n = n_compared(key_tokens.ratios.n_heads)
    curves = {kind: key_tokens.curve(kind) for kind in key_tokens.rankings}
    return [hit_rate_bars(key_tokens.hit_rates(n), n), coverage_curves(curves, key_tokens.chance_curve())]


def _query_tokens(ablations: ConditionResults[HeadSet]) -> list[list[go.Figure]]:
    """Accuracy by the tokens that ranked the zeroed heads, and by their number."""
    bars = {
        dataset: {
            "nothing" if name == BASELINE else " ".join((QUERY_TOKENS[name.split()[0]], name.split()[1])): accuracies
            for name in ablations.conditions
            if (accuracies := ablations.accuracies(name, dataset))
        }
        for dataset in dict.fromkeys(ablations.datasets)
    }
    return [[accuracy_bars(bars)]]


def _acceleration(sparse_results: ConditionResults[Any], times_as_fast: Mapping[str, float]) -> go.Figure:
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for name, speed in times_as_fast.items():
        kind, _, fraction = name.rpartition(" ")
        points.setdefault(kind or name, {})[fraction] = speed, accuracy(sparse_results, name, sparse_results.datasets)
    return speed_against_accuracy(points, accuracy(sparse_results, BASELINE, sparse_results.datasets))
