"""A check of data before they are measured: what they hold, and what can and cannot be found by them."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from corelens.causal import evaluate
from corelens.data import BoxUnit, Sample, Samples, Skipped, evidence_tokens, prepare_batch
from corelens.data.scoring.answers import ScoredAnswer
from corelens.errors import docs_link, without_docs_link
from corelens.experiments.layer_scores import DESCRIPTIVE_METRICS
from corelens.metrics import PRESETS
from corelens.model import HookedMLLM
from corelens.study.other_evidence import with_other_evidence
from corelens.study.relevance import MOST_OVERLAP
from corelens.study.tasks import MIN_SAMPLES

N_LOOKED_AT = 32
"""Samples that are prepared, at most, to see their evidence as the model does."""
N_ANSWERED = 8
"""Samples that the model answers, at most."""
MIN_GROUPS = 4
"""Groups of samples that a study needs: two to choose heads, two to test them."""


@dataclass(frozen=True)
class DataFinding:
    """One thing that can or cannot be measured on some data."""

    subject: str
    verdict: Literal["yes", "in part", "no"]
    reason: str


@dataclass(frozen=True)
class DataCheck:
    """Contents of some data, and what can be measured on them."""

    name: str
    counts: Mapping[str, int]
    tasks: Mapping[str, int]
    """Samples of each kind of question."""

    rules: Mapping[str, int]
    """Samples that each rule scores."""

    refused: tuple[Skipped, ...]
    """Rows that are no samples."""

    unmeasurable: tuple[Skipped, ...]
    """Samples that the model cannot take, or whose evidence it cannot see; of the first `N_LOOKED_AT`."""

    findings: tuple[DataFinding, ...]
    answers: tuple[ScoredAnswer, ...]
    example: Sample | None
    """The first sample that can be measured, with evidence if one has it."""


def check_data(
    model: HookedMLLM, samples: Samples, box_unit: BoxUnit | None = None, limit: int | None = None
) -> DataCheck:
    """Check data: count what they hold, prepare the first samples, answer some, and say what can be measured.

    Args:
        model: The model.
        samples: The data.
        box_unit: Unit of the boxes in the model's answers, for samples that ask for a box.
        limit: Most samples that are looked at.

    Raises:
        ValueError: If no row is a sample; names the first refused row.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* rows of .* were skipped", category=UserWarning)
        listed = list(samples)[:limit]
    if not listed:
        first = f", {samples.skipped[0].id} since {samples.skipped[0].reason}" if samples.skipped else ""
        raise ValueError(
            f"{samples.name} has no sample: {len(samples.skipped)} rows were refused{first}. "
            f"{docs_link('refused-rows')}"
        )
    prepared = _prepare(model, listed[:N_LOOKED_AT])
    measurable = [sample for sample in listed[:N_LOOKED_AT] if isinstance(prepared[sample.id], float)]
    answers = tuple(scored_answers(model, measurable[:N_ANSWERED], box_unit))
    with_evidence = [sample for sample in measurable if sample.evidence]
    return DataCheck(
        samples.name,
        _counts(listed),
        Counter(str(sample.about.get("task", "")) for sample in listed),
        Counter(sample.scoring for sample in listed),
        tuple(samples.skipped),
        tuple(Skipped(sample, reason) for sample, reason in prepared.items() if isinstance(reason, str)),
        (
            _retrieval(listed),
            _contrast([prepared[sample.id] for sample in with_evidence]),
            _relevance(model, with_evidence),
            _intervals(listed),
            _accuracy(listed, answers),
            _kinds(listed),
        ),
        answers,
        next(iter([*with_evidence, *measurable]), None),
    )


def _counts(samples: Sequence[Sample]) -> dict[str, int]:
    return {
        "samples": len(samples),
        "with evidence": sum(bool(sample.evidence) for sample in samples),
        "without a picture": sum(not (sample.images or sample.videos) for sample in samples),
        "groups": len({sample.group for sample in samples}),
        "different questions": len({sample.question for sample in samples}),
        "different answers": len({sample.answer for sample in samples}),
    }


def _prepare(model: HookedMLLM, samples: Sequence[Sample]) -> dict[str, float | str]:
    """Share of the visual tokens of each sample that are evidence, or the reason why it cannot be measured."""
    prepared: dict[str, float | str] = {}
    for sample in samples:
        try:
            tokens = prepare_batch(model, [sample]).tokens
            evidence = evidence_tokens([sample], tokens).float() if sample.evidence else tokens.visual.float() * 0
            prepared[sample.id] = float(evidence.sum() / tokens.visual.sum().clamp(min=1))
        except (ValueError, OSError, ImportError) as cause:
            prepared[sample.id] = without_docs_link(str(cause))
    return prepared


