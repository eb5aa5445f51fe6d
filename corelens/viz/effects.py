"""Accuracy under interventions and sparse attention."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from scipy.stats import binomtest

from corelens.experiments.ablation_summary import AblationCurve
from corelens.viz.styles import QUIET, add_band, apply_style, bar_marker, colours


def ablation_curves(curve: AblationCurve, n_samples: int | None = None) -> go.Figure:
    """Draw accuracy as more and more heads are ablated, for every way of choosing them.

    Marks: a line is a way of choosing heads, a dot on it the mean accuracy at a dose, a number or share of heads.
    The band of a choice with chance goes from the lowest to the highest seed. That of a choice without is
    there if `n_samples` is given: the 95 % interval (Wilson) of an accuracy over so many samples. Doses that a choice
    cannot have are left out. Dotted: accuracy with nothing ablated.

    Args:
        curve: From `corelens.ablation_curve`.
        n_samples: Number of independent samples behind each accuracy: of groups, where several share a picture.

    Raises:
        ValueError: If an accuracy is outside [0, 1], or there are no samples.
    """
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples={n_samples} is less than one.")
    for choice, by_dose in curve.accuracy.items():
        _require_accuracies({f"{choice}, dose {dose}": seeds for dose, seeds in enumerate(by_dose) if seeds})
    figure, are_numbers = go.Figure(), all(isinstance(dose, int) for dose in curve.doses)
    for (choice, by_dose), colour in zip(curve.accuracy.items(), colours(len(curve.accuracy)), strict=True):
        doses = [(dose, seeds) for dose, seeds in zip(curve.doses, by_dose, strict=True) if seeds]
        if not doses:
            continue
        x = [dose for dose, _ in doses]
        if bands := [band for _, seeds in doses if (band := _band(seeds, n_samples))]:
            low, high = zip(*bands, strict=True)
            add_band(figure, choice, x, low, high, colour)
        figure.add_scatter(
            name=choice,
            legendgroup=choice,
            x=x,
            y=[float(np.mean(seeds)) for _, seeds in doses],
            customdata=[len(heads[0]) for heads in curve.heads[choice] if heads],
            mode="lines+markers",
            line=dict(color=colour, width=2),
            hovertemplate=f"{choice}, %{{customdata}} heads<br>%{{y:.1%}}<extra></extra>",
        )
    if curve.plain is not None:
        figure.add_hline(y=curve.plain, line=dict(color=QUIET, dash="dot"))
    names = [str(dose) if are_numbers else f"{100 * dose:.3g} %" for dose in curve.doses]
    figure.update_xaxes(
        title="number of heads ablated" if are_numbers else "share of heads ablated",
        type="linear" if are_numbers else "log",
        tickvals=curve.doses,
        ticktext=names,
    )
    figure.update_yaxes(title="accuracy", range=[0, 1.02], tickformat=".0%")
    others = "" if n_samples is None else f", of others the 95 % interval over {n_samples} samples"
    below = f"Bands of random heads: lowest to highest seed{others}."
    return apply_style(figure, "Accuracy without more and more heads", below)


def accuracy_bars(accuracies: Mapping[str, Mapping[str, Sequence[float]]], changed: str = "heads removed") -> go.Figure:
    """Draw accuracy by condition.

    Marks: a bar is a task under a condition, as high as the mean accuracy; a dot is a seed, where there are several.

    Args:
        accuracies: Task, then condition, then one accuracy in [0, 1] per seed.
        changed: Name of the conditions.

    Raises:
        ValueError: If an accuracy is outside [0, 1], or missing.
    """
    for task, conditions in accuracies.items():
        _require_accuracies({f"{task}, {condition}": values for condition, values in conditions.items()})
    figure, bar_colours = go.Figure(), colours(len(accuracies))
    for number, (task, conditions) in enumerate(accuracies.items()):
        figure.add_bar(
            name=task,
            offsetgroup=task,
            x=list(conditions),
            y=[float(np.mean(values)) for values in conditions.values()],
            marker=bar_marker(bar_colours[number]),
            marker_pattern_shape=("", "/", "x")[number // 6 % 3],  # there are six colours
            texttemplate="%{y:.0%}",
            # Inside, at the foot, where dots are.
            textposition=["inside" if len(of) > 1 and np.mean(of) > 0.2 else "outside" for of in conditions.values()],
            insidetextanchor="start",
            textangle=0,
            cliponaxis=False,
            hovertemplate="%{x}<br>" + task + " %{y:.1%}<extra></extra>",
        )
        seeds = [(name, value) for name, values in conditions.items() if len(values) > 1 for value in values]
        figure.add_scatter(
            name=f"{task}, each seed",
            offsetgroup=task,
            x=[name for name, _ in seeds],
            y=[value for _, value in seeds],
            mode="markers",
            marker=dict(color=QUIET, size=5, line=dict(color="white", width=0.5)),
            showlegend=False,
            hovertemplate="%{x}<br>" + task + " %{y:.1%}, one seed<extra></extra>",
        )
    figure.update_layout(barmode="group", scattermode="group", bargap=0.25, uniformtext=dict(mode="hide", minsize=8))
    figure.update_xaxes(title=changed, showgrid=False)
    figure.update_yaxes(title="accuracy", range=[0, 1.1], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
    return apply_style(figure, f"Accuracy by {changed}", "Bars are means, dots single seeds.")


def accuracy_strips(accuracies: Mapping[str, Mapping[str, Sequence[float]]]) -> go.Figure:
    """Draw accuracies of single sets of heads among those of many random ones, one row for each group.

    Marks: a small dot is one draw of a condition that has several, a diamond a condition that has one.

    Args:
        accuracies: Group, then condition, then one accuracy in [0, 1] per draw. The first condition of a group is on
            top.

    Raises:
        ValueError: If an accuracy is outside [0, 1], or missing.
    """
    for group, conditions in accuracies.items():
        _require_accuracies({f"{group}, {condition}": values for condition, values in conditions.items()})
    names = list(dict.fromkeys(name for conditions in accuracies.values() for name in conditions))
    figure = go.Figure()
    for number, (name, colour) in reversed(list(enumerate(zip(names, colours(len(names)), strict=True)))):
        points = [
            (group, value, len(conditions[name]))
            for group, conditions in accuracies.items()
            for value in conditions.get(name, [])
        ]
        several = any(n > 1 for _, _, n in points)
        figure.add_scatter(
            name=name,
            legendrank=1000 + number,
            x=[value for _, value, _ in points],
            y=[group for group, _, _ in points],
            mode="markers",
            marker=dict(
                color=colour,
                size=7 if several else 12,
                opacity=0.4 if several else 1,
                symbol="circle" if several else "diamond",
            ),
            cliponaxis=False,
            hovertemplate=f"{name}<br>%{{y}}<br>%{{x:.1%}}<extra></extra>",
        )
    figure.update_xaxes(title="accuracy", range=[0, 1.02], tickformat=".0%")
    figure.update_yaxes(autorange="reversed", type="category", categoryorder="array", categoryarray=list(accuracies))
    return apply_style(figure, "Accuracy without some heads", "Small dots are random draws, diamonds single sets.")


def speed_against_accuracy(
    measured: Mapping[str, Mapping[str, tuple[float | int, float | int]]],
    plain: float | int,
    gain: str = "times as fast",
) -> go.Figure:
    """Draw accuracy by speed-up, or by another gain; better is up and to the right.

    Marks: a line is a method, a dot on it a setting, with its name where there is room for it; a circle is the model as
    it is, and the dotted line its accuracy.

    Args:
        measured: Method, then setting, then speed-up (2 is twice as fast as the model as it is) and accuracy.
        plain: Accuracy of the model as it is.
        gain: Unit of the gains, as in `times fewer bytes`.

    Raises:
        ValueError: If an accuracy is outside [0, 1], or a speed-up is not positive.
    """
    _require_accuracies({"the model as it is": [plain]})
    figure = go.Figure()
    label_places: list[tuple[float, float]] = []
    gains = [1.0, *(speedup for settings in measured.values() for speedup, _ in settings.values())]
    width = max(gains) - min(gains) or 1.0
    for order, ((method, settings), colour) in enumerate(zip(measured.items(), colours(len(measured)), strict=True)):
        _require_accuracies({f"{method}, {name}": [accuracy] for name, (_, accuracy) in settings.items()})
        if wrong := [name for name, (speedup, _) in settings.items() if not 0 < speedup < np.inf]:
            raise ValueError(
                f"{method}, {wrong[0]}: a speed-up of {settings[wrong[0]][0]} is not above zero and finite."
            )
        figure.add_scatter(
            name=method,
            zorder=len(measured) - order,  # the first on top
            x=[float(speedup) for speedup, _ in settings.values()],
            y=[float(accuracy) for _, accuracy in settings.values()],
            customdata=list(settings),
            text=[
                name if _takes_room(speedup / width, accuracy, label_places) else ""
                for name, (speedup, accuracy) in settings.items()
            ],
            mode="lines+markers+text",
            textposition="bottom center",
            line=dict(color=colour, width=2),
            marker=dict(size=8),
            cliponaxis=False,
            hovertemplate=f"{method}, %{{customdata}}<br>%{{x:.2f}} {gain}<br>%{{y:.1%}}<extra></extra>",
        )
    figure.add_scatter(
        name="the model as it is",
        x=[1.0],
        y=[float(plain)],
        mode="markers",
        marker=dict(size=12, symbol="circle-open", color=QUIET, line=dict(width=2)),
        hovertemplate="the model as it is<br>%{y:.1%}<extra></extra>",
    )
    figure.add_hline(y=float(plain), line=dict(color=QUIET, dash="dot"))
    figure.update_xaxes(title=gain, ticksuffix=" x")
    figure.update_yaxes(title="accuracy", range=[0, 1.05], tickformat=".0%")
    return apply_style(figure, "What savings cost", "Better is up and to the right; 1 x is the model as it is.")


def speed_by_length(measured: Mapping[str, Mapping[int, float | int]]) -> go.Figure:
    """Draw speed-up by length of the prompt, in the layout of the paper's figure 7.

    Marks: a line is a plan, a dot on it a length; the dotted line is the model as it is.

    Args:
        measured: Plan, as in `20 heads`, then length in tokens, then speed-up. Lengths at which memory ran out are left
            out.

    Raises:
        ValueError: If a speed-up is not positive.
    """
    figure = go.Figure()
    for (plan, by_length), colour in zip(measured.items(), colours(len(measured)), strict=True):
        if wrong := [n for n, speedup in by_length.items() if not 0 < speedup < np.inf]:
            raise ValueError(f"{plan}, {wrong[0]}: a speed-up of {by_length[wrong[0]]} is not above zero and finite.")
        figure.add_scatter(
            name=plan,
            x=list(by_length),
            y=[float(speedup) for speedup in by_length.values()],
            mode="lines+markers",
            line=dict(color=colour, width=2),
            hovertemplate=f"{plan}<br>%{{x:,}} tokens<br>%{{y:.2f}} times as fast<extra></extra>",
        )
    figure.add_hline(y=1.0, line=dict(color=QUIET, dash="dot"))
    lengths = sorted({n for by_length in measured.values() for n in by_length})
    labels = [f"{n // 1024}K" if n % 1024 == 0 else f"{n:,}" for n in lengths]
    figure.update_xaxes(title="tokens of the prompt", type="log", tickvals=lengths, ticktext=labels)
    figure.update_yaxes(title="speed of the prefill", ticksuffix=" x")
    return apply_style(figure, "Speed of the prefill by length", "1 x is dense attention.")


def _takes_room(across: float, up: float, places: list[tuple[float, float]]) -> bool:
    """True if no label is close to a place, in shares of the axes; the place is taken then."""
    if any(abs(across - x) < 0.09 and abs(up - y) < 0.08 for x, y in places):
        return False
    places.append((across, up))
    return True


def _band(seeds: Sequence[float], n_samples: int | None) -> tuple[float, float] | None:
    if len(seeds) > 1:
        return min(seeds), max(seeds)
    if n_samples is None:
        return None
    interval = binomtest(round(seeds[0] * n_samples), n_samples).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _require_accuracies(values: Mapping[str, Sequence[float | int]]) -> None:
    for name, accuracies in values.items():
        if not len(accuracies):
            raise ValueError(f"{name}: there is no accuracy.")
        if wrong := [value for value in accuracies if not 0 <= value <= 1]:
            raise ValueError(f"{name}: {wrong[0]} is no accuracy; accuracies are in [0, 1].")
