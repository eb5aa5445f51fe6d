"""The report of a scan of key tokens."""

from collections.abc import Iterator, Sequence

from corelens.experiments.key_token_results import KeyTokens, read_key_tokens
from corelens.experiments.run_folder import RunFolder
from corelens.heads import HeadSet
from corelens.reports.common import close, percent
from corelens.reports.page import Page
from corelens.study.key_tokens import N_HEADS
from corelens.viz import coverage_curves, hit_rate_bars

SIZES = (1, 2, 5, 10, 15, 30, 50, 100, 250)
"""Sizes of sets in the table of coverage, up to the longest ranking."""


def page(run: RunFolder) -> Page:
    """Key token ratio and hits of single heads and key token coverage of sets, for every data set."""
    key_tokens = read_key_tokens(run)
    n = min(N_HEADS, *(len(draw) for draws in key_tokens.rankings.values() for draw in draws))
    report = Page(f"Key tokens of heads of {key_tokens.ratios.model}", _lead(key_tokens, n))
    datasets = dict.fromkeys(key_tokens.ratios.datasets)
    for dataset in datasets or [""]:
        part = key_tokens.for_dataset(dataset) if datasets else key_tokens
        report.heading(f"{dataset or 'Samples'}: {len(part.n_tokens):,} samples")
        curves = {kind: part.curve(kind) for kind in part.rankings}
        report.figures(hit_rate_bars(part.hit_rates(n), n), coverage_curves(curves, part.chance_curve()))
        report.table(
            ["ranking", "heads", "ratio, %", "hits, %"],
            [
                [kind, _first_heads(part.rankings.get(kind, []), n), percent(rate.ratio), percent(rate.hits)]
                for kind, rate in part.hit_rates(n).items()
            ],
        )
        report.table(
            ["heads", *curves, "chance"],
            [[str(size), *cells] for size, cells in _coverage_rows(part)],
        )
    report.text(
        "A head's key tokens are the 5 percent of the sequence that get most of its attention from the question's "
        "tokens (at least one token). Ratio: the share of the evidence among them; a hit is a ratio of at least one "
        "half. The second table has the coverage, in percent: the share of the evidence among the key tokens of at "
        "least one of the first heads of a ranking; the figure shows its 95 % bootstrap interval over samples. Chance: "
        "heads whose key tokens are drawn at random."
    )
    return close(
        report, run, key_tokens.ratios.skipped,
        "A head that has the evidence among its key tokens need not be one that answers depend on; corelens ablate "
        "tests that. A ranking that was measured on the same samples flatters its first heads.",
    )  # fmt: skip


def _lead(key_tokens: KeyTokens, n: int) -> str:
    rates = key_tokens.hit_rates(n)
    (first, best), *others = rates.items()
    compared = ", ".join(f"{kind} {percent(rate.ratio)}" for kind, rate in others)
    return (
        f"One of the first {n} heads of ranking {first!r} has {percent(best.ratio)} percent of the evidence among its "
        f"key tokens, in the mean over heads and samples ({compared}); all {n} together have "
        f"{percent(float(key_tokens.curve(first).mean[n - 1]))} percent."
    )


def _first_heads(draws: Sequence[HeadSet], n: int) -> str:
    """The first n heads of a ranking in words, or the number of its draws; empty for chance, which has none."""
    if len(draws) == 1:
        return ", ".join(str(head) for head in list(draws[0])[:n])
    return f"{n} heads, {len(draws)} draws" if draws else ""


def _coverage_rows(key_tokens: KeyTokens) -> Iterator[tuple[int, list[str]]]:
    curves = [*(key_tokens.curve(kind).mean for kind in key_tokens.rankings), key_tokens.chance_curve().mean]
    for size in SIZES:
        if size <= max(map(len, curves)):
            yield size, [percent(float(curve[size - 1])) if size <= len(curve) else "" for curve in curves]
