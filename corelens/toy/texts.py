"""Tasks without a picture: the control that tells "cannot see" from "cannot answer"."""

import numpy as np

from corelens.toy import digits
from corelens.toy.scene import COLOURS, DIGITS

TEXT_TASKS = ("copy", "recall", "sum")


def ask_text(rng: np.random.Generator, task: str) -> tuple[str, str]:
    """A question that needs no picture, and its answer, in the same vocabulary as the visual ones."""
    if task == "sum":
        total = int(rng.integers(10))
        first = int(rng.integers(total + 1))
        return f"what is {first} plus {total - first} ?", str(total)
    pairs = draw_pairs(rng)
    if task == "copy":
        words = " ".join(say_pairs(pairs).split()[: int(rng.integers(2, 7))])
        return f"copy {words}", words
    if task == "recall":
        question, answer = ask_pairs(rng, pairs)
        return f"{say_pairs(pairs)} . {question}", answer
    raise ValueError(f"{task!r} is not a text task; the text tasks are {', '.join(TEXT_TASKS)}.")


def draw_pairs(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Two to four colours, each with a digit: a scene in words."""
    n = int(rng.integers(2, 5))
    chosen = rng.choice(DIGITS, n, replace=False)
    colours = rng.choice(tuple(COLOURS), n, replace=False)
    return [(str(colour), str(digit)) for colour, digit in zip(colours, chosen, strict=True)]


def say_pairs(pairs: list[tuple[str, str]]) -> str:
    return " ".join(f"{colour} {digit}" for colour, digit in pairs)


def ask_pairs(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> tuple[str, str]:
    """A question about one pair, in the words of the questions about scenes, and its answer."""
    return digits.WORLD.ask(rng, *pairs[rng.integers(len(pairs))])
