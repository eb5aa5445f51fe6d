"""Sections that all reports share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corelens.data.scoring.answers import ScoredAnswer
from corelens.errors import without_docs_link
from corelens.experiments.run_folder import RunFolder, read_warnings
from corelens.reports.page import Page

ANSWER_COLUMNS = ("sample", "question", "answer", "accepted", "rule", "right")

_SHOWN_ELSEWHERE = {
    "work", "model", "revision", "weights", "dtype", "heads", "versions", "data sets", "samples", "samples sha256",
    "samples a part", "measures", "conditions", "plans", "rankings",
}  # fmt: skip


def close(page: Page, run: RunFolder, skipped: Mapping[str, str], limits: str) -> Page:
    """Append the settings of the run, skipped samples and limits."""
    manifest = run.manifest
    page.heading("What was run")
    page.facts(
        {
            "work": manifest["work"],
            **identity(manifest),
            "data": ", ".join(name or "without a name" for name in manifest["data sets"]),
            "samples": f"{manifest['samples']:,}, {len(skipped)} skipped",
            **{
                name.replace("_", " "): str(value)
                for name, value in manifest.items()
                if name not in _SHOWN_ELSEWHERE and value is not None
            },
        }
    )
    for sample, reason in list(skipped.items())[:5]:
        page.text(f"Skipped: {sample}: {reason}")
    if len(skipped) > 5:
        page.text(f"And {len(skipped) - 5} more.")
    add_limits(page, run.folder, limits)
    return page


def add_limits(page: Page, folder: Path, limits: str) -> None:
    """Append the warnings of the commands that filled a folder, and the limits of the work."""
    if kept := read_warnings(folder):
        page.heading("Warnings")
        for warning in kept:
            page.text(without_docs_link(warning))
    page.heading("Limits")
    page.text(limits)


def identity(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Model and software versions of a manifest, in words."""
    layers, heads = manifest["heads"]
    revision = f", revision {manifest['revision']}" if manifest["revision"] else ""
    return {
        "model": f"{manifest['model']}{revision}: {layers} layers of {heads} heads, {manifest['dtype']}, weights "
        f"{manifest['weights']}",
        "versions": ", ".join(f"{package} {version}" for package, version in manifest["versions"].items()),
    }


def percent(share: float | int) -> str:
    """Percentage with one digit, without the sign."""
    return f"{100 * share:.1f}"


def interval_cell(bounds: Sequence[float] | None) -> str:
    """Table cell of an interval; empty where there is none, as of a single sample."""
    return "" if bounds is None else f"{bounds[0]:.3g} to {bounds[1]:.3g}"


def change_cells(result: Mapping[str, Any]) -> list[str]:
    """Table cells of the change from the baseline and its interval, in points; empty for the baseline itself."""
    return [
        f"{100 * result['change']:+.1f}" if "change" in result else "",
        "{:+.1f} to {:+.1f}".format(*(100 * bound for bound in result["interval"])) if "interval" in result else "",
    ]


def answer_row(answer: ScoredAnswer) -> list[str]:
    """Cells of `ANSWER_COLUMNS`."""
    right = {None: "cannot be read", 0.0: "no", 1.0: "yes"}.get(answer.score, f"{answer.score or 0:.2f}")
    return [answer.sample, answer.question, answer.answer, " or ".join(answer.accepted), answer.rule, right]
