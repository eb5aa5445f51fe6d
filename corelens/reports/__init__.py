"""Reports of finished runs: an HTML page with the settings, numbers, figures and limits."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from corelens.errors import optional_import
from corelens.experiments.run_folder import RunFolder
from corelens.files import write_file

with optional_import("app"):
    from corelens.reports import ablation, key_tokens, scan, sparse_eval, study, sweep
    from corelens.reports.page import Page

PAGES: dict[str, tuple[str, Callable[[RunFolder], Page]]] = {
    "scan": ("scan.html", scan.page),
    "key-tokens": ("key_tokens.html", key_tokens.page),
    "sweep": ("sweep.html", sweep.page),
    "ablate": ("ablation.html", ablation.page),
    "accelerate": ("acceleration.html", sparse_eval.page),
}
"""File and page by the work of a run folder."""


def write_report(folder: str | PathLike[str]) -> Path:
    """Write the report of a finished run into its folder, and return its path.

    Args:
        folder: Folder of a scan, sweep, ablation, acceleration, study, or scan of key tokens.

    Raises:
        ValueError: If it holds no such run, or an unfinished one.
    """
    folder = Path(folder)
    if (folder / "study.json").is_file():
        file, page = "study.html", study.page(folder)
    elif (folder / "scan" / "manifest.json").is_file():
        raise ValueError(
            f"{folder} holds an unfinished study: it has no study.json. The command that began it resumes it, and "
            f"corelens.reports.study_folder.save writes one that was run in Python."
        )
    elif (folder / "demo.json").is_file():
        raise ValueError(f"{folder} holds a demo, whose report is {folder / 'report.html'}.")
    else:
        run = RunFolder.load(folder)
        if run.manifest["work"] not in PAGES:
            raise ValueError(
                f"{folder} holds a run of {run.manifest['work']!r}; there are reports of {', '.join(PAGES)} and study."
            )
        file, build = PAGES[run.manifest["work"]]
        page = build(run)
    write_file(folder / file, page.html())
    return folder / file
