"""The whole study of a model: scans, ablations and plans in one folder, and what they say of each claim."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from corelens.ablating import ablate_all, with_controls
from corelens.accelerating import Accelerated, accelerate_all, speeds
from corelens.conditions import PLAIN, Conditions
from corelens.data import Sample
from corelens.heads import Head, HeadSet
from corelens.model import HookedMLLM
from corelens.parts import length_of, prepared
from corelens.passes import Phase
from corelens.scanning import scan_all
from corelens.scores import HeadScores
from corelens.sparse import Streaming
from corelens.sparse.budgets import plans_and_controls
from corelens.sparse.speed import Speed
from corelens.study.acceleration import acceleration
from corelens.study.division import MEASURES, division
from corelens.study.finding import Finding
from corelens.study.generality import TOP, generality
from corelens.study.necessity import necessity
from corelens.study.sparsity import EXCESS, sparsity
from corelens.sweeping import Removal

SCANNED = ("ram", EXCESS, *MEASURES)
"""What is measured of every head."""

Texts = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True)
class Size:
    """How much is tried; the verdicts' rules are the same."""

    seeds: int
    doses: tuple[float, ...]
    operations: tuple[tuple[Removal, Phase], ...]
    """Other ways to remove heads than zeroing them in prefill and decoding."""

    budgets: tuple[float, ...]
    rounds: int
    """Of measuring speed."""

    @property
    def costs(self) -> dict[str, tuple[str, int]]:
        """Of every part of the study, the samples it takes and how often each is answered, at most."""
        controls = 3 + 2 * self.seeds
        return {
            "scan": ("found", 1),
            "scan of an untrained model": ("found", 1),
            "ablate": ("tested", 1 + controls + (1 + self.seeds) * len(self.doses)),
            **{f"ablate, {how}, {phase}": ("seen", 2) for how, phase in self.operations},
            "blind all but a few": ("seen", 1 + 2 * len(self.budgets)),
            "accelerate": ("seen", 2 + len(self.budgets) * (5 + 2 * self.seeds)),
        }


FULL = Size(
    5,
    (0.01, 0.02, 0.1, 0.2),
    (("mean", "both"), ("resample", "both"), ("zero", "prefill"), ("zero", "decode")),
    (0.05, 0.1, 0.25, 0.5),
    5,
)
QUICK = Size(2, (0.02, 0.2), (("mean", "both"),), (0.05, 0.25), 3)


@dataclass(frozen=True)
class Study:
    """What was measured, and what it says of each claim."""

    findings: tuple[Finding, ...]
    scores: Mapping[str, HeadScores]
    untrained: Mapping[str, HeadScores]
    core: HeadSet
    zeroed: Conditions[HeadSet]
    others: Mapping[str, Conditions[HeadSet]]
    accelerated: Accelerated
    rounds: Sequence[Mapping[str, Speed]]
    texts: tuple[str, ...]
    """Which data sets are text-only."""


def costs(samples: Mapping[str, Sequence[Sample]], texts: Texts, size: Size) -> dict[str, tuple[int, int]]:
    """Samples and conditions of every part of a study; a sample under a condition is a pass or an answer."""
    found, seen = (sum(len(own) for own in half.values()) for half in halves(samples))
    numbers = {"found": found, "seen": seen, "tested": seen + sum(len(own) for own in texts.values())}
    return {work: (numbers[of], conditions) for work, (of, conditions) in size.costs.items()}


