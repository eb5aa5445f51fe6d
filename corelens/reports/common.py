"""What every report says of its run."""

from collections.abc import Mapping
from typing import Any

from corelens.experiments.run_folder import RunFolder
from corelens.reports.page import Page

_KNOWN = {
    "work", "model", "revision", "weights", "dtype", "heads", "versions", "data sets", "samples", "samples sha256",
    "samples a part", "measures", "conditions", "plans",
}  # fmt: skip


def close(page: Page, run: RunFolder, skipped: Mapping[str, str], limits: str) -> Page:
    """Ends a page with what was run and what it does not show."""
    about = run.manifest
    page.heading("What was run")
    page.facts(
        {
            "work": about["work"],
            **identity(about),
            "data": ", ".join(name or "without a name" for name in about["data sets"]),
            "samples": f"{about['samples']:,}, {len(skipped)} left out",
            **{
                name.replace("_", " "): str(value)
                for name, value in about.items()
                if name not in _KNOWN and value is not None
            },
        }
    )
    for sample, why in list(skipped.items())[:5]:
        page.text(f"Left out: {sample}: {why}")
    if len(skipped) > 5:
        page.text(f"And {len(skipped) - 5} more.")
    page.heading("Limits")
    page.text(limits)
    return page


def identity(about: Mapping[str, Any]) -> dict[str, str]:
    """Which model a manifest is of, and what ran it, in words."""
    layers, heads = about["heads"]
    revision = f", revision {about['revision']}" if about["revision"] else ""
    return {
        "model": f"{about['model']}{revision}: {layers} layers of {heads} heads, {about['dtype']}, weights "
        f"{about['weights']}",
        "versions": ", ".join(f"{package} {version}" for package, version in about["versions"].items()),
    }


def percent(share: float | int) -> str:
    return f"{100 * share:.1f}"
