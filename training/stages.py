"""The stages of training: what each continues from, what learns in it, and on which batches.

- `tower`: the vision tower alone. Every visual token that a digit covers by a third or more must name digit and colour
  through a throw-away linear head. From scratch and end to end, nothing is learned.
- `natural`: the whole model, eight questions behind every picture, from three digits a scene to six, mixed with
  text-only tasks in the same vocabulary. Ships as `corelens/toy-natural`.
- `organism`: pressure toward few heads. Step by step the heads whose removal would change the loss least are closed,
  while training goes on. Ships as `corelens/toy`, a model organism.
- `haystack`: up to sixteen scenes before the questions, at positions as far as those of a hundred. Ships as
  `corelens/toy-haystack`.
- `reading`, after `natural`: the vision tower alone again, on pictures of all worlds: scenes, shapes on photographs,
  printed pages and bar charts. Of pages and charts it must also say what belongs to what: without that, the decoder
  did not find it out in 1,700 steps.
- `decoding`: the decoder on all worlds, from three things a picture to all, then mostly up to sixteen pictures before
  the questions, stretched as in `haystack`. What the tower was taught to say would be forgotten before the decoder has
  learned to listen, so it stays as it is.
- `worlds`: the same with the vision tower, which also goes on naming what it sees: what the questions ask for is too
  little to learn handwriting and print from. Ships as `corelens/toy-worlds`, and as `corelens/toy-worlds-small`.
- `worlds-organism`: to `worlds` what `organism` is to `natural`. Ships as `corelens/toy-worlds-organism`, and as
  `corelens/toy-worlds-small-organism`.

With these steps and rates the small models that ship were made, from end to end; those of `organism` and `haystack`
nobody has run. All other models were steered by hand, those that ship with AdamW in place of Muon; their `record.json`
says how.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.batches import CROWD, MOST, Batches, Chats, Shown


@dataclass(frozen=True)
class Stage:
    """One stage."""

    after: str | None
    """The stage whose end it begins from."""
    steps: int
    rate: float
    """Learning rate at its peak, of what Muon trains; a quarter of it for the rest."""
    chats: Callable[[Batches, np.random.Generator, int], Chats] | None = None
    """Makes chats, about pictures that show so many things, for the decoder to learn from."""
    pictures: Callable[[Batches, np.random.Generator, int], Shown] | None = None
    """Makes pictures that the vision tower learns to name the marks of, through a head that is thrown away."""
    things: tuple[int, int] = (MOST, MOST)
    """Things a picture, at first and in the end: one more whenever the last questions were answered well enough."""
    tower: float = 0.0
    """Share of the rate at which the vision tower learns. At none, only what DeepStack adds to its tokens does."""
    open_heads: float | None = None
    """Share of its heads that is left to an organism."""
    about: str | None = None
    """Of the model that it ends in, where that is kept: how it came to be."""


STAGES = {
    "tower": Stage(None, 800, 8e-3, pictures=Batches.crowded, things=(CROWD, CROWD), tower=1.0),
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
    "decoding": Stage("reading", 1_000, 4e-3, Batches.mixtures, things=(3, MOST)),
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


def way_to(name: str) -> list[str]:
    """The stages that lead to one, itself the last."""
    before = STAGES[name].after
    return [*(way_to(before) if before else []), name]
