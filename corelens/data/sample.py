"""A question with its pictures or videos, its answer and its evidence: the common form of all data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from corelens.errors import docs_link
from corelens.inputs.media import Footage, Picture, load_picture
from corelens.tokens import Box, BoxRule, TokenMap, Views

MEDIUM = "<image>"
"""Text of a picture or video within a question."""

Edges = Sequence[float | int] | Mapping[str, float | int]
"""Left, top, right, bottom in pixels: a `Box`, four numbers, or a dict whose keys say which they are."""

_BOX_KEYS = (("left", "top", "right", "bottom"), ("x1", "y1", "x2", "y2"), ("x", "y", "width", "height"))
"""Keys of a box that is given as a dict."""


@dataclass(frozen=True)
class Evidence:
    """A region that contains the answer to a question."""

    box: Box | None = None
    """In pixels of the original picture or video; None for all of it."""

    media: int = 0
    """Number of the picture or video: both are counted together, from zero, in the order of the prompt."""

    seconds: tuple[float | int, float | int] | None = None
    """Start and end in a video, in seconds; None for all of it, and for pictures."""

    weight: float | int = 1.0
    """Share by which this region counts as evidence, in (0, 1]."""

    def __init__(
        self,
        box: Edges | None = None,
        media: int = 0,
        seconds: tuple[float | int, float | int] | None = None,
        weight: float | int = 1.0,
    ) -> None:
        _set(self, box=None if box is None else _box(box), media=media, seconds=seconds, weight=weight)
        if not 0 < self.weight <= 1:
            raise ValueError(
                f"weight={self.weight} is outside (0, 1]; omit evidence instead of giving it a weight of zero."
            )
        if self.media < 0:
            raise ValueError(f"media={self.media} is negative; media are counted from zero.")
        if self.seconds is not None and not 0 <= self.seconds[0] < self.seconds[1]:
            raise ValueError(f"seconds={self.seconds} is not a time span: it needs 0 <= start < end.")


def _set(frozen: Any, **values: Any) -> None:
    """Set the fields of a frozen record while it is made."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def _box(given: Any) -> Box:
    """The box of four numbers, or of a dict of them."""
    if isinstance(given, Box):
        return given
    corners = _named_corners(given) if isinstance(given, Mapping) else given
    if not _are_corners(corners):
        forms = f", or a dict of {'; '.join(map(', '.join, _BOX_KEYS))}" if isinstance(given, Mapping) else ""
        raise TypeError(
            f"a box is left, top, right and bottom in pixels, as in (10, 20, 60, 40){forms}, not {given!r:.80}."
        )
    return Box(*corners)


def _named_corners(named: Mapping[Any, Any]) -> Any:
    """Left, top, right and bottom of a dict; nothing if its keys do not say which they are."""
    keys = next((keys for keys in _BOX_KEYS if named.keys() == {*keys}), ())
    corners = [named[key] for key in keys]
    if "width" in keys and _are_corners(corners):
        x, y, width, height = corners
        return [x, y, x + width, y + height]
    return corners


