"""Error rates of intervals and rules on made-up data whose truth is known: the numbers and curves of error-rates.md.

- how often a 95 % interval holds the true number: of a paired difference between two conditions, where questions are
  independent and where four are about one picture, and of the head that the samples chose
- how often the rule of division of labour finds a group of heads in a continuum, and how often where there is one
- how often a cost that is there is seen by the rule of necessity

No model runs and no time is measured; the numbers are the same on every machine. The last line is JSON.

    python benchmarks/error_rates.py [--experiments 400] [--figure error-rates.html]
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from corelens.causal import PairedDifference
from corelens.metrics import bootstrap_interval, group_difference, simultaneous_interval
from corelens.study.necessity import NEEDED_COST, power
from corelens.study.verdict import estimate_mean
from corelens.viz.styles import QUIET, apply_style, colours

N_SAMPLES = (10, 20, 50, 100, 300)
N_HEADS = (24, 48, 96, 200, 400, 1000)
N_QUESTIONS = 4
"""Questions about one picture, where they come in groups."""

CONTINUA = ("straight", "weak", "skewed", "clipped", "curved", "heavy-tailed")
Population = tuple[np.ndarray, np.ndarray]
"""Score and measure of every head."""

Rates = dict[str, dict[str, dict[int, float]]]
"""Rates by experiment, curve and number of samples or heads."""


def continuum(shape: str, n_heads: int, rng: np.random.Generator) -> Population:
    """Heads whose score and measure one quantity drives, so that none is of a kind of its own."""
    quantity, noise = rng.standard_normal((2, n_heads))
    if shape == "straight":
        return quantity, -0.8 * quantity + 0.6 * noise
    if shape == "weak":
        return quantity, -0.3 * quantity + 0.95 * noise
    if shape == "skewed":
        return np.exp(quantity), -0.8 * quantity + 0.6 * noise
    if shape == "clipped":
        return quantity, np.clip(-0.8 * quantity + 0.6 * noise, -1, 2)
    if shape == "curved":
        return quantity, -0.5 * quantity - 0.3 * quantity**2 + 0.6 * noise
    scale = np.sqrt(3 / rng.chisquare(3, n_heads))
    return quantity * scale, (-0.8 * quantity + 0.6 * noise) * scale


def two_kinds(gap: float, n_heads: int, rng: np.random.Generator) -> Population:
    """Heads of which 5 % score four standard deviations above the others, and measure `gap` below them."""
    score, measure = rng.standard_normal((2, n_heads))
    n_top = math.ceil(0.05 * n_heads)
    score[:n_top] += 4
    measure[:n_top] -= gap
    return score, measure


def share_of_groups(
    population: Callable[[int, np.random.Generator], Population], n_heads: int, n_experiments: int
) -> float:
    """Share of populations in which the top 5 % by a noisy score are found to be a group below the others."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n_experiments):
        score, measure = population(n_heads, rng)
        noisy = score + 0.3 * score.std() * rng.standard_normal(n_heads)
        top = torch.zeros(1, n_heads, dtype=torch.bool)
        top[0, np.argsort(-noisy)[: math.ceil(0.05 * n_heads)]] = True
        result = group_difference(*(torch.from_numpy(values)[None] for values in (noisy, measure)), top)
        found.append(result.difference < 0 and result.p_value <= 0.05)
    return float(np.mean(found))


