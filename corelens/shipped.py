"""Questions for the models that come with corelens: each knows its own pictures and words."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from corelens import smol, toy
from corelens.data.sample import Sample
from corelens.hf.loading import checkpoint_folder

Draw = Callable[[int, int], Iterable[Sample]]
"""Function from a number of samples and a seed to samples."""


@dataclass(frozen=True)
class DemoSizes:
    """Numbers of samples, heads and draws of the demo: as many as some minutes on two cores allow."""

    scanned: int
    """Pictures whose scores rank the heads, of both tasks together."""
    tested: int
    """Other pictures, on which sets of heads are ablated."""
    texts: int
    """Questions of every text-only task, the control for "cannot answer"."""
    draws: int
    """Draws of write-matched heads for each set."""
    share: float
    """Share of all heads that is ablated."""


@dataclass(frozen=True)
class Questions:
    """Questions that a shipped model was trained on, on unseen pictures."""

    pictures: Draw
    """Questions about everything that it knows to see."""
    code: str
    """The call that draws them, with places for number and seed."""
    two_tasks: Draw
    """Questions of two kinds about the same pictures."""
    tasks: tuple[str, str]
    """The two kinds."""
    described: str
    texts: Mapping[str, Draw]
    """Questions without a picture, by task."""
    sizes: DemoSizes


_TOY = Questions(
    pictures=toy.scenes,
    code="cl.toy.scenes({}, seed={})",
    two_tasks=toy.scenes,
    tasks=("digit", "colour"),
    described="scenes of six handwritten digits, test split",
    texts={task: partial(toy.texts, task=task) for task in toy.TEXT_TASKS},
    sizes=DemoSizes(scanned=200, tested=200, texts=100, draws=20, share=0.1),
)
_WORLDS = Questions(
    pictures=partial(toy.mixtures, n_pictures=1),
    code="cl.toy.mixtures({}, seed={}, n_pictures=1)",
    two_tasks=_TOY.two_tasks,
    tasks=_TOY.tasks,
    described=_TOY.described,
    texts=_TOY.texts,
    sizes=_TOY.sizes,
)
_SMOL = Questions(
    pictures=partial(smol.pictures, "emoji"),
    code="cl.smol.pictures('emoji', {}, seed={})",
    two_tasks=partial(smol.pictures, "digits"),
    tasks=_TOY.tasks,
    described="scenes of two to six handwritten digits, test split",
    texts={"list": smol.lists},
    sizes=DemoSizes(scanned=100, tested=60, texts=30, draws=5, share=0.05),
)


def questions_for(name: str) -> Questions:
    """Questions for a shipped model, or for a folder of one that `training` made, whose record names them."""
    record = Path(checkpoint_folder(name)) / "record.json"
    if record.is_file() and json.loads(record.read_text()).get("questions") == "smol":
        return _SMOL
    return _WORLDS if name.startswith("corelens/toy-worlds") else _TOY
