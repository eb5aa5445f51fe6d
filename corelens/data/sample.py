"""One question with its pictures, its answer and its evidence."""

from dataclasses import dataclass

from PIL import Image

from corelens.tokens import Box


@dataclass(frozen=True)
class Evidence:
    """A region that holds what the question asks for."""

    box: Box
    """In pixels of the original picture."""

    media: int = 0
    """Which of the sample's pictures, counted from zero."""


@dataclass(frozen=True)
class Sample:
    """One question about some pictures, or about none."""

    id: str
    question: str
    answer: str
    images: tuple[Image.Image | str, ...] = ()
    """Pictures, or paths to them, in the order in which they precede the question."""

    evidence: tuple[Evidence, ...] = ()
