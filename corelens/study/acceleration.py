"""Claim 5, acceleration: with CoRe heads alone attending to everything, the model is faster and answers as well."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corelens.data import Sample
from corelens.experiments.conditions import BASELINE, low_to_high
from corelens.experiments.remote import AnyModel, call
from corelens.experiments.run_folder import read_summary, write_summary
from corelens.experiments.sparse_eval import (
    Plans,
    SparseResults,
    longest_prompt,
    measure_speeds,
    measured_summary,
    run_sparse_eval,
)
from corelens.experiments.speed import Speed
from corelens.model import HookedMLLM
from corelens.progress import progress
from corelens.scores import HeadScores
from corelens.sparse import StreamingBlocks
from corelens.sparse.controls import plans_and_controls
from corelens.sparse.rules import describe_rule
from corelens.study.verdict import (
    Finding,
    Measurement,
    estimate_mean,
    not_measured,
    premise_of_accuracy,
    sample_accuracies,
)

PLAN = "core 5%"

PUBLISHED_COUNTS = (20, 30, 50, 100, 150, 200)
"""Numbers of heads that attend to everything in the paper's plans for models of 7 and 8 billion parameters."""

RULE = (
    "Premise: of the accuracy above chance, the model has at least 25 % on every data set. With the top 5 % of heads "
    "attending to everything and all others to the first and last tokens, the prompt is read at least 1.5 times as "
    "fast (the paper prints 1.8 to 2.3 for MLVU, table 2), the model loses at most 5 points of accuracy, and loses no "
    "more than with as many random heads. Data sets count alike; intervals of accuracy are over samples, and over "
    "draws of random heads; of speed, the slowest and the fastest of the rounds. This plan also saves cache, the "
    "paper's (512 sinks, 4,096 local tokens, prefill only) does not: it is reported, with random heads of the same "
    "number, where prompts are longer than what it keeps. The rule is corelens's own."
)


@dataclass(frozen=True)
class Timing:
    """Speeds under plans, measured several times."""

    rounds: list[dict[str, Speed]]
    """Speeds by plan, for each round."""

    positions: int
    """Length of the prompt."""

    device: str
    """Name of the device that ran the model."""


def acceleration(
    sparse_results: SparseResults,
    timing: Timing,
    published_results: SparseResults | None = None,
    chance: Mapping[str, float] | None = None,
) -> Finding:
    """Test whether the model is faster under the plan by scores, and as accurate.

    Args:
        sparse_results: Accuracy under plans, among them `PLAN` and its control.
        timing: Speeds under the same plans.
        published_results: Accuracy under the paper's plan, by kind and number of heads that attend to everything; None
            if it is full attention for all prompts.
        chance: Accuracy of guessing, by data set; zero where it is not given.
    """
    datasets = list(dict.fromkeys(sparse_results.datasets))
    control, change, above = PLAN.replace("core", "random"), "change of accuracy", "accuracy above random heads'"

    def difference(name: str, names: list[str], condition: str, at_least: float | None = None) -> Measurement:
        return estimate_mean(name, *sample_accuracies(sparse_results, names, PLAN, condition), (-1, 1), at_least)

    has_control = control in sparse_results.conditions
    name = "accuracy above chance with nothing changed, on the hardest data set"
    measurements = [
        speed_up(timing, PLAN, at_least=1.5),
        premise_of_accuracy(name, sparse_results, datasets, 0.25, chance or {}),
        difference(change, datasets, BASELINE, at_least=-0.05),
        difference(above, datasets, control, at_least=0.0) if has_control else not_measured(above, 0.0),
    ]
    # Where prompts are as short as what all heads attend to, a plan changes nothing.
    for dataset in datasets if len(datasets) > 1 else ():
        measurements.append(difference(f"{change}, {dataset}", [dataset], BASELINE))
        if has_control:
            measurements.append(difference(f"{above}, {dataset}", [dataset], control))
    if published_results is not None:
        for condition in [name for name in published_results.conditions if name != BASELINE]:
            changes = sample_accuracies(published_results, datasets, condition, BASELINE)
            measurements.append(estimate_mean(f"{change}, published plan, {condition}", *changes, (-1, 1)))
    notes = [
        f"Speed is that of reading a prompt of {timing.positions:,} positions, the longest, on {timing.device}; "
        f"short prompts leave little to save, so that a claim about long ones can only be tested on long ones.",
        f"Of the attention of the prompt's last token, the plan keeps {sparse_results.attention_recall(PLAN):.0%}.",
    ]
    if control in sparse_results.n_writing:
        of_core, of_random = (low_to_high(sparse_results.n_writing[name]) for name in (PLAN, control))
        notes.append(
            f"Of the heads that attend to everything, {of_core} of the plan's and {of_random} of the random ones write "
            f"anything; what the others attend to changes nothing."
        )
    if published_results is None:
        notes.append(
            "The paper's own plan keeps 512 first and 4,096 last tokens of a prompt: for prompts as short as these it "
            "is full attention, and was not run."
        )
    return Finding("Acceleration: CoRe heads alone attend to everything", RULE, tuple(measurements), tuple(notes))