def scored_answers(
    model: HookedMLLM, samples: Sequence[Sample], box_unit: BoxUnit | None = None
) -> Iterator[ScoredAnswer]:
    """Yield the answers to samples, to see what their rules accept.

    Samples that cannot be prepared are left out, and without `box_unit` those that ask for a box.
    """
    for sample in samples:
        if sample.scoring == "box" and box_unit is None:
            continue
        try:
            batches = [((sample,), prepare_batch(model, [sample]))]
        except (ValueError, OSError, ImportError):
            continue
        answered = evaluate(model, batches, max_new_tokens=32, box_unit=box_unit)
        value = float(answered.scores[0]) if answered.parsed[0] else None
        yield ScoredAnswer(sample.id, sample.question, sample.answers, answered.predictions[0], sample.scoring, value)


def _retrieval(samples: Sequence[Sample]) -> DataFinding:
    subject = f"scores of retrieval ({', '.join(PRESETS)})"
    with_evidence = sum(bool(sample.evidence) for sample in samples)
    if not with_evidence:
        others = ", ".join(DESCRIPTIVE_METRICS)
        return DataFinding(subject, "no", f"no sample says where its answer is. These need no evidence: {others}.")
    if with_evidence < len(samples):
        reason = f"{with_evidence} of {len(samples)} samples have evidence; scans leave the others out."
        return DataFinding(subject, "in part", reason)
    return DataFinding(subject, "yes", "every sample has evidence.")


def _contrast(shares: Sequence[float | str]) -> DataFinding:
    contrasting = [name for name, metric in PRESETS.items() if metric.contrasts]
    subject = f"evidence against the rest of the picture ({', '.join(contrasting)})"
    if not shares:
        return DataFinding(subject, "no", "no sample that could be prepared has evidence.")
    if n_whole := sum(share == 1 for share in shares):
        return DataFinding(
            subject,
            "no" if n_whole == len(shares) else "in part",
            f"in {n_whole} of {len(shares)} samples the evidence is all visual tokens: {' and '.join(contrasting)} "
            f"leave them out, and by the others a head that retrieves is one that looks at pictures.",
        )
    of_visual = np.mean([float(share) for share in shares])
    return DataFinding(subject, "yes", f"evidence is {of_visual:.1%} of the visual tokens, in the mean.")


def _relevance(model: HookedMLLM, samples: Sequence[Sample]) -> DataFinding:
    subject = "heads that follow the evidence (the study's sparsity and division of labour)"
    overlap = with_other_evidence(model, samples).overlap if samples else []
    if not overlap:
        reason = "it takes two samples with evidence, of different pictures and with different questions."
        return DataFinding(subject, "no", reason)
    mean = np.mean(overlap)
    reason = f"the evidence of two samples overlaps by {mean:.0%}, in the mean"
    if mean > MOST_OVERLAP:
        reason += f", more than {MOST_OVERLAP:.0%}: a head that always looks at one place seems to retrieve."
        return DataFinding(subject, "no", reason)
    return DataFinding(subject, "yes", f"{reason}.")


def _intervals(samples: Sequence[Sample]) -> DataFinding:
    subject = "intervals, p-values, and halves that choose and test heads"
    n_groups = len({sample.group for sample in samples})
    of_groups = f"{len(samples)} samples of {n_groups} groups"
    if n_groups < 2:
        return DataFinding(subject, "no", f"all samples are of one group, {samples[0].group!r}.")
    if n_groups < MIN_GROUPS:
        return DataFinding(subject, "in part", f"{of_groups}: the study needs {MIN_GROUPS}.")
    if n_groups < len(samples):
        return DataFinding(subject, "yes", f"{of_groups}, which count as one each.")
    return DataFinding(subject, "yes", f"{len(samples)} samples, which share no picture or document that is named.")


def _accuracy(samples: Sequence[Sample], answers: Sequence[ScoredAnswer]) -> DataFinding:
    subject = "accuracy (ablations and most of the study)"
    (commonest, n), *others = Counter(sample.answer for sample in samples).most_common()
    if not others:
        return DataFinding(subject, "no", f"every answer is {commonest!r}: a model that always says so is right.")
    guessing = f"the commonest answer, {commonest!r}, is right in {n / len(samples):.0%}"
    if not answers:
        return DataFinding(subject, "in part", f"{guessing}. No answer was scored: boxes need the model's --box-unit.")
    n_right = sum(answer.score == 1 for answer in answers)
    answered = f"of {len(answers)} samples the model answers {n_right} right; {guessing}"
    if not n_right:
        return DataFinding(subject, "no", f"{answered}. What is not answered cannot be lost: nothing can be tested.")
    return DataFinding(subject, "in part" if n > len(samples) / 2 else "yes", f"{answered}.")


def _kinds(samples: Sequence[Sample]) -> DataFinding:
    subject = "kinds of questions, each with heads of its own"
    tasks = Counter(str(sample.about["task"]) for sample in samples if sample.about.get("task"))
    large = [task for task, n in tasks.items() if n >= 2 * MIN_SAMPLES]
    if len(large) > 1:
        return DataFinding(subject, "yes", f"{', '.join(large)}.")
    reason = f"it takes two kinds (`task`) with {2 * MIN_SAMPLES} samples or more"
    by_heads = "" if tasks else "; where none is named, the study looks for two groups by the heads that they use"
    return DataFinding(subject, "no", f"{reason}{by_heads}.")
