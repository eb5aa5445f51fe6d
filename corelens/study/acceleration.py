"""Claim 5, acceleration: with CoRe heads alone seeing everything, the model is faster and answers as well."""

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from corelens.experiments.conditions import BASELINE
from corelens.experiments.run_folder import atomic_write_json
from corelens.experiments.sparse_eval import Plans, SparseResults, Speed, measure_speeds
from corelens.inputs.prepare import PreparedInputs
from corelens.model import HookedMLLM
from corelens.progress import progress
from corelens.study.verdict import Finding, Measurement, estimate_mean, lowest_accuracy, not_measured, per_sample


@dataclass(frozen=True)
class Timing:
    """Speeds under plans, measured several times."""

    rounds: list[dict[str, Speed]]
    positions: int
    """Of the prompt."""

    device: str
    """What it was measured on."""


def timing(
    model: HookedMLLM, inputs: PreparedInputs, plans: Plans, n_rounds: int, folder: Path, again: bool = False
) -> Timing:
    """Speeds on one prompt, from rounds that the folder holds and as many more as are missing.

    Args:
        model: The model.
        inputs: The prompt.
        plans: The plans; `plain`, the model as it is, is always measured beside them.
        n_rounds: Rounds, each of which takes every plan once.
        folder: Keeps them in `speed.json`.
        again: Measures all rounds anew, e.g. on another machine.
    """
    file = folder / "speed.json"
    positions, device = inputs["input_ids"].shape[1], _name(model.device)
    found = Timing([], positions, device)
    if file.exists() and not again:
        kept = json.loads(file.read_text())
        rounds = [{name: Speed(**one) for name, one in of_round.items()} for of_round in kept.pop("rounds")]
        same = kept["positions"] == positions and all(set(one) == {*plans, "plain"} for one in rounds)
        # Rounds of two machines cannot be told apart later.
        if same and (len(rounds) >= n_rounds or kept["device"] == device):
            found = Timing(rounds[:n_rounds], **kept)
    with progress(n_rounds, "speed", "round", len(found.rounds)) as advance:
        while len(found.rounds) < n_rounds:
            found.rounds.append(measure_speeds(model, inputs, plans, 4, 1))
            atomic_write_json(file, asdict(found))
            advance(1)
    return found


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"


PLAN = "core 5%"

RULE = (
    "With the top 5 % of heads seeing everything and all others the first and last tokens, the prompt is read at least "
    "1.5 times as fast (digests of the paper say 1.8 to 2.3), the model loses at most 5 points of the accuracy that it "
    "has, which is at least 25 % on every data set, and loses no more than with as many random heads. Data sets count "
    "alike; intervals of accuracy are over samples, and over draws of random heads; of speed, the slowest and the "
    "fastest of the rounds. Inferred."
)


def acceleration(found: SparseResults, measured: Timing) -> Finding:
    """Whether the plan that follows the scores is faster and as good.

    Args:
        found: Accuracy under plans, among them `PLAN` and its control.
        measured: Speeds.
    """
    names = list(dict.fromkeys(found.datasets))
    control, change, above = PLAN.replace("core", "random"), "change of accuracy", "accuracy above random heads'"

    def less(name: str, of: list[str], other: str, at_least: float | None = None) -> Measurement:
        return estimate_mean(name, *per_sample(found, of, PLAN, other), (-1, 1), at_least)

    effects = [
        speed_up(measured, PLAN, at_least=1.5),
        lowest_accuracy("accuracy with nothing changed, on the hardest data set", found, names, at_least=0.25),
        less(change, names, BASELINE, at_least=-0.05),
        less(above, names, control, at_least=0.0) if control in found.conditions else not_measured(above, 0.0),
    ]
    # Where prompts are as short as what all heads see, a plan changes nothing.
    for name in names if len(names) > 1 else ():
        effects.append(less(f"{change}, {name}", [name], BASELINE))
        if control in found.conditions:
            effects.append(less(f"{above}, {name}", [name], control))
    notes = [
        f"Speed is that of reading a prompt of {measured.positions:,} positions, the longest, on {measured.device}; "
        f"short prompts leave little to save, so that a claim about long ones can only be tested on long ones.",
        f"Of the attention of the prompt's last token, the plan keeps {found.attention_recall(PLAN):.0%}.",
    ]
    return Finding("Acceleration: CoRe heads alone see everything", RULE, tuple(effects), tuple(notes))


def speed_up(measured: Timing, plan: str, at_least: float | None = None) -> Measurement:
    """How many times as fast as the model as it is a prompt is read."""
    ratios = [speeds[BASELINE].prefill / speeds[plan].prefill for speeds in measured.rounds]
    return Measurement("speed-up of reading", float(np.median(ratios)), min(ratios), max(ratios), at_least)
