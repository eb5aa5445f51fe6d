"""How much a study tries, and what that costs."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from corelens.data import BoxUnit, Sample
from corelens.experiments import ablation, scan, sparse_eval
from corelens.experiments.ablation import ReferenceMethod
from corelens.experiments.run_folder import atomic_write_json
from corelens.heads import HeadSet
from corelens.hooks.positions import Phase
from corelens.model import HookedMLLM
from corelens.progress import total_progress
from corelens.study.division import MEASURES
from corelens.study.sparsity import EXCESS

SAMPLES_SCANNED = ("ram", EXCESS, *MEASURES)
"""What is measured of every head."""

N_TIMED = 16
"""Samples that are timed: as many as pass the model together."""

Texts = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True)
class StudyBudget:
    """How much is tried; the verdicts' rules are the same."""

    seeds: int
    doses: tuple[float, ...]
    operations: tuple[tuple[ReferenceMethod, Phase], ...]
    """Other ways to remove heads than zeroing them in prefill and decoding."""

    budgets: tuple[float, ...]
    rounds: int
    """Of measuring speed."""

    @property
    def n_timed(self) -> int:
        """Plans whose speed is measured: with the best heads, with random ones, with none, and no plan."""
        return 2 + 2 * len(self.budgets)


FULL = StudyBudget(
    5,
    (0.01, 0.02, 0.1, 0.2),
    (("mean", "both"), ("resample", "both"), ("zero", "prefill"), ("zero", "decode")),
    (0.05, 0.1, 0.25, 0.5),
    5,
)
QUICK = StudyBudget(2, (0.02, 0.2), (("mean", "both"),), (0.05, 0.25), 3)


@dataclass(frozen=True)
class PlannedWork:
    """A piece of a study."""

    name: str
    samples: int
    conditions: int
    """How often each sample passes the model, or is answered; at most, where controls may lack heads."""

    part: int
    """Samples that are kept or lost together."""

    answers: bool = True
    """Whether samples are answered; otherwise they only pass the model."""

    @property
    def total(self) -> int:
        """Passes or answers."""
        return self.samples * self.conditions

    def left(self, out: str | PathLike[str]) -> int:
        """Passes or answers that the folder of the study does not hold yet."""
        parts = Path(out, self.name, "parts")
        starts = range(0, self.samples, self.part)
        missing = [start for number, start in enumerate(starts) if not (parts / f"{number:05d}.parquet").exists()]
        return self.conditions * sum(min(self.part, self.samples - start) for start in missing)


def planned_work(samples: Mapping[str, Sequence[Sample]], texts: Texts, size: StudyBudget) -> dict[str, PlannedWork]:
    """The pieces of a study, by the folder that keeps each."""
    found, seen = (sum(len(own) for own in half.values()) for half in halves(samples))
    tested = seen + sum(len(own) for own in texts.values())
    controls, budgets = 3 + 2 * size.seeds, len(size.budgets)
    part = ablation.SHARD_SIZE
    every = (
        PlannedWork("scan", found, 1, scan.SHARD_SIZE, answers=False),
        PlannedWork("untrained", found, 1, scan.SHARD_SIZE, answers=False),
        PlannedWork("ablate", tested, 1 + controls + (1 + size.seeds) * len(size.doses), part),
        *(PlannedWork(f"ablate-{how}-{phase}", seen, 2, part) for how, phase in size.operations),
        PlannedWork("blind", seen, 1 + (1 + size.seeds) * budgets, part),
        PlannedWork("accelerate", seen, 2 + budgets * (5 + 2 * size.seeds), sparse_eval.SHARD_SIZE),
    )
    return {work.name: work for work in every}


def halves(samples: Mapping[str, Sequence[Sample]]) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Every other sample, by which heads are chosen, and the rest, on which they are tested."""
    if wrong := [name for name, own in samples.items() if len(own) < 4]:
        raise ValueError(f"{wrong[0]} has {len(samples[wrong[0]])} samples; a study needs four or more of each.")
    first, second = ({name: list(own[start::2]) for name, own in samples.items()} for start in (0, 1))
    return first, second


@dataclass(frozen=True)
class Throughput:
    """Seconds that a sample takes."""

    scanned: float
    answered: float

    def of(self, work: PlannedWork, out: str | PathLike[str]) -> float:
        """Seconds that what is left of a piece takes."""
        return work.left(out) * (self.answered if work.answers else self.scanned)


def measure_throughput(
    model: HookedMLLM,
    samples: Mapping[str, Sequence[Sample]],
    out: str | PathLike[str],
    max_new_tokens: int,
    box_unit: BoxUnit | None = None,
) -> Throughput:
    """How long samples take, timed on the first few of each data set, or as the folder of the study says."""
    file = Path(out) / "pace.json"
    if file.exists():
        return Throughput(**json.loads(file.read_text()))
    few = {name: list(own)[: -(-N_TIMED // len(samples))] for name, own in samples.items()}
    n = sum(map(len, few.values()))
    # Several answers to each, as in the study, since the vision tower runs once for all.
    again = {"nothing removed, again": [HeadSet(())] * 3}
    with total_progress(6 * n, "timing a few samples", "pass") as bar:
        bar.begin("", 1)
        scan.scan_metrics(model, few, SAMPLES_SCANNED)  # what starting takes does not count
        began = time.perf_counter()
        scan.scan_metrics(model, few, SAMPLES_SCANNED)
        scanned = time.perf_counter()
        bar.begin("", 4)
        ablation.run_ablation(model, few, again, max_new_tokens=max_new_tokens, box_unit=box_unit)
        found = Throughput((scanned - began) / n, (time.perf_counter() - scanned) / (4 * n))
    Path(out).mkdir(parents=True, exist_ok=True)
    atomic_write_json(file, asdict(found))
    return found