def coverage_of_losses(rate: float, grouped: bool, n: int, n_experiments: int) -> float:
    """Share of experiments whose interval holds the true loss; if `grouped`, half of a picture's losses are shared."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(n_experiments):
        lost = rng.random(n) < rate
        pictures = np.arange(n) // N_QUESTIONS if grouped else np.arange(n)
        if grouped:
            shared = (rng.random(n) < rate)[pictures]
            lost = np.where(rng.random(n) < 0.5**0.5, shared, lost)
        right = torch.ones(n)
        difference = PairedDifference(right, right - torch.from_numpy(lost).float(), pictures.tolist())
        low, high = difference.interval()
        held.append(low <= -rate <= high)
    return float(np.mean(held))


def coverage_of_top_head(simultaneous: bool, n: int, n_experiments: int) -> float:
    """Share of experiments whose interval of the highest of a hundred like heads holds its true mean, zero."""
    rng = np.random.default_rng(0)
    interval = simultaneous_interval if simultaneous else bootstrap_interval
    held = []
    for _ in range(n_experiments):
        values = torch.from_numpy(rng.standard_normal((n, 10, 10)))
        low, high = (bound.flatten() for bound in interval(values, n_draws=500))
        top = int(values.mean(0).argmax())
        held.append(bool(low[top] <= 0 <= high[top]))
    return float(np.mean(held))


def share_of_costs_seen(cost: float, n: int, n_experiments: int) -> float:
    """Share of experiments in which the interval of a cost lies above what the rule of necessity needs."""
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(n_experiments):
        lost = (rng.random((n, 1)) < cost).astype(float)
        seen.append(estimate_mean("cost", lost, [""] * n, (-1, 1), NEEDED_COST).met is True)
    return float(np.mean(seen))


def measure(n_experiments: int) -> Rates:
    """Rates by experiment, curve and number of samples or heads."""

    def curve(rate: Callable[[int, int], float], numbers: tuple[int, ...]) -> dict[int, float]:
        return {number: rate(number, n_experiments) for number in numbers}

    return {
        "coverage": {
            **{
                f"loss of {rate:.0%}": curve(partial(coverage_of_losses, rate, False), N_SAMPLES)
                for rate in (0.02, 0.3)
            },
            "loss of 30%, four questions a picture": curve(partial(coverage_of_losses, 0.3, True), N_SAMPLES[1:]),
            "the top head": curve(partial(coverage_of_top_head, True), N_SAMPLES),
            "the top head, interval of its own": curve(partial(coverage_of_top_head, False), N_SAMPLES),
        },
        "a group, where there is none": {
            shape: curve(partial(share_of_groups, partial(continuum, shape)), N_HEADS[1:]) for shape in CONTINUA
        },
        "a group, where there is one": {
            f"{gap} standard deviations away": curve(partial(share_of_groups, partial(two_kinds, gap)), N_HEADS)
            for gap in (1.5, 2.5, 4.0)
        },
        "a cost that is there": {
            f"{cost:.0%}{' by the formula' if formula else ''}": {
                n: power(n, cost, NEEDED_COST) if formula else share_of_costs_seen(cost, n, n_experiments // 4)
                for n in N_SAMPLES
            }
            for cost in (0.2, 0.4)
            for formula in (False, True)
        },
    }


def draw(results: Rates) -> go.Figure:
    """A panel for each experiment: rates (up) by number of samples or heads (right, logarithmic)."""
    axes = {
        "coverage": "samples",
        "a group, where there is none": "heads",
        "a group, where there is one": "heads",
        "a cost that is there": "samples",
    }
    figure = make_subplots(2, 2, subplot_titles=list(results), vertical_spacing=0.25)
    for number, (title, curves) in enumerate(results.items()):
        place = {"row": 1 + number // 2, "col": 1 + number % 2}
        for (name, rates), colour in zip(curves.items(), colours(len(curves)), strict=True):
            figure.add_scatter(
                name=name, x=list(rates), y=list(rates.values()), mode="lines+markers", line_color=colour,
                legendgroup=title, legendgrouptitle_text=title, **place,
            )  # fmt: skip
        ticks = sorted({number for rates in curves.values() for number in rates})
        figure.update_xaxes(type="log", title=axes[title], tickvals=ticks, **place)
        figure.update_yaxes(tickformat=".0%", **place)
    figure.add_hline(y=0.95, line=dict(color=QUIET, dash="dot"), row=1, col=1)
    figure.add_hline(y=0.05, line=dict(color=QUIET, dash="dot"), row=1, col=2)
    return apply_style(figure, "How often intervals and rules err", "Dotted: what they promise.").update_layout(
        height=760
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=400)
    parser.add_argument("--figure", type=Path, help="an HTML file for the curves")
    arguments = parser.parse_args()
    results = measure(arguments.experiments)
    for title, curves in results.items():
        print(title)
        for name, rates in curves.items():
            print(f"  {name:<40}", *(f"{number}: {rate:.0%}" for number, rate in rates.items()))
    if arguments.figure:
        draw(results).write_html(arguments.figure)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
