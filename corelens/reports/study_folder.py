"""Writing of a study that was run: its numbers as JSON, and its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corelens.experiments.conditions import BASELINE, ConditionResults
from corelens.experiments.run_folder import RunFolder, run_hashes, write_summary
from corelens.files import write_file
from corelens.reports.study import page
from corelens.study.acceleration import speed_up
from corelens.study.run import Study


def save(study: Study, folder: Path, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Write `study.json` and `study.html` into the folder of the study, and return the content of the former."""
    manifest = RunFolder.load(folder / "scan").manifest
    summary = {
        "model": study.scores["ram"].model,
        "findings": [finding.to_json() for finding in study.findings],
        "core heads": [str(head) for head in study.core],
        "accuracy": {
            "zero": _summaries(study.ablations) | (_summaries(study.text_ablations) if study.text_ablations else {}),
            **{method: _summaries(results) for method, results in study.other_ablations.items()},
            "plans": _summaries(study.sparse_results),
        },
        "compared with": {name: scores.model for name, scores in study.compared_models.items()},
        "tasks": {metric: dict(costs) for metric, costs in study.task_costs.items()},
        "times as fast": {
            name: round(speed_up(study.timing, name).value, 4) for name in study.timing.rounds[0] if name != BASELINE
        },
        "text-only": list(dict.fromkeys(study.text_ablations.datasets)) if study.text_ablations else [],
        "choices": dict(choices) | study.scores["ram"].choices,
        "skipped": dict(study.scores["ram"].skipped) | dict(study.ablations.skipped),
        "runs": run_hashes(folder),
        "run": {name: manifest[name] for name in ("model", "revision", "weights", "dtype", "heads", "versions")},
    }
    write_summary(folder / "study.json", summary)
    write_file(folder / "study.html", page(folder).html())
    return summary


def _summaries(results: ConditionResults[Any]) -> dict[str, Any]:
    return {name: results.summary(name) for name in dict.fromkeys(results.datasets)}
