"""Questions about pictures, for tests. corelens is imported within: the shape checks must be in place first."""

from typing import Any

import numpy as np
from PIL import Image

from corelens import Box, Evidence, Sample


def samples(n: int = 5) -> list[Any]:
    """Pictures of different sizes, questions and answers of different lengths, one or two regions of evidence."""
    made = []
    for index in range(n):
        width, height = (112, 96) if index % 2 else (97, 100)
        picture = Image.fromarray(np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8))
        boxes = [Box(30, 30, 60, 50), Box(20, 60, 50, 90)][: 1 + index % 2]
        question = "Which digit is red?" if index % 3 else "What colour is the 7, and what else is there?"
        answer = ("7", "it is red", "the red one is the 7")[index % 3]
        made.append(Sample(f"s{index}", question, answer, (picture,), tuple(Evidence(box) for box in boxes)))
    return made
