"""Boxes in answers."""

import re
from typing import Literal

from corelens.tokens import Box

BoxUnit = Literal["pixels", "thousandths", "fractions"] | tuple[int, int]
"""Unit of the boxes in a model's answers: `pixels` of the original picture; `thousandths` of its width and height
(Qwen-VL, Qwen2-VL, Qwen3-VL, InternVL); `fractions` of them (LLaVA); or width and height of the resized picture, for
models that answer in its pixels (Qwen2.5-VL)."""

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_BOX = re.compile(r"[\s,()\[\]]+".join([_NUMBER] * 4))


def parse_box(prediction: str, size: tuple[int, int], unit: BoxUnit) -> Box | None:
    """Parse the first four consecutive numbers of an answer as a box in pixels of a picture of the given size.

    Between them there may be commas, space and brackets: `[1, 2, 3, 4]`, `<box>(1,2),(3,4)</box>`,
    `{"bbox_2d": [1, 2, 3, 4]}`, `<box>[[1, 2, 3, 4]]</box>`.

    Returns:
        None if there are no four numbers, they have no area, or they do not fit the unit.
    """
    frames = {"pixels": size, "thousandths": (1000, 1000), "fractions": (1, 1)}
    if isinstance(unit, str) and unit not in frames:
        raise ValueError(f"unit={unit!r} is not known; it is one of {', '.join(frames)}, or a (width, height).")
    match = _BOX.search(prediction)
    if match is None:
        return None
    left, top, right, bottom = map(float, match.groups())
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
