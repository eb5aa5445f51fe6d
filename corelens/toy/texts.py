"""Tasks without a picture: the control that tells "cannot see" from "cannot answer"."""

import numpy as np

from corelens.errors import check_choice
from corelens.toy import digits
from corelens.toy.scene import COLOURS, DIGITS

TEXT_TASKS = ("copy", "recall", "sum")


def draw_text_question(rng: np.random.Generator, task: str) -> tuple[str, str]:
    """Draw a question that needs no picture, with its answer, in the vocabulary of the visual questions."""
    check_choice("task", task, TEXT_TASKS)
    if task == "sum":
        total = int(rng.integers(10))
        first = int(rng.integers(total + 1))
        return f"what is {first} plus {total - first} ?", str(total)
    pairs = draw_pairs(rng)
    if task == "copy":
        words = " ".join(pairs_text(pairs).split()[: int(rng.integers(2, 7))])
        return f"copy {words}", words
    question, answer = draw_pair_question(rng, pairs)
    return f"{pairs_text(pairs)} . {question}", answer


def draw_pairs(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draw two to four colours, each with a digit: a scene in words."""
    n = int(rng.integers(2, 5))
    values = rng.choice(DIGITS, n, replace=False)
    colours = rng.choice(tuple(COLOURS), n, replace=False)
    return [(str(colour), str(digit)) for colour, digit in zip(colours, values, strict=True)]


def pairs_text(pairs: list[tuple[str, str]]) -> str:
    """Colours and digits as a list of words."""
    return " ".join(f"{colour} {digit}" for colour, digit in pairs)


def draw_pair_question(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> tuple[str, str]:
    """Draw a question about one pair, in the words of the questions about scenes, with its answer."""
    return digits.WORLD.ask(rng, *pairs[rng.integers(len(pairs))])
