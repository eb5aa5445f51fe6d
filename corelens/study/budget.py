"""Budget of a study: which conditions it tries, how much work they are, and how long that takes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from os import PathLike
from pathlib import Path

from corelens.data import BoxUnit, Sample
from corelens.experiments import ablation, key_tokens, scan, sparse_eval, sweep
from corelens.experiments.ablation import ReferenceMethod
from corelens.experiments.controls import WRITE_NORM
from corelens.experiments.remote import AnyModel, call
from corelens.experiments.run_folder import read_summary, write_summary
from corelens.experiments.throughput import (
    N_TIMED_ANSWERS,
    affordable_draws,
    seconds_per_answer,
    seconds_per_pass,
    timed_samples,
)
from corelens.hooks.positions import Phase
from corelens.model import HookedMLLM
from corelens.progress import total_progress
from corelens.study.division import EVIDENCE_SHARE, METRICS
from corelens.study.other_evidence import with_other_questions
from corelens.study.query_tokens import QUERY_TOKENS
from corelens.study.sparsity import EXCESS
from corelens.study.tasks import TASK_METRICS, task_groups, unnamed

SCANNED_METRICS = (
    *QUERY_TOKENS,
    EXCESS,
    WRITE_NORM,
    *(EVIDENCE_SHARE if name == EVIDENCE_SHARE.name else name for name in METRICS),
)
"""Metrics of the scan."""

Texts = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True)
class StudyBudget:
    """Conditions that a study tries; the rules of the verdicts do not depend on it."""

    n_seeds: int
    """Number of random draws of heads."""

    n_matched: int
    """Number of random draws of heads that write as much as the CoRe heads; the most, where cost decides."""

    n_untrained: int
    """Number of untrained models, each with other random weights."""

    doses: tuple[int, ...]
    """Numbers of heads that are ablated, besides the CoRe heads; those that leave as many others."""

    methods: tuple[tuple[ReferenceMethod, Phase], ...]
    """Methods and phases of ablation other than zeroing in prefill and decoding."""

    kept_fractions: tuple[float, ...]
    """Fractions of heads that keep all attention, under plans and where the other heads are blinded."""

    n_rounds: int
    """Number of measurements of speed."""

    n_effects: int
    """Samples of each data set on which the effect of every head by itself is measured."""

    @property
    def n_timed_plans(self) -> int:
        """Number of plans whose speed is measured: with the best heads, with random ones, with none, and no plan."""
        return 2 + 2 * len(self.kept_fractions)

    def affordable(self, throughput: "Throughput", n_tested: int) -> "StudyBudget":
        """The same with as many draws of matched heads as take a minute, but ten or more."""
        return replace(self, n_matched=affordable_draws(throughput.seconds_per_answer * n_tested, self.n_matched))

    def doses_of(self, n_heads: int) -> tuple[int, ...]:
        """The doses that leave as many heads to compare with, in a model of so many heads."""
        return tuple(dose for dose in self.doses if 2 * dose <= n_heads)


FULL = StudyBudget(
    5,
    100,
    5,
    ablation.PUBLISHED_DOSES,
    (("mean", "both"), ("mean_by_role", "both"), ("resample", "both"), ("zero", "prefill"), ("zero", "decode")),
    (0.05, 0.1, 0.25, 0.5),
    5,
    32,
)
QUICK = StudyBudget(2, 20, 3, (5, 10), (("mean", "both"),), (0.05, 0.25), 3, 8)


@dataclass(frozen=True)
class PlannedWork:
    """One experiment of a study."""

    name: str
    samples: int
    conditions: int
    """Forward passes or answers per sample; at most, where controls may lack heads."""

    shard_size: int
    """Number of samples that are saved together."""

    answers: bool = True
    """True if samples are answered, False if they only pass the model."""

    @property
    def total(self) -> int:
        """Number of passes or answers."""
        return self.samples * self.conditions

    def remaining(self, out: str | PathLike[str]) -> int:
        """Number of passes or answers that the folder of the study does not hold yet."""
        parts = Path(out, self.name, "parts")
        starts = range(0, self.samples, self.shard_size)
        missing = [start for index, start in enumerate(starts) if not (parts / f"{index:05d}.parquet").exists()]
        return self.conditions * sum(min(self.shard_size, self.samples - start) for start in missing)


def planned_work(
    samples: Mapping[str, Sequence[Sample]], texts: Texts, budget: StudyBudget, n_heads: int
) -> dict[str, PlannedWork]:
    """Return the experiments of a study of a model with so many heads, by the name of their folder."""
    scanned, tested = halves(samples)
    n_scanned, n_tested = (sum(map(len, half.values())) for half in (scanned, tested))
    n_partnered = sum(len(with_other_questions(half)) for half in scanned.values())
    n_texts, n_controls = sum(map(len, texts.values())), 3 + 2 * budget.n_seeds
    n_kept, n_doses = len(budget.kept_fractions), len(budget.doses_of(n_heads))
    n_tasks = len({*task_groups(scanned, tested).values()})  # and more, where those without a name fall apart
    n_unnamed = sum(len(tested[name]) for name in unnamed(samples))
    n_effects = sum(len(half[: budget.n_effects]) for half in tested.values())
    shard_size = ablation.SHARD_SIZE
    n_conditions = 1 + n_controls + budget.n_matched + (1 + budget.n_seeds) * n_doses
    works = (
        PlannedWork("scan", n_scanned, 1, scan.SHARD_SIZE, answers=False),
        *(
            PlannedWork(f"untrained-{seed}", n_scanned, 1, scan.SHARD_SIZE, answers=False)
            for seed in range(budget.n_untrained)
        ),
        PlannedWork("other-evidence", n_partnered, 1, scan.SHARD_SIZE, answers=False),
        PlannedWork("other-questions", n_partnered, 1, scan.SHARD_SIZE, answers=False),
        PlannedWork("untrained-key-tokens", n_tested, 1, key_tokens.SHARD_SIZE, answers=False),
        PlannedWork("ablate", n_tested, n_conditions, shard_size),
        PlannedWork("ablate-texts", n_texts, 1 + n_controls, shard_size),
        PlannedWork("mask", n_tested, 1 + (2 + budget.n_seeds) * n_doses, shard_size),
        PlannedWork("key-tokens", n_tested, 1, key_tokens.SHARD_SIZE, answers=False),
        PlannedWork("query-tokens", n_tested, 1 + len(QUERY_TOKENS) * n_doses, shard_size),
        PlannedWork("unnamed-tasks", n_unnamed, 1, scan.SHARD_SIZE, answers=False),
        PlannedWork("tasks", n_tested if n_tasks > 1 else 0, 1 + len(TASK_METRICS) * n_tasks, shard_size),
        PlannedWork("effects", n_effects, n_heads, sweep.SHARD_SIZE, answers=False),
        PlannedWork("markers", n_scanned, 1, scan.SHARD_SIZE, answers=False),
        *(PlannedWork(f"ablate-{method}-{phase}", n_tested, 2, shard_size) for method, phase in budget.methods),
        PlannedWork("blind", n_tested, 1 + (1 + budget.n_seeds) * n_kept, shard_size),
        PlannedWork("accelerate", n_tested, 2 + n_kept * (5 + 2 * budget.n_seeds), sparse_eval.SHARD_SIZE),
    )
    return {work.name: work for work in works}


def halves(samples: Mapping[str, Sequence[Sample]]) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Split each data set in two: every other sample, by which heads are chosen, and the rest, which tests them.

    Where samples come in groups, such as the questions about a picture, it is every other group: none is in both
    halves, of one data set or of several.

    Raises:
        ValueError: If a data set has fewer than two groups in either half; names it.
    """
    half_of: dict[str, int] = {}
    halves: tuple[dict[str, list[Sample]], dict[str, list[Sample]]] = ({}, {})
    for name, dataset in samples.items():
        n_groups = [0, 0]
        for group in dict.fromkeys(sample.group for sample in dataset):
            half = half_of.setdefault(group, int(n_groups[0] > n_groups[1]))
            n_groups[half] += 1
        if min(n_groups) < 2:
            of_groups = f" of {sum(n_groups)} groups" if sum(n_groups) < len(dataset) else ""
            uneven = f", of which {n_groups[0]} and {n_groups[1]} are in the halves" if sum(n_groups) > 3 else ""
            raise ValueError(
                f"{name} has {len(dataset)} samples{of_groups}{uneven}; a study needs four or more of each: two to "
                f"choose heads, and two to test them. Groups that earlier data sets have stay in their half."
            )
        for half, of_half in enumerate(halves):
            of_half[name] = [sample for sample in dataset if half_of[sample.group] == half]
    return halves


