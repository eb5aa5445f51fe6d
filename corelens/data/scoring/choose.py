"""The rule that a sample names, and the mean of many scores."""

from collections.abc import Iterable
from dataclasses import dataclass

from corelens.data.sample import Sample
from corelens.data.scoring import short
from corelens.data.scoring.boxes import BoxUnit, box_hit
from corelens.data.scoring.documents import mmlongbench_doc, mmlongbench_docqa
from corelens.media import load_picture
from corelens.refusals import see

_SHORT = {
    "exact": short.exact,
    "contains": short.contains,
    "anls": short.anls,
    "numeric": short.numeric,
    "yes-no": short.yes_no,
    "count": short.count,
    "label": short.label,
}
_BY_FORMAT = {"mmlongbench-doc": mmlongbench_doc, "mmlongbench-docqa": mmlongbench_docqa}


def score(sample: Sample, said: str, box_unit: BoxUnit | None = None) -> float | None:
    """How good an answer to a sample is, by the rule that `sample.scoring` names.

    Args:
        sample: What was asked.
        said: What the model said.
        box_unit: The unit in which the model says boxes; needed for samples that ask for a box.

    Returns:
        From 0 to 1, or None if the answer cannot be read; `tally` counts these as wrong, and apart.

    Raises:
        ValueError: If the answer is a box and no unit was given, or no rule can judge it.
    """
    if sample.scoring in _SHORT:
        return _SHORT[sample.scoring](said, sample.answers)
    if sample.scoring in _BY_FORMAT:
        return _BY_FORMAT[sample.scoring](said, sample.answer, sample.about["answer format"])
    if sample.scoring == "choice":
        return short.choice(said, sample.choices, sample.answer)
    if sample.scoring == "box":
        return _box(sample, said, box_unit)
    known = ", ".join([*_SHORT, *_BY_FORMAT, "choice", "box"])
    raise ValueError(f"sample {sample.id} is scored by {sample.scoring!r}; the rules that corelens has are {known}.")


def _box(sample: Sample, said: str, unit: BoxUnit | None) -> float | None:
    if unit is None:
        raise ValueError(
            f"sample {sample.id} asks for a box: say in which unit the model answers, by box_unit='pixels', "
            f"'thousandths', 'fractions' or the size of the picture as the model sees it. {see('box-unit')}"
        )
    (evidence,) = sample.evidence
    assert evidence.box is not None  # what readers promise with this rule
    size = load_picture(sample.images[evidence.media]).size
    return box_hit(said, evidence.box, size, unit)


@dataclass(frozen=True)
class Tally:
    """What many scores come to."""

    mean: float
    """Over all answers, those that cannot be read counting as 0."""

    n: int
    n_unreadable: int


def tally(scores: Iterable[float | None]) -> Tally:
    """The mean of some scores, and how many answers could not be read.

    Raises:
        ValueError: If there is no score.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("there are no scores.")
    return Tally(sum(one or 0.0 for one in scores) / len(scores), len(scores), scores.count(None))
