"""A picture with everything that can be asked about it."""

from dataclasses import dataclass

from PIL import Image

from corelens.tokens import Box


@dataclass(frozen=True)
class Question:
    """A question about a picture, in English."""

    text: str
    answer: str
    box: Box
    """Place of the answer, in pixels."""
    task: str
    """Name of the kind of question."""


@dataclass(frozen=True)
class LabelledBox:
    """A part of a picture and the words for it, by which the vision tower learns."""

    words: tuple[str, ...]
    """Up to three: the name, and the colour or the marks that it belongs to."""
    box: Box


@dataclass(frozen=True)
class QuestionedPicture:
    """A picture, its questions and its labels."""

    picture: Image.Image
    questions: tuple[Question, ...]
    labels: tuple[LabelledBox, ...]
