"""One question with its pictures or videos, its answer and its evidence: the one form that all data sets take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from corelens.errors import docs_link
from corelens.inputs.media import Footage, Picture, load_picture
from corelens.tokens import Box, BoxRule, TokenMap, Views


@dataclass(frozen=True)
class Evidence:
    """A region that holds what the question asks for."""

    box: Box | None = None
    """In pixels of the original picture or video; None for all of it."""

    media: int = 0
    """Which of the sample's media: pictures and videos are counted together, from zero, in the order of the prompt."""

    seconds: tuple[float | int, float | int] | None = None
    """Of a video, when: from and to, in seconds; None for all of it, and for pictures."""

    weight: float | int = 1.0
    """How much of the evidence this region is, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight={self.weight} is outside (0, 1]; leave evidence out instead of weighing it zero.")
        if self.media < 0:
            raise ValueError(f"media={self.media} is negative; media are counted from zero.")
        if self.seconds is not None and not 0 <= self.seconds[0] < self.seconds[1]:
            raise ValueError(f"seconds={self.seconds} is no time: it needs 0 <= from < to.")


@dataclass(frozen=True)
class Sample:
    """One question about some pictures or videos, or about none.

    Pictures and videos may be paths, or functions that return a picture; they are read when the sample is prepared, so
    thousands of samples take little memory.
    """

    id: str
    question: str
    answer: str
    images: tuple[Picture, ...] = ()
    """Pictures, paths to them or functions that return them, in the order in which they precede the question."""

    evidence: tuple[Evidence, ...] = ()
    videos: tuple[Footage, ...] = ()
    """`corelens.Video`s, or paths to files. They come after the pictures, before the question."""

    prompt: tuple[str | int, ...] = ()
    """The whole user message, where media do not simply precede the question: texts, and media by their number, each
    once and in order. It contains the question. All of its text counts as the question's tokens."""

    choices: tuple[str, ...] = ()
    """The options of a multiple-choice question, in order; `answer` is one of them."""

    also_accepted: tuple[str, ...] = ()
    """Other answers that are as right as `answer`."""

    scoring: str = "exact"
    """Which rule of `corelens.data.score` judges an answer."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """What else the data set says: domain, task, document, pages and the like."""

    def __post_init__(self) -> None:
        n_media = len(self.images) + len(self.videos)
        placed = [part for part in self.prompt if isinstance(part, int)]
        if self.prompt and placed != list(range(n_media)):
            raise ValueError(f"sample {self.id}: the prompt places media {placed}, and there are {n_media}, in order.")
        if beyond := [region.media for region in self.evidence if region.media >= n_media]:
            raise ValueError(f"sample {self.id}: evidence is in media {beyond}, and there are {n_media}.")

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer that is right."""
        return (self.answer, *self.also_accepted)

    @property
    def pictures(self) -> list[Image.Image]:
        """The pictures themselves, read now."""
        return [load_picture(picture) for picture in self.images]

    @property
    def chat(self) -> str | list[dict[str, Any]]:
        """What `HookedMLLM.prepare` takes as the question."""
        if not self.prompt:
            return self.question
        kinds = ["image"] * len(self.images) + ["video"] * len(self.videos)
        parts = [
            {"type": kinds[part]} if isinstance(part, int) else {"type": "text", "text": part} for part in self.prompt
        ]
        return [{"role": "user", "content": parts}]


def evidence_tokens(
    samples: Sequence[Sample], tokens: TokenMap, rule: BoxRule = "overlap", views: Views = "all"
) -> Bool[Tensor, "batch position"] | Float[Tensor, "batch position"]:
    """Which visual tokens hold the evidence of each sample of a batch, all of its regions together.

    A token that several regions cover counts with the largest cover times weight, not with their sum. Of evidence that
    moves through a video, a token gets the regions of all frames that its view stands for, sampled or not.

    Args:
        samples: The samples of the batch.
        tokens: The map of their prepared inputs.
        rule: How pixels become tokens; see `TokenMap.in_box`. All of a picture are all of its visual tokens.
        views: Which views of a picture hold its evidence; see `TokenMap.in_box`.

    Returns:
        Booleans, or numbers in [0, 1] if the rule is `fraction` or some evidence has a weight below one.

    Raises:
        ValueError: If a sample has no evidence, a region lies outside its picture or video, or a region or a whole
            course through a video selects no visual token; names the sample.
    """
    rows = [_of_sample(sample, tokens[index], rule, views) for index, sample in enumerate(samples)]
    if all(row.dtype == torch.bool for row in rows):
        return torch.cat(rows)
    return torch.cat([row.float() for row in rows])


def _of_sample(sample: Sample, tokens: TokenMap, rule: BoxRule, views: Views) -> Tensor:
    if not sample.evidence:
        raise ValueError(
            f"sample {sample.id} has no evidence, so nothing can be measured on it. {docs_link('no-evidence')}"
        )
    try:
        # Processors may start to sample a video late: what no view shows is no evidence for the model.
        regions = [_of_region(region, tokens, rule, views) for region in sample.evidence if _shown(region, tokens)]
    except ValueError as cause:
        raise ValueError(f"sample {sample.id}: {cause}") from cause
    if not regions:
        raise ValueError(f"sample {sample.id}: no sampled frame shows its evidence.")
    return reduce(torch.maximum, regions)


def _shown(region: Evidence, tokens: TokenMap) -> bool:
    if region.seconds is None:
        return True
    first = tokens.seconds[tokens.media == region.media, 0]
    return not len(first) or region.seconds[1] > float(first.nan_to_num(0).min())


def _of_region(region: Evidence, tokens: TokenMap, rule: BoxRule, views: Views) -> Tensor:
    if region.box is None and region.seconds is None:
        selected = tokens.media_tokens(region.media, views)
        selected = selected.float() if rule == "fraction" else selected
    else:
        box = region.box or Box(0, 0, *tokens.sizes[0][region.media])
        selected = tokens.in_box(box, rule, region.media, views, region.seconds)
    return selected if region.weight == 1 else selected.float() * region.weight
