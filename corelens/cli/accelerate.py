"""`corelens accelerate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from corelens.cli import options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from corelens.experiments.sparse_eval import SparseResults, Speed
    from corelens.model import HookedMLLM


def accelerate(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    scores: Annotated[Path, typer.Option(help="A .safetensors of a scan, which ranks heads.")],
    sink: Annotated[int, typer.Option(help="First tokens that all heads keep seeing.", min=0)] = 128,
    window: Annotated[int, typer.Option(help="Last tokens that all heads keep seeing.", min=1)] = 2048,
    text: Annotated[bool, typer.Option("--text", help="All heads keep seeing the prompt's text.")] = False,
    budget: Annotated[
        list[float] | None,
        typer.Option(
            help="Share of heads that see everything. Can be given several times.", show_default="0.05, 0.1, 0.25, 0.5"
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where answers are cut off.", min=1)] = 32,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Answer with few heads seeing everything and all others little. Beside them, other uses of the same budget."""
    ranking = options.ranking(scores, model)
    chosen_by = options.source(ranking)
    if wrong := [one for one in budget or () if not 0 < one <= 1]:
        raise typer.BadParameter(f"{wrong[0]} is no share of heads: it must lie in (0, 1].", param_hint="--budget")
    from corelens.experiments.run_folder import atomic_write
    from corelens.experiments.sparse_eval import longest_prompt, measure_speeds, run_sparse_eval
    from corelens.interventions.token_pruning import TokenPruning
    from corelens.reports import write_report
    from corelens.sparse import Streaming
    from corelens.sparse.controls import BUDGETS, plans_and_controls

    with options.resumable(out, "accelerate"):
        hooked = options.loaded(model, dtype, device)
        group_size = hooked.cfg.n_heads // hooked.cfg.n_key_value_heads
        shares = budget or BUDGETS
        plans: dict[str, Any] = plans_and_controls(ranking, group_size, Streaming(sink, window, text), shares)
        # As FastV, after the second layer that has heads, with the same shares of visual tokens as of heads.
        second = sorted({head.layer for head in hooked.heads})[:2][-1]
        plans |= {f"visual tokens {100 * share:g}%": [TokenPruning(second, share)] for share in shares}
        sets = {name: list(own) for name, own in options.samples(data, seed, limit).items()}
        options.warn_of_shared(ranking, sets)
        longest = longest_prompt(hooked, sets)
        n_positions = longest["input_ids"].shape[1]
        _warn_if_all_is_seen(sink, window, n_positions)
        found = run_sparse_eval(hooked, sets, plans, max_new_tokens=max_new_tokens, chosen_by=chosen_by, out=out)
        speed = measure_speeds(hooked, longest, found.conditions)
        kept = {"sink": sink, "window": window}
        summary = {"model": model, "chosen by": chosen_by, **kept, **_summary(hooked, found, n_positions, speed)}
    text_of = json.dumps(summary, indent=1)
    atomic_write(out / "acceleration.json", lambda path: path.write_text(text_of))
    write_report(out)
    if as_json:
        print(text_of)
        return
    _show(summary, out)


def _warn_if_all_is_seen(sink: int, window: int, n_positions: int) -> None:
    """Says that plans change nothing where what every head keeps seeing is the whole of every prompt."""
    from corelens.study.run import streaming

    if sink + window >= n_positions:
        less = streaming(n_positions)
        typer.echo(
            f"Warning: under every plan, all heads see everything, and the table compares the model with itself: the "
            f"first {sink} and last {window} tokens are all of the longest prompt, which has {n_positions}. Pass "
            f"less, such as --sink {less.sink} --window {less.window}: windows take memory, full or not.",
            err=True,
        )


def _summary(
    model: "HookedMLLM", found: "SparseResults", n_positions: int, speed: "Mapping[str, Speed]"
) -> dict[str, Any]:
    """All numbers; speed and bytes of the first draw of every plan."""
    return {
        "positions": n_positions,
        "plans": {name: _plan(model, found, name, speed) for name in found.conditions},
        "data": {
            dataset: {"samples": found.datasets.count(dataset), "conditions": found.summary(dataset)}
            for dataset in dict.fromkeys(found.datasets)
        },
        "skipped": found.skipped,
    }


def _plan(model: "HookedMLLM", found: "SparseResults", name: str, speed: "Mapping[str, Speed]") -> dict[str, Any]:
    from corelens.sparse import HeadPlan, resolve

    own = found.conditions[name]
    said: dict[str, Any] = {"heads": [plan.name for plan in own]}
    if not isinstance(own[0], HeadPlan):
        return said
    placed, plain = resolve(own[0], model.hf_model), speed["plain"]
    return said | {
        "full heads": round(placed.share_of_full_heads, 4),
        "whole groups of keys": round(placed.share_of_full_kv_heads, 4),
        "kept attention": round(found.attention_recall(name), 4),
        "cache": speed[name].cache,
        "prefill": round(plain.prefill / speed[name].prefill, 3),
        "generation": round(speed[name].faster(plain, 256), 3),
    }


def _show(summary: dict[str, Any], out: Path) -> None:
    console = Console(highlight=False, markup=False)
    for dataset, of in summary["data"].items():
        console.print(f"\n{dataset}: {of['samples']} samples, accuracy in percent")
        table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))  # fits 80 columns
        table.add_column("plan", no_wrap=True)
        for title in ("accuracy", "change", "kept", "% heads", "cache", "speed"):
            table.add_column(title, justify="right", no_wrap=True)
        for condition, said in of["conditions"].items():
            plan = summary["plans"][condition]
            row = [f"{100 * said['accuracy']:.1f}", f"{100 * said['change']:+.1f}" if "change" in said else ""]
            if "cache" in plan:
                row += [f"{plan['kept attention']:.2f}", f"{100 * plan['full heads']:.1f}"]
                row += [decimal(plan["cache"]), f"{plan['generation']:.2f}x"]
            table.add_row(condition, *row)
        console.print(table)
    n = summary["positions"]
    console.print(
        f"Heads that do not see everything see the first {summary['sink']} and the last {summary['window']} tokens. "
        "change: of accuracy, in points; acceleration.json has intervals. kept: share of the attention of the prompt's "
        "last token that heads keep. % heads: those that see everything. cache, speed: of reading "
        f"{n:,} positions and generating 256 tokens, beside the model as it is. "
        "Controls that need more heads than there are beside the best are left out.",
        soft_wrap=True,
    )
    if summary["skipped"]:
        console.print(f"{len(summary['skipped'])} samples were left out; acceleration.json says why.")
    console.print(f"All numbers: {out / 'acceleration.json'}, figure: {out / 'acceleration.html'}\n")
