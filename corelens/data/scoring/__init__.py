"""The rule that a sample names, and the mean of many scores."""

from collections.abc import Iterable, Mapping
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
from corelens.data.scoring.rules import phrase as phrase
from corelens.data.scoring.rules import yes_no as yes_no
from corelens.errors import docs_link
from corelens.inputs.media import load_picture

_RULES = {
    "exact": exact,
    "phrase": phrase,
    "contains": contains,
    "anls": anls,
    "numeric": numeric,
    "yes-no": yes_no,
    "count": count,
    "label": label,
}
_FORMAT_RULES = {"mmlongbench-doc": mmlongbench_doc, "mmlongbench-docqa": mmlongbench_docqa}


def score(sample: Sample, prediction: str, box_unit: BoxUnit | None = None) -> float | None:
    """Score an answer to a sample by the rule that `sample.scoring` names.

    Args:
        sample: The sample.
        prediction: The model's answer.
        box_unit: Unit of the boxes in the model's answers; needed for samples that ask for a box.

    Returns:
        From 0 to 1, or None if the answer is unreadable; `tally` counts these as wrong, and separately.

    Raises:
        ValueError: If the answer is a box and there is no unit, or no rule can score it.
    """
    if sample.scoring in _RULES:
        return _RULES[sample.scoring](prediction, sample.answers)
    if sample.scoring in _FORMAT_RULES:
        return _FORMAT_RULES[sample.scoring](prediction, sample.answer, sample.about["answer format"])
    if sample.scoring == "choice":
        return choice(prediction, sample.choices, sample.answer)
    if sample.scoring == "box":
        return _box(sample, prediction, box_unit)
    known = ", ".join([*_RULES, *_FORMAT_RULES, "choice", "box"])
    raise ValueError(f"sample {sample.id} is scored by {sample.scoring!r}; the rules of corelens are {known}.")


def _box(sample: Sample, prediction: str, unit: BoxUnit | None) -> float | None:
    if unit is None:
        raise ValueError(
            f"sample {sample.id} asks for a box: state the unit of the model's boxes, by box_unit='pixels', "
            f"'thousandths', 'fractions' or the size of the processed picture. {docs_link('box-unit')}"
        )
    (evidence,) = sample.evidence
    assert evidence.box is not None  # guaranteed by readers that use this rule
    size = load_picture(sample.images[evidence.media]).size
    return box_hit(prediction, evidence.box, size, unit)


@dataclass(frozen=True)
class Tally:
    """Mean of many scores."""

    mean: float
    """Over all answers; unreadable ones count as 0."""

    n: int
    n_unreadable: int


def tally(scores: Iterable[float | None]) -> Tally:
    """Compute the mean of scores and the number of unreadable answers.

    Raises:
        ValueError: If there is no score.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("there are no scores.")
    return Tally(sum(value or 0.0 for value in scores) / len(scores), len(scores), scores.count(None))


def tally_by(key: str, samples: Iterable[Sample], scores: Iterable[float | None]) -> Mapping[str, Tally]:
    """Compute a `tally` for each group of samples, such as the tasks of MLVU and VideoMME.

    Args:
        key: The entry of `Sample.about` that names a sample's group, such as `task`.
        samples: The samples.
        scores: Their scores, in the same order.

    Returns:
        By group, in the order of the samples.

    Raises:
        ValueError: If there are more or fewer scores than samples, or a sample is `about` nothing of this name.
    """
    groups: dict[str, list[float | None]] = {}
    for sample, value in zip(samples, scores, strict=True):
        if key not in sample.about:
            raise ValueError(f"sample {sample.id} has no {key!r}; it is about {', '.join(sample.about) or 'nothing'}.")
        groups.setdefault(str(sample.about[key]), []).append(value)
    return {group: tally(values) for group, values in groups.items()}
