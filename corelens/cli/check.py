"""`corelens check`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options
from corelens.errors import docs_link

if TYPE_CHECKING:
    from corelens.study.data_check import DataCheck


def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .jsonl, .parquet or folder, or COCO's .json.", show_default=False)
    ],
    model: options.Model,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the pictures, if not beside the file.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for check.html.", file_okay=False)] = Path(
        "corelens-check"
    ),
    box_unit: options.BoxUnitOption = None,
    limit: options.Limit = None,
    dtype: options.Dtype = "auto",
    device: options.DeviceOption = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Check data of your own: refused rows, evidence, and what can be measured.

    The page shows a sample with the tokens that count as its evidence.
    """
    from corelens.data.readers.own_data import own_data

    try:
        samples = own_data(file, images=images)
    except (OSError, ValueError, ImportError) as cause:
        raise typer.BadParameter(str(cause), param_hint="FILE") from cause
    from corelens.files import write_file
    from corelens.reports.data_check import data_page
    from corelens.study.data_check import check_data

    try:
        hooked = options.loaded(model, dtype, device)
        checked = check_data(hooked, samples, box_unit, limit)
        html = data_page(checked, hooked).html()
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "check.html", html)
    except (OSError, ValueError, ImportError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    if as_json:
        print(json.dumps(_summary(checked), indent=1))
        return
    _print_check(checked, out / "check.html")


def _summary(checked: "DataCheck") -> dict[str, Any]:
    """The check, ready for JSON."""
    rows = {name: [row._asdict() for row in getattr(checked, name)] for name in ("refused", "unmeasurable")}
    return {
        "name": checked.name,
        "counts": dict(checked.counts),
        "tasks": dict(checked.tasks),
        "rules": dict(checked.rules),
        **rows,
        "findings": [asdict(finding) for finding in checked.findings],
        "answers": [asdict(answer) for answer in checked.answers],
    }


def _print_check(checked: "DataCheck", page: Path) -> None:
    from corelens.reports.common import ANSWER_COLUMNS, answer_row
    from corelens.reports.data_check import named_counts

    console = Console(highlight=False, markup=False)
    counts = ", ".join(f"{n:,} {name}" for name, n in checked.counts.items())
    console.print(f"\n{checked.name}: {counts}; scored by {named_counts(checked.rules)}", soft_wrap=True)
    if tasks := named_counts(checked.tasks):
        console.print(f"kinds of questions: {tasks}", soft_wrap=True)
    for title, rows in (("refused", checked.refused), ("cannot be measured", checked.unmeasurable)):
        for row in rows:
            console.print(f"{title}: {row.id}: {row.reason}", soft_wrap=True)
    if checked.refused:
        console.print(f"What to do about refused rows: {docs_link('refused-rows')}")
    findings = Table("to measure", "possible", "since", box=box.SIMPLE)
    for finding in checked.findings:
        findings.add_row(finding.subject, finding.verdict, finding.reason)
    console.print(findings)
    answers = Table(*ANSWER_COLUMNS, box=box.SIMPLE)
    for answer in checked.answers:
        answers.add_row(*answer_row(answer))
    if checked.answers:
        console.print(answers)
    console.print(f"The first sample, with the tokens of its evidence: {page}\n", soft_wrap=True)