def _are_corners(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 4 and all(isinstance(part, float | int) for part in value)


def _regions(given: Any) -> tuple[Evidence, ...]:
    """Evidence that may be one region without a list, and regions that may be boxes."""
    regions = [given] if isinstance(given, Evidence) or not isinstance(given, list | tuple) else given
    regions = [given] if _are_corners(given) else regions
    return tuple(region if isinstance(region, Evidence) else Evidence(_box(region)) for region in regions)


def _media(given: Any, kind: Any, described: str) -> tuple[Any, ...]:
    """Pictures or videos that may be one without a list."""
    media = given if isinstance(given, list | tuple) else (given,)
    if wrong := [type(medium).__name__ for medium in media if not isinstance(medium, kind)]:
        hint = " PIL.Image.fromarray makes a picture of an array." if wrong[0] in ("ndarray", "Tensor") else ""
        raise TypeError(f"{described}, not {wrong[0]}.{hint}")
    return tuple(media)


@dataclass(frozen=True)
class Sample:
    """One question about some pictures or videos, or about none.

    Pictures and videos may be paths, and pictures functions that return one; they are read when the sample is prepared,
    so thousands of samples take little memory. One picture, video or region needs no list around it, and a region may
    be its box: `Sample("1", "What colour is the cup?", "red", "cup.jpg", (10, 20, 60, 40))`.
    """

    id: str
    question: str
    """The question alone, without options and instructions: its tokens are the query tokens `question`. Where a prompt
    places a picture within it, it has `<image>`."""

    answer: str
    images: tuple[Picture, ...] = ()
    """Pictures, paths to them or functions that return them, in the order in which they precede the question."""

    evidence: tuple[Evidence, ...] = ()
    videos: tuple[Footage, ...] = ()
    """`corelens.Video`s, or paths to files. They come after the pictures, before the question."""

    instruction: str = ""
    """Text that follows the question and is no part of it: answer options, the format of the answer."""

    prompt: tuple[str | int, ...] = ()
    """The whole user message, where media do not simply precede the question: texts, and media by their number, each
    once and in order. It contains the question with its instruction; if it does several times, the last one counts."""

    choices: tuple[str, ...] = ()
    """The options of a multiple-choice question, in order; `answer` is one of them."""

    also_accepted: tuple[str, ...] = ()
    """Other answers that are as correct as `answer`."""

    scoring: str = "phrase"
    """Name of the rule by which `corelens.data.score` scores an answer: `phrase` accepts `It is red.` for `red`."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """Further annotations of the data set: domain, document, pages and the like. `task` is the kind of question, where
    a data set has several: they may need different heads. `group` names what several samples share: see `group`."""

    def __init__(
        self,
        id: str,
        question: str,
        answer: str,
        images: Picture | Sequence[Picture] = (),
        evidence: Evidence | Edges | Sequence[Evidence | Edges] = (),
        videos: Footage | Sequence[Footage] = (),
        instruction: str = "",
        prompt: Sequence[str | int] = (),
        choices: Sequence[str] = (),
        also_accepted: Sequence[str] = (),
        scoring: str = "phrase",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        texts = {"prompt": prompt, "choices": choices, "also_accepted": also_accepted}
        if alone := [name for name, value in texts.items() if isinstance(value, str)]:
            raise TypeError(f"sample {id}: {alone[0]} is several texts: write [{texts[alone[0]]!r}].")
        given = {"id": id, "question": question, "answer": answer, "instruction": instruction, "scoring": scoring}
        if other := [name for name, value in given.items() if not isinstance(value, str)]:
            raise TypeError(f"sample {id}: {other[0]} is a text, not {given[other[0]]!r:.80}.")
        try:
            _set(
                self,
                images=_media(images, Picture, "a picture is a path, a PIL image or a function that returns one"),
                evidence=_regions(evidence),
                videos=_media(videos, Footage, "a video is a path or corelens.Video(frames, fps)"),
            )
        except TypeError as cause:
            raise TypeError(f"sample {id}: {cause}") from cause
        _set(self, **given)
        _set(self, about={} if about is None else about, **{name: tuple(value) for name, value in texts.items()})
        n_media = len(self.images) + len(self.videos)
        numbers = [part for part in self.prompt if isinstance(part, int)]
        if self.prompt and numbers != list(range(n_media)):
            raise ValueError(f"sample {self.id}: the prompt places media {numbers}, and there are {n_media}, in order.")
        if missing := [region.media for region in self.evidence if region.media >= n_media]:
            raise ValueError(f"sample {self.id}: evidence is in media {missing}, and there are {n_media}.")
        if self.prompt and self._question_start(self.prompt) < 0:
            text = self.question + self.instruction
            raise ValueError(f"sample {self.id}: the question {text!r} cannot be located in its prompt.")

    @property
    def answers(self) -> tuple[str, ...]:
        """All accepted answers."""
        return (self.answer, *self.also_accepted)

    @property
    def group(self) -> str:
        """Name of the picture, document or video that the sample shares with others, `about["group"]`; else its id.

        Samples of a group are not independent: no split of a data set divides them, and intervals count them as one.
        """
        return str(self.about.get("group", self.id))

    @property
    def pictures(self) -> list[Image.Image]:
        """The pictures, read now."""
        return [load_picture(picture) for picture in self.images]

    @property
    def message(self) -> tuple[str | int, ...]:
        """The whole user message: `prompt`, or media and then the question with its instruction."""
        n_media = len(self.images) + len(self.videos)
        return self.prompt or (*range(n_media), self.question + self.instruction)

    @property
    def chat(self) -> str | list[dict[str, Any]]:
        """The question in the form that `HookedMLLM.prepare` takes."""
        if not self.prompt and not self.instruction:
            return self.question
        kinds = ["image"] * len(self.images) + ["video"] * len(self.videos)
        parts: list[dict[str, Any]] = []
        for part, (start, end) in zip(self.message, self._question_spans(self.message), strict=True):
            if isinstance(part, int):
                parts.append({"type": kinds[part]})
                continue
            parts.append({"type": "text", "text": part})
            if question := part[start:end].strip():
                parts[-1]["question"] = question
        return [{"role": "user", "content": parts}]

    def with_question(self, question: str) -> "Sample":
        """Return the sample with another question in the place of its own, and all else as it is.

        Raises:
            ValueError: If the prompt holds no text of the question: the same prompt would be asked again.
        """
        spans = self._question_spans(self.prompt)
        # A question with pictures in it has several parts.
        last = max((index for index, (start, end) in enumerate(spans) if start < end), default=None)
        if self.prompt and last is None:
            raise ValueError(
                f"sample {self.id}: its prompt holds no text of the question {self.question!r}, so {question!r} cannot "
                f"take its place."
            )
        parts = [
            part if isinstance(part, int) else part[:start] + question * (index == last) + part[end:]
            for index, (part, (start, end)) in enumerate(zip(self.prompt, spans, strict=True))
        ]
        return replace(self, question=question, prompt=tuple(part for part in parts if part != ""))

    def _question_spans(self, prompt: tuple[str | int, ...]) -> list[tuple[int, int]]:
        """Start and end of the question within each part of a prompt; both zero for media."""
        start, position, spans = self._question_start(prompt), 0, []
        for part in prompt:
            length = len(part) if isinstance(part, str) else len(MEDIUM)
            first, last = (min(max(at - position, 0), length) for at in (start, start + len(self.question)))
            spans.append((first, last) if isinstance(part, str) else (0, 0))
            position += length
        return spans

    def _question_start(self, prompt: tuple[str | int, ...]) -> int:
        """Last place of the question with its instruction in a prompt; -1 if there is none."""
        text = "".join(part if isinstance(part, str) else MEDIUM for part in prompt)
        return text.rfind(self.question + self.instruction)


def evidence_tokens(
    samples: Sequence[Sample], tokens: TokenMap, rule: BoxRule = "overlap", views: Views = "all"
) -> Bool[Tensor, "batch position"] | Float[Tensor, "batch position"]:
    """Compute a mask of the visual tokens with the evidence of each sample of a batch, all regions together.

    A token that several regions cover has the largest product of coverage and weight, not their sum. Of evidence that
    moves through a video, a token gets the regions of all frames that its view stands for, sampled or not.

    Args:
        samples: The samples of the batch.
        tokens: The map of their prepared inputs.
        rule: Rule from pixels to tokens; see `TokenMap.in_box`. All of a picture is all of its visual tokens.
        views: Views of a picture that count; see `TokenMap.in_box`.

    Returns:
        Booleans, or numbers in [0, 1] if the rule is `fraction` or some evidence has a weight below one.

    Raises:
        ValueError: If a sample has no evidence, a region lies outside its picture or video, or a region or a whole
            track through a video selects no visual token; names the sample.
    """
    rows = [_sample_mask(sample, tokens[index], rule, views) for index, sample in enumerate(samples)]
    if all(row.dtype == torch.bool for row in rows):
        return torch.cat(rows)
    return torch.cat([row.float() for row in rows])


def _sample_mask(sample: Sample, tokens: TokenMap, rule: BoxRule, views: Views) -> Tensor:
    if not sample.evidence:
        raise ValueError(
            f"sample {sample.id} has no evidence, so no head can be scored on it. {docs_link('no-evidence')}"
        )
    try:
        # Processors may skip the start of a video: frames without a view are not evidence for the model.
        masks = [_region_mask(region, tokens, rule, views) for region in sample.evidence if _is_sampled(region, tokens)]
    except ValueError as cause:
        raise ValueError(f"sample {sample.id}: {cause}") from cause
    if not masks:
        raise ValueError(f"sample {sample.id}: no sampled frame shows its evidence.")
    return reduce(torch.maximum, masks)


def _is_sampled(region: Evidence, tokens: TokenMap) -> bool:
    if region.seconds is None:
        return True
    starts = tokens.seconds[tokens.media == region.media, 0]
    return not len(starts) or region.seconds[1] > float(starts.nan_to_num(0).min())


def _region_mask(region: Evidence, tokens: TokenMap, rule: BoxRule, views: Views) -> Tensor:
    if region.box is None and region.seconds is None:
        mask = tokens.media_tokens(region.media, views)
        mask = mask.float() if rule == "fraction" else mask
    else:
        box = region.box or Box(0, 0, *tokens.sizes[0][region.media])
        mask = tokens.in_box(box, rule, region.media, views, region.seconds)
    return mask if region.weight == 1 else mask.float() * region.weight
