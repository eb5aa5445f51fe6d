"""Questions about pictures, for tests."""

from corelens import Box, Evidence, Sample
from tests.helpers.pictures import random_picture


def samples(n: int = 5) -> list[Sample]:
    """Pictures of different sizes, questions and answers of different lengths, one or two regions of evidence."""
    result = []
    for index in range(n):
        picture = random_picture((112, 96) if index % 2 else (97, 100), index)
        boxes = [Box(30, 30, 60, 50), Box(20, 60, 50, 90)][: 1 + index % 2]
        question = "Which digit is red?" if index % 3 else "What colour is the 7, and what else is there?"
        answer = ("7", "it is red", "the red one is the 7")[index % 3]
        result.append(Sample(f"s{index}", question, answer, (picture,), tuple(Evidence(box) for box in boxes)))
    return result
