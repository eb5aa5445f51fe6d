"""`corelens compare`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from corelens.experiments.comparison import Comparison
    from corelens.heads import HeadSet
    from corelens.scores import HeadScores


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a scan or sweep.", show_default=False)],
    other: Annotated[
        Path,
        typer.Argument(
            metavar="PUBLISHED", help="A published list of heads (JSON), or another run.", show_default=False
        ),
    ],
    metric: Annotated[str | None, typer.Option(help="Which measure of the runs; the first if not given.")] = None,
    top: Annotated[
        float | None,
        typer.Option(
            help="Share of all heads, or from 1 on their number. If not given, as many as are listed; 0.05 if all are.",
            min=0,
        ),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
) -> None:
    """Compare the top heads of a run with a published list, or with another run.

    Lists are those of MMRetHeads, SparseMM and retrieval heads, or names as in ["L21H10", "L20H15"].
    """
    from corelens.experiments.comparison import compare_rankings, load_other, load_scores
    from corelens.experiments.run_folder import atomic_write

    try:
        scores = load_scores(run, metric)
        others = load_other(other, scores, metric)
        found = compare_rankings(scores, others, int(top) if top and top >= 1 and top == int(top) else top)
    except (OSError, ValueError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    numbers = {"run": _named(run, scores), "other": _named(other, others), **_numbers(found, scores)}
    if as_json is not None:
        text = json.dumps(numbers, indent=1)
        try:
            atomic_write(as_json, lambda path: path.write_text(text))
        except OSError as cause:
            raise typer.BadParameter(f"{as_json} cannot be written: {cause.strerror}.", param_hint="--json") from cause
    _show(numbers)


def _named(path: Path, one: "HeadScores | HeadSet") -> dict[str, Any]:
    from corelens.heads import HeadSet

    if isinstance(one, HeadSet):
        return {"path": str(path), "heads listed": len(one)}
    about = {"metric": one.metric, "heads scored": one.n_heads}
    return {"path": str(path)} | ({"model": one.model, "samples": len(one.samples)} if one.model else {}) | about


def _numbers(found: "Comparison", scores: "HeadScores") -> dict[str, Any]:
    from corelens.experiments.comparison import in_thirds, mean_depth

    own, others, layers = found.top, found.other, len(scores.per_head)
    return {
        "layers": layers,
        "heads": scores.n_heads,
        "top": len(own),
        "overlap": {
            "shared": found.overlap.shared,
            "by chance": round(found.overlap.expected, 4),
            "95 % of chance": [found.overlap.low, found.overlap.high],
            "p": found.overlap.p_value,
        },
        "jaccard": round(found.jaccard, 4),
        "rank correlation": found.ranks
        and {
            "spearman": round(found.ranks.spearman, 4),
            "interval": [round(found.ranks.low, 4), round(found.ranks.high, 4)],
            "heads": found.ranks.n_heads,
        },
        "depth": {
            which: {"mean": round(mean_depth(heads, layers), 4), "thirds": list(in_thirds(heads, layers))}
            for which, heads in {"run": own, "other": others}.items()
        },
        "in both": [str(head) for head in own & others],
        "only in the run": [str(head) for head in own - others],
        "only in the other": [str(head) for head in others - own],
    }


def _show(numbers: Mapping[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    for which in ("run", "other"):
        path, *about = numbers[which].values()
        said = ", ".join(f"{name} {value}" for name, value in zip(list(numbers[which])[1:], about, strict=True))
        console.print(f"{which}: {path} ({said})", soft_wrap=True)
    n, shared, low_high = numbers["top"], numbers["overlap"], "{} to {}"
    table = Table(f"top {n} of {numbers['heads']:,} heads of each", "", box=box.SIMPLE)
    table.add_row("in both", f"{shared['shared']} ({shared['shared'] / n:.0%})")
    table.add_row(
        "by chance",
        f"{shared['by chance']:.2f}, in 95 % of draws {low_high.format(*shared['95 % of chance'])}; "
        f"p {'=' if shared['p'] >= 1e-4 else '<'} {max(shared['p'], 1e-4):.4f}",
    )
    table.add_row("Jaccard", f"{numbers['jaccard']:.2f}")
    if ranks := numbers["rank correlation"]:
        low, high = ranks["interval"]
        said = f"{ranks['spearman']:.2f} [{low:.2f}, {high:.2f}] over {ranks['heads']:,} heads"
    else:
        said = "unknown: fewer than three heads, or all score alike"
    table.add_row("rank correlation", said)
    for which, depth in numbers["depth"].items():
        table.add_row(f"depth, {which}", f"{depth['mean']:.2f} on average; {_thirds(depth['thirds'])}")
    console.print(table)
    for which in ("in both", "only in the run", "only in the other"):
        heads = numbers[which]
        more = f" and {len(heads) - 20} more" if len(heads) > 20 else ""
        console.print(f"{which}: {', '.join(heads[:20]) or 'no head'}{more}")


def _thirds(counts: list[int]) -> str:
    """Where in the depth heads lie, in words."""
    n = sum(counts)
    where = dict(zip(("first", "middle", "last"), counts, strict=True))
    most = max(where, key=lambda third: where[third])
    if where[most] == n:
        return f"all in the {most} third of the layers"
    if where[most] > n / 2:
        return f"mostly in the {most} third of the layers ({where[most]} of {n})"
    return "spread: " + ", ".join(f"{count} in the {third} third" for third, count in where.items())