@dataclass(frozen=True)
class Throughput:
    """Seconds that one sample takes."""

    seconds_per_pass: float
    seconds_per_answer: float

    def remaining_seconds(self, work: PlannedWork, out: str | PathLike[str]) -> float:
        """Seconds that the remaining work of an experiment takes."""
        return work.remaining(out) * (self.seconds_per_answer if work.answers else self.seconds_per_pass)


def measure_throughput(
    model: AnyModel,
    samples: Mapping[str, Sequence[Sample]],
    out: str | PathLike[str],
    max_new_tokens: int,
    box_unit: BoxUnit | None = None,
) -> Throughput:
    """Time the first few samples of each data set, or read the times that the folder of the study holds."""

    file = Path(out) / "throughput.json"
    if file.exists():
        return Throughput(**read_summary(file, *(field.name for field in fields(Throughput))))
    timed = timed_samples(samples)
    n_samples = sum(map(len, timed.values()))
    with total_progress((2 + N_TIMED_ANSWERS) * n_samples, "timing a few samples", "pass") as bar:
        bar.begin("", 1)
        of_pass = call(model, partial(_seconds_per_pass, samples=timed))
        bar.begin("", N_TIMED_ANSWERS)
        answers = partial(seconds_per_answer, samples=timed, max_new_tokens=max_new_tokens, box_unit=box_unit)
        throughput = Throughput(of_pass, call(model, answers))
    Path(out).mkdir(parents=True, exist_ok=True)
    write_summary(file, asdict(throughput))
    return throughput


def _seconds_per_pass(model: HookedMLLM, samples: Mapping[str, Sequence[Sample]]) -> float:
    seconds_per_pass(model, samples, SCANNED_METRICS)  # warm-up
    return seconds_per_pass(model, samples, SCANNED_METRICS)
