"""What is asked: the gallery's samples and own pictures, prepared for the model."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from corelens.data import Evidence, Sample, evidence_tokens, prepare_batch
from corelens.inputs import PreparedInputs
from corelens.media import load_clip
from corelens.model import HookedMLLM
from corelens.prefix import Prefix
from corelens.tokens import TokenMap
from corelens.viz.explorer.state import ExplorerState
from corelens.viz.explorer.uploads import decoded
from corelens.viz.views import View, views_of

MOST_SAMPLES = 100
MOST_UPLOADS = 8


@dataclass(eq=False)
class Prompt:
    """A question about some pictures, prepared once for everything that is asked of it."""

    sample: Sample
    inputs: PreparedInputs
    prefix: Prefix | None
    """What comes before the question; None where the model has to run whole prompts."""

    views: list[View]
    files: list[str]
    """The names of the files that own pictures came in."""

    known: dict[Hashable, Any] = field(default_factory=dict)
    """What was computed, by all that decides it."""

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    @property
    def askers(self) -> list[int]:
        """The positions that can look: the question, and the end of the prompt."""
        return self.inputs.tokens.from_question[0].nonzero()[:, 0].tolist()

    def looking(self, state: ExplorerState) -> Bool[Tensor, "1 position"]:
        """The one token whose attention is shown."""
        last = self.inputs.tokens.last
        if state.token is None:
            return last
        if state.token not in self.askers:
            raise ValueError(f"position {state.token} is not one of the question or after it, which can be seen here.")
        chosen = torch.zeros_like(last)
        chosen[0, state.token] = True
        return chosen

    def evidence(self, state: ExplorerState) -> Tensor | None:
        """The visual tokens of the evidence; None if nobody says where it is."""
        regions = self.sample.evidence if state.evidence is None else state.evidence
        return self.tokens_of(regions) if regions else None

    def tokens_of(self, regions: Sequence[Evidence], tokens: TokenMap | None = None) -> Tensor:
        """The visual tokens that some regions overlap; in the prompt, or in it with an answer behind it."""
        return evidence_tokens([replace(self.sample, evidence=tuple(regions))], tokens or self.inputs.tokens)


class Prompts:
    """The prompts that states ask for."""

    def __init__(self, model: HookedMLLM, samples: Iterable[Sample]) -> None:
        chosen = list(islice(samples, MOST_SAMPLES + 1))
        if len(chosen) > MOST_SAMPLES:
            raise ValueError(
                f"the gallery holds at most {MOST_SAMPLES} samples: choose some, e.g. by itertools.islice."
            )
        self.model = model
        self.samples = {sample.id: sample for sample in chosen}
        if len(self.samples) < len(chosen):
            raise ValueError("two samples of the gallery have the same id.")
        self.uploads: dict[str, tuple[str, Image.Image]] = {}
        self.prepared: dict[Hashable, Prompt] = {}

    def add_picture(self, key: str, name: str, data: bytes) -> None:
        """Takes an own picture, which states then name by its key; the same one again changes nothing.

        Raises:
            ValueError: If it cannot be read; see `decoded`.
        """
        if key not in self.uploads:
            self.uploads[key] = (name, decoded(data))
            while len(self.uploads) > MOST_UPLOADS:
                del self.uploads[next(iter(self.uploads))]

    def key(self, state: ExplorerState) -> str:
        """Equal where the same is asked of the same pictures."""
        return repr((state.sample, state.pictures, state.question))

    def of(self, state: ExplorerState) -> Prompt | None:
        """The prompt of a state; None if it asks nothing."""
        key = self.key(state)
        if key not in self.prepared:
            if (sample := self._asked(state)) is None:
                return None
            inputs = prepare_batch(self.model, [sample])
            try:
                prefix = self.model.prefix(inputs)
            except ValueError:
                prefix = None  # nothing before the question, or no cache to share: whole prompts it is
            clips = [load_clip(video, self.model.processor) for video in sample.videos]
            views = views_of([*sample.images, *clips], inputs.tokens)
            files = [] if state.sample else [self.uploads[name][0] for name in state.pictures]
            # Two, for two tabs: keys and values of a large model's prompt take much memory.
            self.prepared = dict(list(self.prepared.items())[-1:])
            self.prepared[key] = Prompt(sample, inputs, prefix, views, files)
        return self.prepared[key]

    def _asked(self, state: ExplorerState) -> Sample | None:
        """The sample that a state asks about, with its own evidence; None if it asks nothing."""
        if state.sample:
            if state.sample not in self.samples:
                raise ValueError(f"there is no sample {state.sample!r} in the gallery.")
            sample = self.samples[state.sample]
            if state.question is not None:
                # It has another answer, and its evidence is elsewhere.
                sample = replace(sample, question=state.question, prompt=(), answer="", evidence=())
            return sample
        if missing := [key for key in state.pictures if key not in self.uploads]:
            raise ValueError(f"{len(missing)} of the pictures are not here any more; drop them again.")
        if not state.question:
            return None
        return Sample("own", state.question, "", tuple(self.uploads[key][1] for key in state.pictures))
