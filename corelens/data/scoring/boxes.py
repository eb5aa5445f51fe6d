"""Boxes in answers."""

import re
from typing import Literal

from corelens.data.scoring.rules import UNSIGNED, plain_minus
from corelens.tokens import Box

BoxUnit = Literal["pixels", "thousandths", "fractions"] | tuple[int, int]
"""Unit of the boxes in a model's answers: `pixels` of the original picture; `thousandths` of its width and height
(Qwen-VL, Qwen2-VL, Qwen3-VL, InternVL); `fractions` of them (LLaVA); or width and height of the resized picture, for
models that answer in its pixels (Qwen2.5-VL)."""

_NUMBER = rf"(?<![\w.])-?{UNSIGNED}"
_RUN = re.compile(rf"{_NUMBER}(?:[\s,()\[\]]+{_NUMBER})*")
_IN_BRACKETS = re.compile(rf"[\[(]\s*{_NUMBER}(?:\s*[\s,]\s*{_NUMBER}){{3}}\s*[\])]")


def parse_box(prediction: str, size: tuple[int, int], unit: BoxUnit) -> Box | None:
    """Parse the first four numbers of an answer that stand together as a box in pixels of a picture of the given size.

    They are in one pair of brackets, or there are no more with only commas, space and brackets between them:
    `[1, 2, 3, 4]`, `<box>(1,2),(3,4)</box>`, `{"bbox_2d": [1, 2, 3, 4]}`, `<box>[[1, 2, 3, 4]]</box>`.

    Returns:
        None if there are no such four numbers, they have no area, or they do not fit the unit.
    """
    frames = {"pixels": size, "thousandths": (1000, 1000), "fractions": (1, 1)}
    if isinstance(unit, str) and unit not in frames:
        raise ValueError(f"unit={unit!r} is not known; it is one of {', '.join(frames)}, or a (width, height).")
    prediction = plain_minus(prediction)
    runs = sorted([*_IN_BRACKETS.finditer(prediction), *_RUN.finditer(prediction)], key=re.Match.start)
    numbers = [[float(number) for number in re.findall(_NUMBER, run[0])] for run in runs]
    if not (fours := [four for four in numbers if len(four) == 4]):
        return None
    left, top, right, bottom = fours[0]
    width, height = frames[unit] if isinstance(unit, str) else unit
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        return None
    x, y = size[0] / width, size[1] / height
    return Box(left * x, top * y, right * x, bottom * y)


def iou(first: Box, second: Box) -> float:
    """Area of the intersection divided by the area of the union."""
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    intersection = max(0.0, width) * max(0.0, height)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (first, second)]
    return intersection / (sum(areas) - intersection)


def box_hit(prediction: str, box: Box, size: tuple[int, int], unit: BoxUnit, threshold: float = 0.5) -> float | None:
    """Return 1 if the box in the answer has an IoU of at least `threshold` with the correct one; None without a box.

    Source:
        Acc@0.5 of RefCOCOg. lmms-eval reads only `[x, y, x, y]` in fractions and counts unreadable answers as wrong.
    """
    predicted = parse_box(prediction, size, unit)
    return None if predicted is None else float(iou(predicted, box) >= threshold)
