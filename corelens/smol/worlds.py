"""The five kinds of pictures that the model answers questions about, in plain English."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from corelens.smol import emoji
from corelens.smol.question import LabelledBox, Question, QuestionedPicture
from corelens.toy import bars, digits, pages, shapes
from corelens.toy.haystacks import draw_mixture
from corelens.toy.scene import Split, World

_ENGLISH = {
    "digits": replace(
        digits.WORLD,
        # Cyan is drawn in the pictures of smaller models only: SmolLM2 has no word of one token for it.
        keys=tuple(key for key in digits.WORLD.keys if key != "cyan"),
        value_question="Which digit is {key}?",
        key_question="What colour is the {value}?",
    ),
    "shapes": replace(
        shapes.WORLD,
        keys=tuple(key for key in shapes.WORLD.keys if key != "cyan"),
        value_question="Which shape is {key}?",
        key_question="What colour is the {value}?",
    ),
    "pages": replace(pages.WORLD, value_question="What is the {key}?", key_question="Which field says {value}?"),
    "bars": replace(
        bars.WORLD,
        value_question="How high is the bar of {key}?",
        key_question="Which day has a bar of height {value}?",
    ),
}


def _draw(world: World, rng: np.random.Generator, split: Split) -> QuestionedPicture:
    """Draw a picture of a toy world, and ask for every value and every key of one word."""
    (scene,) = draw_mixture(rng, (world,), 1, 1, split).scenes
    questions = []
    for thing in scene.things:
        questions.append(Question(world.value_question.format(key=thing.key), thing.value, thing.box, world.value_name))
        if " " not in thing.key:
            asked = world.key_question.format(value=thing.value)
            questions.append(Question(asked, thing.key, thing.box, world.key_name))
    labels = tuple(
        LabelledBox(tuple(word for word in (mark.name, mark.colour, *mark.partners) if word), mark.box)
        for mark in scene.marks
    )
    return QuestionedPicture(scene.image(), tuple(questions), labels)


ENGLISH_WORLDS: dict[str, Callable[[np.random.Generator, Split], QuestionedPicture]] = {
    "emoji": emoji.draw,
    **{name: partial(_draw, world) for name, world in _ENGLISH.items()},
}
"""Functions that draw a picture of a world with its questions, by name."""
