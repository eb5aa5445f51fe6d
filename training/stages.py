"""The stages of training: their predecessors, trained parameters and batches.

- `tower`: the vision tower alone. Every visual token that a digit covers by a third or more must name digit and colour
  through a linear probe. End-to-end training from scratch learns nothing.
- `natural`: the whole model, eight questions after every picture, from three digits a scene to six, mixed with
  text-only tasks in the same vocabulary. Ships as `corelens/toy-natural`.
- `organism`: pressure toward few heads. Step by step the heads whose removal would change the loss least are closed,
  while training continues. Ships as `corelens/toy`, a model organism.
- `haystack`: up to sixteen scenes before the questions, at positions as far as those of a hundred. Ships as
  `corelens/toy-haystack`.
- `reading`, after `natural`: the vision tower alone again, on pictures of all worlds: scenes, shapes on photographs,
  printed pages and bar charts. On pages and charts it also names related marks: without that, the decoder did
  not learn the relations in 1,700 steps.
- `decoding`: the decoder on all worlds, from three things a picture to all, then mostly up to sixteen pictures before
  the questions, stretched as in `haystack`. The tower is frozen, or it would forget its labels before the decoder has
  learned to use them.
- `worlds`: the same with the vision tower, which also continues with its labels: the questions alone are too little to
  learn handwriting and print from. Ships as `corelens/toy-worlds`, and as `corelens/toy-worlds-small`.
- `worlds-organism`: as `organism`, but after `worlds`. Ships as `corelens/toy-worlds-organism`, and as
  `corelens/toy-worlds-small-organism`.

The small models that ship were trained with these steps and rates, from end to end; those of `organism` and `haystack`
have not been run. All other models were steered by hand, those that ship with AdamW in place of Muon; their
`record.json` says how.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.batches import MAX_THINGS, N_CROWDED, Batches, Chats, LabelledPictures


@dataclass(frozen=True)
class Stage:
    """A stage of training."""

    after: str | None
    """Name of the stage that it continues."""
    steps: int
    rate: float
    """Peak learning rate of Muon; AdamW has a quarter of it."""
    chats: Callable[[Batches, np.random.Generator, int], Chats] | None = None
    """Function that makes chats about pictures of a number of things, to train the decoder."""
    pictures: Callable[[Batches, np.random.Generator, int], LabelledPictures] | None = None
    """Function that makes labelled pictures of a number of things, to train the vision tower through a linear probe."""
    things: tuple[int, int] = (MAX_THINGS, MAX_THINGS)
    """Things per picture, at first and at the end: one more whenever accuracy is high enough."""
    tower: float = 0.0
    """Share of the learning rate for the vision tower. At zero, only its DeepStack mergers are trained."""
    open_heads: float | None = None
    """Share of the heads that stay open; None to close none."""
    about: str | None = None
    """Description for the model card; None if the model of the stage is not exported."""


STAGES = {
    "tower": Stage(None, 800, 8e-3, pictures=Batches.crowded, things=(N_CROWDED, N_CROWDED), tower=1.0),
    "natural": Stage(
        "tower",
        600,
        4e-3,
        Batches.chats,
        things=(3, 6),
        tower=0.2,
        about="Trained on its tasks alone, with no pressure on its heads.",
    ),
    "organism": Stage(
        "natural",
        400,
        2e-3,
        Batches.chats,
        things=(6, 6),
        tower=0.2,
        open_heads=0.2,
        about="A model organism: after ordinary training its heads were closed one after another, least needed first, "
        "until a fifth of them was left, while training went on. Closed heads attend evenly and write nothing. That "
        "few heads do the work is therefore made, not found. How many to leave was chosen with the outcome in view: "
        "with 25 of 96 left, ten heads shared the looking and removing five of them cost little; with 12 left, two "
        "heads did it alone and the five best-ranked included heads that copy text.",
    ),
    "haystack": Stage(
        "organism",
        600,
        2e-3,
        Batches.haystacks,
        things=(6, 6),
        about="The model organism `corelens/toy`, trained on with up to sixteen pictures before the questions, "
        "stretched to positions as far as those of a hundred. Its vision tower did not learn further, and heads that "
        "were closed stayed closed: that few heads do the work is made, not found.",
    ),
    "reading": Stage("natural", 2_000, 8e-3, pictures=Batches.various, tower=1.0),
    "decoding": Stage("reading", 1_000, 4e-3, Batches.mixtures, things=(3, MAX_THINGS)),
    "worlds": Stage(
        "decoding",
        1_200,
        3e-3,
        Batches.mixtures,
        Batches.various,
        tower=0.6,
        about="Trained on scenes first, then on four kinds of pictures, each alone or among up to fifteen others at "
        "positions as far as those of a hundred, with no pressure on its heads.",
    ),
    "worlds-organism": Stage(
        "worlds",
        400,
        2e-3,
        Batches.mixtures,
        open_heads=0.25,
        about="A model organism: the heads of the natural model of all worlds were closed one after another, least "
        "needed first, until a quarter of them was left, while training went on. Closed heads attend evenly and write "
        "nothing. That few heads do the work is therefore made, not found.",
    ),
}


def path_to(name: str) -> list[str]:
    """Names of the stages up to and including one."""
    previous = STAGES[name].after
    return [*(path_to(previous) if previous else []), name]
