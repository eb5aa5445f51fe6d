"""`corelens compare`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from corelens.heads import HeadSet
    from corelens.scores import HeadScores


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="[OTHER]", help="A published list of heads (JSON), or another run.", show_default=False),
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(help="In place of OTHER: a model of the paper, such as Qwen3-VL-8B, for its printed numbers."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Metric of the runs; the first if not given.")] = None,
    top: Annotated[
        float | None,
        typer.Option(
            help="Share of all heads, or from 1 on their number. By default as many as are listed; 0.05 if all are.",
            min=0,
        ),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
) -> None:
    """Compare a run with a list of heads, another run, or the paper.

    A list has the form of MMRetHeads, SparseMM or retrieval heads, or is one of names: ["L21H10", "L20H15"]. Printed
    numbers (arXiv 2606.05843) stand beside a scan of several data sets, an ablation or an acceleration.
    """
    if (other is None) == (published is None):
        raise typer.BadParameter("give either a list or run to compare with, or --published MODEL.")
    if published is not None:
        if top is not None:
            raise typer.BadParameter("printed numbers are of their own numbers of heads.", param_hint="--top")
        _compare_with_paper(run, published, metric, as_json)
        return
    assert other is not None
    from corelens.experiments.comparison import compare_rankings, comparison_summary, load_other, load_scores

    try:
        scores = load_scores(run, metric)
        other_scores = load_other(other, scores, metric)
        comparison = compare_rankings(scores, other_scores, int(top) if top and top >= 1 and top == int(top) else top)
    except (OSError, ValueError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    summary = {
        "run": _origin(run, scores),
        "other": _origin(other, other_scores),
        **comparison_summary(comparison, scores),
    }
    _write_json(as_json, summary)
    _print_summary(summary)


def _compare_with_paper(run: Path, published: str, metric: str | None, as_json: Path | None) -> None:
    """Put a run beside the paper's numbers."""
    from corelens.data.published import published_model, published_numbers
    from corelens.experiments.published_comparison import compare_with_published
    from corelens.experiments.run_folder import RunFolder

    try:
        tables = compare_with_published(run, published, metric)
        of_run, of_paper = RunFolder.load(run).manifest["model"], published_model(published)
    except (OSError, ValueError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    source = {name: published_numbers()[name] for name in ("source", "url", "license")}
    summary = {"run": {"path": str(run), "model": of_run}, "paper": {"model": of_paper, **source}}
    _write_json(as_json, summary | {"tables": [
        {**table._asdict(), "numbers": [number._asdict() for number in table.numbers]} for table in tables
    ]})  # fmt: skip
    console = Console(highlight=False, markup=False)
    console.print(f"run: {run} ({of_run})\npaper: {of_paper}, {source['source']} ({source['license']})", soft_wrap=True)
    for table in tables:
        console.print(f"\n{table.of[:1].upper()}{table.of[1:]} ({table.where}); run: {table.dataset}", soft_wrap=True)
        columns = Table("", box=box.SIMPLE)
        for title in ("paper", "run"):
            columns.add_column(title, justify="right")
        for number in table.numbers:
            columns.add_row(*number.texts)
        console.print(columns)
        if table.note:
            console.print(table.note, soft_wrap=True)


def _write_json(path: Path | None, summary: Mapping[str, Any]) -> None:
    """Write the numbers, if a file is named."""
    from corelens.experiments.run_folder import write_summary

    if path is not None:
        try:
            write_summary(path, summary)
        except OSError as cause:
            raise typer.BadParameter(f"{path} cannot be written: {cause.strerror}.", param_hint="--json") from cause


def _origin(path: Path, scores: "HeadScores | HeadSet") -> dict[str, Any]:
    """Path and size of one side of the comparison."""
    from corelens.heads import HeadSet

    if isinstance(scores, HeadSet):
        return {"path": str(path), "heads listed": len(scores)}
    model = {"model": scores.model, "samples": len(scores.samples)} if scores.model else {}
    return {"path": str(path), **model, "metric": scores.metric, "heads scored": scores.n_heads}


def _print_summary(summary: Mapping[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    for side in ("run", "other"):
        facts = ", ".join(f"{name} {value}" for name, value in summary[side].items() if name != "path")
        console.print(f"{side}: {summary[side]['path']} ({facts})", soft_wrap=True)
    n, overlap, chance = summary["top"], summary["overlap"], "{} to {}"
    table = Table(f"top {n} of {summary['heads']:,} heads of each", "", box=box.SIMPLE)
    table.add_row("in both", f"{overlap['shared']} ({overlap['shared'] / n:.0%})")
    table.add_row(
        "by chance",
        f"{overlap['by chance']:.2f}, in 95 % of draws {chance.format(*overlap['95 % of chance'])}; "
        f"p {'=' if overlap['p'] >= 1e-4 else '<'} {max(overlap['p'], 1e-4):.4f}",
    )
    table.add_row("Jaccard", f"{summary['jaccard']:.2f}")
    correlation = "unknown: fewer than three heads, or all score alike"
    if ranks := summary["rank correlation"]:
        low, high = ranks["interval"]
        correlation = f"{ranks['spearman']:.2f} [{low:.2f}, {high:.2f}] over {ranks['heads']:,} heads"
    table.add_row("rank correlation", correlation)
    for side, depth in summary["depth"].items():
        table.add_row(f"depth, {side}", f"{depth['mean']:.2f} on average; {_thirds_text(depth['thirds'])}")
    console.print(table)
    for part in ("in both", "only in the run", "only in the other"):
        heads = summary[part]
        more = f" and {len(heads) - 20} more" if len(heads) > 20 else ""
        console.print(f"{part}: {', '.join(heads[:20]) or 'no head'}{more}")


def _thirds_text(counts: list[int]) -> str:
    """Distribution of heads over thirds of the layers, in words."""
    n = sum(counts)
    by_third = dict(zip(("first", "middle", "last"), counts, strict=True))
    largest = max(by_third, key=lambda third: by_third[third])
    if by_third[largest] == n:
        return f"all in the {largest} third of the layers"
    if by_third[largest] > n / 2:
        return f"mostly in the {largest} third of the layers ({by_third[largest]} of {n})"
    return "spread: " + ", ".join(f"{count} in the {third} third" for third, count in by_third.items())