def halves(samples: Mapping[str, Sequence[Sample]]) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Every other sample, by which heads are chosen, and the rest, on which they are tested."""
    if wrong := [name for name, own in samples.items() if len(own) < 4]:
        raise ValueError(f"{wrong[0]} has {len(samples[wrong[0]])} samples; a study needs four or more of each.")
    first, second = ({name: list(own[start::2]) for name, own in samples.items()} for start in (0, 1))
    return first, second


def run_study(
    model: HookedMLLM,
    samples: Mapping[str, Sequence[Sample]],
    texts: Texts,
    out: str | PathLike[str],
    size: Size = FULL,
    max_new_tokens: int = 32,
) -> Study:
    """Tests the five claims on a model.

    Args:
        model: The model.
        samples: Questions with media, answers and evidence, by data set.
        texts: Questions without media, the control for "cannot answer".
        out: A folder with a run folder for each part; the same study goes on where it was interrupted.
        size: How much is tried.
        max_new_tokens: Where answers are cut off.

    Raises:
        ValueError: If a data set is too small, or anything that `scan_all`, `ablate_all` and `accelerate_all` say.
    """
    folder = Path(out)
    found, seen = halves(samples)
    scores = scan_all(model, found, SCANNED, out=folder / "scan")
    null = scan_all(untrained(model), found, ("ram", EXCESS), out=folder / "untrained")
    ram = scores["ram"]
    core = ram.top(TOP)

    conditions = with_controls(ram, TOP, range(size.seeds))
    for dose in size.doses:
        conditions[f"top {dose:.0%}"] = [ram.top(dose)]
        conditions[f"random {dose:.0%}"] = [ram.random(seed, dose) for seed in range(size.seeds)]
    zeroed = ablate_all(model, {**seen, **texts}, conditions, max_new_tokens=max_new_tokens, out=folder / "ablate")
    others = {
        how if phase == "both" else f"{how} in {phase}": ablate_all(
            model,
            seen,
            {"top": [core]},
            how,
            phase,
            max_new_tokens=max_new_tokens,
            out=folder / f"ablate-{how}-{phase}",
        )
        for how, phase in size.operations
    }
    kept = {
        f"blinding all but {kind} {budget:.0%}": [all_but(ram, heads)]
        for budget in size.budgets
        for kind, heads in (("top", ram.top(budget)), ("random", ram.random(0, budget)))
    }
    others["sufficiency"] = ablate_all(model, seen, kept, "blind", max_new_tokens=max_new_tokens, out=folder / "blind")

    longest = max((sample for own in seen.values() for sample in own), key=length_of)
    n_positions = prepared(model, [longest])["input_ids"].shape[1]
    group_size = model.cfg.n_heads // model.cfg.n_key_value_heads
    plans = plans_and_controls(ram, group_size, streaming(n_positions), size.budgets, range(size.seeds))
    accelerated = accelerate_all(model, seen, plans, max_new_tokens=max_new_tokens, out=folder / "accelerate")
    timed = {name: own for name, own in accelerated.conditions.items() if name in (PLAIN, "none") or "core" in name}
    rounds = [speeds(model, {"": [longest]}, timed, 4, 1)[1] for _ in range(size.rounds)]

    first, second = (_every_other(scores, start) for start in (0, 1))
    findings = (
        sparsity(scores[EXCESS.name], null[EXCESS.name]),
        generality(ram, null["ram"]),
        division(ram, second, first["ram"].top(TOP)),
        necessity(zeroed, others, texts),
        acceleration(accelerated, rounds, n_positions),
    )
    return Study(findings, scores, null, core, zeroed, others, accelerated, rounds, tuple(texts))


def untrained(model: HookedMLLM) -> HookedMLLM:
    """A model of the same configuration with the random weights that training would begin with, always the same.

    It takes as much memory as the model, beside it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = copy.deepcopy(model.hf_model.config)
        # Any: its own annotations do not say that models have a device.
        fresh: Any = type(model.hf_model)._from_config(config, dtype=model.hf_model.dtype)
    return HookedMLLM(fresh.to(model.device).eval(), model.processor)


def all_but(scores: HeadScores, kept: HeadSet) -> HeadSet:
    """All heads that have a score, without some."""
    others = [Head(*head) for head in scores.exist.nonzero().tolist() if Head(*head) not in kept]
    return HeadSet(tuple(others), f"all but {kept.name}")


def streaming(n_positions: int) -> Streaming:
    """What heads that do not see everything keep: the laboratory's 128 and 2,048, or less where prompts are short."""
    return Streaming(min(128, n_positions // 32), max(1, min(2048, n_positions // 4)))


def _every_other(scores: Mapping[str, HeadScores], start: Literal[0, 1]) -> dict[str, HeadScores]:
    return {
        name: replace(one, values=one.values[start::2], samples=one.samples[start::2], datasets=one.datasets[start::2])
        for name, one in scores.items()
    }