def published_counts(n_positions: int, n_heads: int) -> tuple[int, ...]:
    """Return the numbers of heads of the paper's plans that leave as many others in a model of so many heads.

    None where the longest prompt has so few positions that these plans are full attention.
    """
    rule = StreamingBlocks().in_tokens
    return tuple(n for n in PUBLISHED_COUNTS if 2 * n <= n_heads) if n_positions > rule.sink + rule.window else ()


def run_published(
    model: AnyModel,
    samples: Mapping[str, Sequence[Sample]],
    ranking: HeadScores,
    group_size: int,
    counts: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    **options: Any,
) -> SparseResults:
    """Answer under the paper's plans and those of as many random heads, and keep accuracy and speed in a run folder.

    Args:
        model: The model.
        samples: Questions with media, by data set.
        ranking: Scores whose top heads attend to everything.
        group_size: Heads that share keys and values.
        counts: As returned by `published_counts`.
        seeds: Seeds of the random draws.
        out: The run folder, as `corelens accelerate --plan published` writes it.
        options: Further arguments of `run_sparse_eval`.
    """
    rule = StreamingBlocks()
    plans = {
        name: draws
        for name, draws in plans_and_controls(ranking, group_size, rule, counts, seeds).items()
        if name.rpartition(" ")[0] in ("core", "random")
    }
    results = run_sparse_eval(model, samples, plans, out=out, **options)
    if not (file := out / "acceleration.json").exists():
        summary = {"model": ranking.model, "chosen by": f"{ranking.metric} of {ranking.model}"}
        summary |= {"plan": "published", "other heads": describe_rule(rule)}
        write_summary(file, summary | call(model, partial(measured_summary, samples=samples, results=results)))
    return results


def speed_up(timing: Timing, plan: str, at_least: float | None = None) -> Measurement:
    """Speed of reading the prompt under a plan, over that of the unchanged model."""
    ratios = [speeds[BASELINE].prefill / speeds[plan].prefill for speeds in timing.rounds]
    return Measurement("speed-up of reading", float(np.median(ratios)), min(ratios), max(ratios), at_least)


def measure_timing(
    model: AnyModel,
    samples: Mapping[str, Sequence[Sample]],
    plans: Plans,
    n_rounds: int,
    folder: Path,
    remeasure: bool = False,
) -> Timing:
    """Measure speeds on the longest prompt in as many rounds as the folder lacks, in one go.

    Args:
        model: The model.
        samples: The samples.
        plans: The plans; the unchanged model, `plain`, is always measured with them.
        n_rounds: Number of rounds, each of which runs every plan once.
        folder: Folder that keeps the rounds in `speed.json`.
        remeasure: Measure all rounds again, e.g. on another machine.
    """
    file, earlier = folder / "speed.json", None
    if file.exists() and not remeasure:
        saved = read_summary(file, "rounds", "positions", "device")
        rounds = [{name: Speed(**speed) for name, speed in speeds.items()} for speeds in saved.pop("rounds")]
        earlier = Timing(rounds, **saved)
    timing = call(model, partial(_timing, samples=samples, plans=plans, n_rounds=n_rounds, earlier=earlier))
    write_summary(file, asdict(timing))
    return replace(timing, rounds=timing.rounds[:n_rounds])


def _timing(
    model: HookedMLLM, samples: Mapping[str, Sequence[Sample]], plans: Plans, n_rounds: int, earlier: Timing | None
) -> Timing:
    """Rounds of an earlier timing, if it is of the same prompt and plans, and those that it lacks."""
    prompt = longest_prompt(model, samples)
    positions, device = prompt["input_ids"].shape[1], _device_name(model.device)
    timing = Timing([], positions, device)
    if earlier and earlier.positions == positions and all(set(of) == {*plans, BASELINE} for of in earlier.rounds):
        # Rounds of two machines cannot be told apart later.
        timing = earlier if len(earlier.rounds) >= n_rounds or earlier.device == device else timing
    with progress(n_rounds, "speed", "round", min(len(timing.rounds), n_rounds)) as advance:
        while len(timing.rounds) < n_rounds:
            timing.rounds.append(measure_speeds(model, prompt, plans, 4, 1))
            advance(1)
    return timing


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
