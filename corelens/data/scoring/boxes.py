"""Boxes in answers."""

import re
from typing import Literal

from corelens.tokens import Box

BoxUnit = Literal["pixels", "thousandths", "fractions"] | tuple[int, int]
"""In which unit a model says boxes. `pixels` of the original picture; `thousandths` of its width and height (Qwen-VL,
Qwen2-VL, Qwen3-VL, InternVL); `fractions` of them (LLaVA); or width and height of the picture as the processor resized
it, for models that count the pixels of that (Qwen2.5-VL)."""

_NUMBER = r"(-?\d+(?:\.\d+)?)"
_BOX = re.compile(r"[\s,()\[\]]+".join([_NUMBER] * 4))


def parse_box(said: str, size: tuple[int, int], unit: BoxUnit) -> Box | None:
    """The first four numbers in a row that were said, as a box in pixels of a picture of some size.

    Between them there may be commas, space and brackets: `[1, 2, 3, 4]`, `<box>(1,2),(3,4)</box>`,
    `{"bbox_2d": [1, 2, 3, 4]}`, `<box>[[1, 2, 3, 4]]</box>`.

    Returns:
        None if there are no four numbers, they span no area, or they do not fit the unit.
    """
    frames = {"pixels": size, "thousandths": (1000, 1000), "fractions": (1, 1)}
    if isinstance(unit, str) and unit not in frames:
        raise ValueError(f"unit={unit!r} is not known; boxes come in {', '.join(frames)} or a (width, height).")
    match = _BOX.search(said)
    if match is None:
        return None
    left, top, right, bottom = map(float, match.groups())
    width, height = frames[unit] if isinstance(unit, str) else unit
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        return None
    x, y = size[0] / width, size[1] / height
    return Box(left * x, top * y, right * x, bottom * y)


def iou(one: Box, other: Box) -> float:
    """Area of the intersection as a share of the area of the union."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    both = max(0.0, width) * max(0.0, height)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (one, other)]
    return both / (sum(areas) - both)


def box_hit(said: str, box: Box, size: tuple[int, int], unit: BoxUnit, threshold: float = 0.5) -> float | None:
    """One if the box that was said overlaps the right one with an IoU of at least `threshold`; None without a box.

    Source:
        Acc@0.5 of RefCOCOg. lmms-eval reads only `[x, y, x, y]` in fractions and counts what it cannot read as wrong.
    """
    found = parse_box(said, size, unit)
    return None if found is None else float(iou(found, box) >= threshold)
