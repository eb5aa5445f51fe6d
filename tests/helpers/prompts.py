"""Tiny models of the families that are checked in depth, and prompts about random pictures."""

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
from PIL import Image

from corelens import HookedMLLM, append_answers
from corelens.inputs.prepare import PreparedInputs
from tests.helpers import processors, tiny
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.questions import samples

QUESTION = "Which digit is red?"
LONG_QUESTION = "What colour is the 7, and what is the digit that is between all others?"


def family_model(name: str) -> HookedMLLM:
    """A tiny model with its processor; Gemma 3 with as many visual tokens as its processor writes."""
    gemma3 = ARCHITECTURES["gemma3"]
    fitting = {"vision_config": gemma3.config["vision_config"] | {"image_size": 112}, "mm_tokens_per_image": 16}
    with patch.dict(ARCHITECTURES, gemma3=replace(gemma3, config=gemma3.config | fitting)):
        return HookedMLLM(tiny.build(name), processors.build(name))


def random_picture(seed: int, size: tuple[int, int] = (112, 96)) -> Image.Image:
    """Random pixels; the size is (width, height)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def uneven_picture(seed: int) -> Image.Image:
    """Pictures of different sizes, so that models whose pictures have as many tokens as pixels pad some."""
    return random_picture(seed, (112 - 56 * seed, 96))


def two_prompts(model: HookedMLLM, questions: Sequence[str] = (QUESTION, QUESTION)) -> PreparedInputs:
    """Questions about two pictures of different sizes."""
    return model.prepare([uneven_picture(seed) for seed in range(2)], list(questions))


def answered_prompts(model: HookedMLLM) -> PreparedInputs:
    """The same with answers of different lengths appended."""
    return append_answers(model, two_prompts(model), ["seven", "It is blue and red"])


def sample_prompts(model: HookedMLLM) -> PreparedInputs:
    """Two samples of `questions.samples`, whose questions have different lengths."""
    return model.prepare([list(sample.images) for sample in samples(2)], [sample.question for sample in samples(2)])
