"""`corelens accelerate`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options

if TYPE_CHECKING:
    from corelens.sparse import Streaming, StreamingBlocks


def accelerate(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    scores: Annotated[Path, typer.Option(metavar="FILE", help="A .safetensors of a scan, which ranks heads.")],
    plan: Annotated[
        Literal["corelens", "published"],
        typer.Option(
            help="corelens: other heads attend to the first and the last tokens, and only these are cached. "
            "published: the paper's; in the prompt they attend to 4 and 32 blocks of 128, and all is cached."
        ),
    ] = "corelens",
    sink: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="First tokens that all heads attend to.", min=0, show_default="128"),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Last tokens that all heads attend to.", min=1, show_default="2048"),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="All heads attend to the prompt's text.")] = False,
    budget: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE",
            help="Share of heads that attend to everything. Can be given several times.",
            show_default="0.05, 0.1, 0.25, 0.5",
        ),
    ] = None,
    heads: Annotated[
        list[int] | None,
        typer.Option(metavar="NUMBER", help="The same as a number of heads. Can be given several times.", min=1),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="NUMBER", help="Length at which answers are cut off.", min=1)
    ] = 32,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.DeviceOption = "auto",
    ray: options.Ray = None,
    actors: options.Actors = None,
    gpus: options.Gpus = None,
    as_json: options.AsJson = False,
) -> None:
    """Answer with full attention in few heads, sparse in others.

    Controls spend the same budget on other heads.
    """
    ranking = options.ranking(scores, model)
    chosen_by = options.source(ranking)
    if invalid := [share for share in budget or () if not 0 < share <= 1]:
        raise typer.BadParameter(f"{invalid[0]} is no share of heads: it must lie in (0, 1].", param_hint="--budget")
    if excess := [n for n in heads or () if n > ranking.n_heads]:
        raise typer.BadParameter(f"{excess[0]} heads of {ranking.n_heads} cannot be chosen.", param_hint="--heads")
    if plan == "published" and (text or sink is not None or window is not None):
        raise typer.BadParameter(
            "the published plan has 4 and 32 blocks of 128 tokens; --sink, --window and --text are of corelens's.",
            param_hint="--plan",
        )
    from corelens.experiments.controls import with_write_matched_plans
    from corelens.experiments.remote import call
    from corelens.experiments.run_folder import write_summary
    from corelens.experiments.sparse_eval import measured_summary, run_sparse_eval, shape_and_longest
    from corelens.interventions.token_pruning import TokenPruning
    from corelens.reports import write_report
    from corelens.sparse import Streaming, StreamingBlocks
    from corelens.sparse.controls import BUDGETS, plans_and_controls
    from corelens.sparse.rules import describe_rule

    own_rule = Streaming(128 if sink is None else sink, 2048 if window is None else window, text)
    rule = StreamingBlocks() if plan == "published" else own_rule
    with options.resumable(out, "accelerate"):
        budgets = [*(heads or ()), *(budget or (() if heads else BUDGETS))]
        datasets = {name: list(samples) for name, samples in options.samples(data, seed, limit).items()}
        options.warn_of_shared(ranking, datasets)
        with options.placed(model, dtype, device, ray, actors, gpus) as placed:
            shape, n_positions = call(placed, partial(shape_and_longest, samples=datasets))
            write_norm = options.write_norm(placed, datasets)
            plans: dict[str, Any] = dict(plans_and_controls(ranking, shape.group_size, rule, budgets))
            if write_norm is not None:
                plans = with_write_matched_plans(plans, write_norm)
            # As FastV, after the second layer that has heads, with the same shares of visual tokens as of heads.
            second_layer = sorted({head.layer for head in shape.heads})[:2][-1]
            for n_or_share in budgets:
                share = n_or_share / ranking.n_heads if isinstance(n_or_share, int) else n_or_share
                plans[f"visual tokens {100 * share:.3g}%"] = [TokenPruning(second_layer, share)]
            _warn_if_full(rule, n_positions)
            results = run_sparse_eval(
                placed,
                datasets,
                plans,
                max_new_tokens=max_new_tokens,
                chosen_by=chosen_by,
                write_norm=write_norm,
                out=out,
            )
            summary = {"model": model, "chosen by": chosen_by, "plan": plan, "other heads": describe_rule(rule)}
            summary |= call(placed, partial(measured_summary, samples=datasets, results=results))
    json_text = write_summary(out / "acceleration.json", summary)
    write_report(out)
    if as_json:
        print(json_text)
        return
    _print_summary(summary, out)


def _warn_if_full(rule: "Streaming | StreamingBlocks", n_positions: int) -> None:
    """Warn that plans change nothing, because sinks and window cover every prompt."""
    from corelens.sparse import Streaming
    from corelens.study.run import streaming

    in_tokens = rule if isinstance(rule, Streaming) else rule.in_tokens
    if in_tokens.sink + in_tokens.window < n_positions:
        return
    shorter = streaming(n_positions)
    plan = "" if rule is in_tokens else "--plan corelens "
    options.warn(
        f"under every plan, all heads attend to everything, and the table compares the model with itself: the first "
        f"{in_tokens.sink} and last {in_tokens.window} tokens are all of the longest prompt, which has {n_positions}. "
        f"Pass less, such as {plan}--sink {shorter.sink} --window {shorter.window}: windows take memory, full or not."
    )


def _print_summary(summary: dict[str, Any], out: Path) -> None:
    from corelens.experiments.conditions import low_to_high
    from corelens.reports.sparse_eval import too_short

    console = Console(highlight=False, markup=False)
    for dataset, results in summary["data"].items():
        console.print(f"\n{dataset}: {results['samples']} samples, accuracy in percent")
        table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))  # fits 80 columns
        table.add_column("plan", no_wrap=True)
        for title in ("accuracy", "change", "% heads", "write", "% cache", "speed"):
            table.add_column(title, justify="right", no_wrap=True)
        for condition, result in results["conditions"].items():
            plan = summary["plans"][condition]
            row = [f"{100 * result['accuracy']:.1f}", f"{100 * result['change']:+.1f}" if "change" in result else ""]
            if "cache" in plan:
                row += [f"{100 * plan['full heads']:.1f}", low_to_high(result.get("heads that write", []))]
                row += [f"{100 * plan['stored cache']:.1f}", f"{plan['generation']:.2f}x"]
            table.add_row(condition, *row)
        console.print(table)
    n = summary["positions"]
    console.print(
        f"% heads attend to everything, the others: {summary['other heads']}. write: how many of those that attend to "
        f"everything write anything, since no others matter. % cache: keys and values of a prompt of {n:,} positions "
        "that are stored. change: of accuracy, in points; acceleration.json has intervals. speed: for "
        "that prompt and 256 generated tokens, compared with the unchanged model; acceleration.html has that of the "
        "prefill, and the attention that falls on keys that heads keep. "
        f"Controls that need more heads than there are beside the best are left out.{too_short(summary)}",
        soft_wrap=True,
    )
    options.print_skipped(console, summary["skipped"], "acceleration.json")
    console.print(f"All numbers: {out / 'acceleration.json'}, figure: {out / 'acceleration.html'}\n")
