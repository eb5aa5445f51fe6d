"""Answers of a model beside what is accepted."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredAnswer:
    """The answer of a model to a sample, and what its rule makes of it."""

    sample: str
    question: str
    accepted: Sequence[str]
    answer: str
    rule: str
    score: float | None
    """From zero to one; None where no answer can be read."""
