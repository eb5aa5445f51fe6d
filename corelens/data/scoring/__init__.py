"""The rule that a sample names, and the mean of many scores."""

from collections.abc import Iterable
from dataclasses import dataclass

from corelens.data.sample import Sample
from corelens.data.scoring.boxes import BoxUnit as BoxUnit
from corelens.data.scoring.boxes import box_hit as box_hit
from corelens.data.scoring.boxes import iou as iou
from corelens.data.scoring.boxes import parse_box as parse_box
from corelens.data.scoring.documents import f1_of_answerable as f1_of_answerable
from corelens.data.scoring.documents import mmlongbench_doc as mmlongbench_doc
from corelens.data.scoring.documents import mmlongbench_docqa as mmlongbench_docqa
from corelens.data.scoring.rules import anls as anls
from corelens.data.scoring.rules import choice as choice
from corelens.data.scoring.rules import contains as contains
from corelens.data.scoring.rules import count as count
from corelens.data.scoring.rules import exact as exact
from corelens.data.scoring.rules import label as label
from corelens.data.scoring.rules import numeric as numeric
from corelens.data.scoring.rules import yes_no as yes_no
from corelens.errors import docs_link
from corelens.inputs.media import load_picture

_SHORT = {
    "exact": exact,
    "contains": contains,
    "anls": anls,
    "numeric": numeric,
    "yes-no": yes_no,
    "count": count,
    "label": label,
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
        return choice(said, sample.choices, sample.answer)
    if sample.scoring == "box":
        return _box(sample, said, box_unit)
    known = ", ".join([*_SHORT, *_BY_FORMAT, "choice", "box"])
    raise ValueError(f"sample {sample.id} is scored by {sample.scoring!r}; the rules that corelens has are {known}.")


def _box(sample: Sample, said: str, unit: BoxUnit | None) -> float | None:
    if unit is None:
        raise ValueError(
            f"sample {sample.id} asks for a box: say in which unit the model answers, by box_unit='pixels', "
            f"'thousandths', 'fractions' or the size of the picture as the model sees it. {docs_link('box-unit')}"
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
