"""Lists of pairs in words, and the questions about them that are also asked about pictures."""

from dataclasses import dataclass

import numpy as np

from corelens.smol.emoji import EMOJI
from corelens.toy.scene import COLOURS, DIGITS

_COLOURS = tuple(name for name in COLOURS if name != "cyan")


@dataclass(frozen=True)
class ListQuestion:
    """A question about a written list."""

    text: str
    answer: str
    task: str


def draw_list(rng: np.random.Generator, n: int = 6) -> tuple[str, list[ListQuestion]]:
    """Draw a list of pairs, and the questions about it.

    Args:
        rng: Source of all random draws.
        n: Number of pairs, at most 7.
    """
    numbers = [str(digit) for digit in rng.permutation(DIGITS)[:n]]
    if rng.random() < 0.5:
        keys, ask_value, ask_key = _COLOURS, "Which digit is {}?", "What colour is the {}?"
        tasks = ("digit", "colour")
    else:
        keys, ask_value, ask_key = EMOJI, "Which number is next to the {}?", "What is next to the number {}?"
        tasks = ("number", "thing by number")
    pairs = list(zip((str(key) for key in rng.permutation(keys)[:n]), numbers, strict=True))
    asked = [ListQuestion(ask_value.format(key), number, tasks[0]) for key, number in pairs]
    asked += [ListQuestion(ask_key.format(number), key, tasks[1]) for key, number in pairs]
    return ", ".join(f"{key} {number}" for key, number in pairs), asked
