"""Small pictures that are asked about in plain English, and written lists.

For the model on SmolLM2-135M-Instruct that `training.smol` makes, and for any real one. Each function returns samples,
as in `cl.smol.pictures("emoji", 100, seed=0)`.

| world | a picture shows | questions ask for |
|---|---|---|
| `emoji` | six things in coloured frames, each beside a number | number, thing, colour of the frame, neighbour |
| `digits` | two to six tinted handwritten digits | the digit of a colour, the colour of a digit |
| `shapes` | coloured shapes pasted into photographs | the shape of a colour, the colour of a shape |
| `pages` | printed fields and a small table | a value, or the field that has it |
| `bars` | a bar chart of some days | the height of a day, the day of a height |

`split="train"` and `split="test"` share no drawing of an emoji, no digit image, no photograph region, no font and no
layout, and in emoji scenes no pair of a thing and its number.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from corelens.data.readers.base import Samples
from corelens.data.sample import Evidence, Sample
from corelens.data.synthetic.drawing import drawn_samples
from corelens.errors import check_choice
from corelens.hf.smol import SHIPPED_PARTS, joined_weights, processor
from corelens.hf.smollm2 import load_language
from corelens.model import HookedMLLM
from corelens.smol.texts import draw_list
from corelens.smol.worlds import ENGLISH_WORLDS as ENGLISH_WORLDS
from corelens.toy.scene import Split


def pictures(world: str, n: int, seed: int, split: Split = "test", tasks: Sequence[str] = ()) -> Samples:
    """Draw `n` pictures of a world with one question each. The evidence is the place where the answer is seen.

    Args:
        world: A name of `ENGLISH_WORLDS`.
        n: Number of samples.
        seed: Seed of all random draws; sample i depends on it and i alone.
        split: Split of all that pictures are made of.
        tasks: What questions may ask for, such as `number` and `colour` of emoji; empty for everything.
    """
    check_choice("world", world, ENGLISH_WORLDS)
    # Every picture of a world has questions of all kinds.
    known = {question.task for question in ENGLISH_WORLDS[world](np.random.default_rng(0), "test").questions}
    for task in tasks:
        check_choice("task", task, sorted(known))

    def sample(seed: int, index: int) -> Sample:
        rng = np.random.default_rng([seed, index])
        drawn = ENGLISH_WORLDS[world](rng, split)
        asked = [question for question in drawn.questions if not tasks or question.task in tasks]
        question = asked[rng.integers(len(asked))]
        return Sample(
            f"{world}-{split}-{seed}-{index}",
            question.text,
            question.answer,
            (drawn.picture,),
            (Evidence(question.box),),
            scoring="exact",
            about={"task": question.task},
        )

    return drawn_samples(f"smol-{world}", n, seed, sample)


def lists(n: int, seed: int) -> Samples:
    """Draw `n` questions about a written list of six pairs: the same task without a picture.

    Args:
        n: Number of samples.
        seed: Seed of all random draws; sample i depends on it and i alone.
    """

    def sample(seed: int, index: int) -> Sample:
        rng = np.random.default_rng([seed, index])
        text, questions = draw_list(rng)
        question = questions[rng.integers(len(questions))]
        return Sample(
            f"list-{seed}-{index}",
            question.text,
            question.answer,
            prompt=(f"{text}\n{question.text}",),
            scoring="exact",
            about={"task": question.task},
        )

    return drawn_samples("smol-lists", n, seed, sample)


def before_training() -> HookedMLLM:
    """Load `corelens/smol` as it was before its training: the language model as published, and a random vision tower.

    Raises:
        ModuleNotFoundError: If the language model is not installed.
    """
    _, weights, tokenizer = load_language()
    torch.manual_seed(0)
    model: Any = Idefics3ForConditionalGeneration(Idefics3Config.from_pretrained(SHIPPED_PARTS))
    model.load_state_dict(joined_weights(weights, {}), strict=False)
    model.tie_weights()
    return HookedMLLM(model.eval(), processor(tokenizer))


SAMPLES: dict[str, Callable[[int, int], Samples]] = {
    f"smol-{world}": partial(pictures, world) for world in ENGLISH_WORLDS
}
"""Functions from a number of samples and a seed to samples, by their names on the command line."""
