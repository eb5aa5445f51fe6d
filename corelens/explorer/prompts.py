"""Prompts of the explorer: questions about pictures, each prepared once, and the metrics that they allow."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from corelens.causal.session import prefix_if_possible
from corelens.data import Evidence, Sample, evidence_tokens, prepare_batch
from corelens.explorer.state import ExplorerState
from corelens.explorer.uploads import decode_picture
from corelens.hf.prefix_cache import PrefixCache
from corelens.inputs.media import load_clip
from corelens.inputs.prepare import PreparedInputs
from corelens.model import HookedMLLM
from corelens.tokens import TokenMap
from corelens.viz.panels import View, media_views

MAX_SAMPLES = 100
MAX_UPLOADS = 8

NEED_EVIDENCE: dict[str, str] = {
    "ram": "attention of the question on the evidence",
    "ram_last": "attention of the chosen token on the evidence",
    "write_ram": "attention of the question on the evidence, weighed by what is written",
    "vera": "share of the chosen token's attention on pictures that is on the evidence",
}
"""Metrics that colour heads where there is evidence. The chosen token takes the place of the prompt's last one."""

NEED_NO_EVIDENCE: dict[str, str] = {
    "visual_share": "attention on pictures and videos",
    "entropy": "entropy of attention, in nats",
    "effect": "log-probability that the answer loses without the head",
}
"""Metrics that colour heads anywhere; `effect` zeroes every head by itself, without the changes of the state."""

UNITS: dict[str, str] = {
    **dict.fromkeys(("ram", "ram_last", "visual_share"), "% of this head's attention"),
    "vera": "% of this head's attention on pictures",
    **dict.fromkeys(("entropy", "effect"), "nats"),
}
"""Units of metrics that have one."""


@dataclass(eq=False)
class PreparedPrompt:
    """A question about some pictures, prepared once for all views of it."""

    sample: Sample
    inputs: PreparedInputs
    prefix: PrefixCache | None
    """Cache of all positions before the question; None if the model has to run whole prompts."""

    views: list[View]
    file_names: list[str]
    """File names of uploaded pictures."""

    results: dict[Hashable, Any] = field(default_factory=dict)
    """Everything computed so far, by all that determines it."""

    def cached(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return the result of a key; compute it the first time."""
        if key not in self.results:
            self.results[key] = compute()
        return self.results[key]

    @property
    def query_positions(self) -> list[int]:
        """Positions whose attention can be shown: the question, and the end of the prompt."""
        return self.inputs.tokens.from_question[0].nonzero()[:, 0].tolist()

    def usable_metric(self, state: ExplorerState) -> str:
        """Name of the state's metric; without the evidence that it needs, of one that needs none."""
        if state.metric not in NEED_EVIDENCE or self.evidence(state) is not None:
            return state.metric
        return "visual_share" if self.views else "entropy"

    def query_mask(self, state: ExplorerState) -> Bool[Tensor, "1 position"]:
        """Mask of the one token whose attention is shown."""
        last = self.inputs.tokens.last
        if state.token is None:
            return last
        if state.token not in self.query_positions:
            raise ValueError(
                f"position {state.token} has no attention to show; choose one of the question or after it, "
                f"{self.query_positions[0]} to {self.query_positions[-1]}."
            )
        mask = torch.zeros_like(last)
        mask[0, state.token] = True
        return mask

    def evidence(self, state: ExplorerState, tokens: TokenMap | None = None) -> Tensor | None:
        """Visual tokens of the evidence, in the prompt or in a map that begins with it; None if it is unknown."""
        regions = self.sample.evidence if state.evidence is None else state.evidence
        return self.region_tokens(regions, tokens) if regions else None

    def region_tokens(self, regions: Sequence[Evidence], tokens: TokenMap | None = None) -> Tensor:
        """Visual tokens that some regions overlap, in the prompt or in another token map that begins with it."""
        return evidence_tokens([replace(self.sample, evidence=tuple(regions))], tokens or self.inputs.tokens)


class PromptCache:
    """Prepared prompts of states."""

    def __init__(self, model: HookedMLLM, samples: Iterable[Sample]) -> None:
        gallery = list(islice(samples, MAX_SAMPLES + 1))
        if len(gallery) > MAX_SAMPLES:
            raise ValueError(f"the gallery holds at most {MAX_SAMPLES} samples: choose some, e.g. by itertools.islice.")
        self.model = model
        self.samples = {sample.id: sample for sample in gallery}
        if len(self.samples) < len(gallery):
            raise ValueError("two samples of the gallery have the same id.")
        self.uploads: dict[str, tuple[str, Image.Image]] = {}
        self.prepared: dict[Hashable, PreparedPrompt] = {}

    def add_picture(self, key: str, name: str, data: bytes) -> None:
        """Add an uploaded picture, which states then name by its key; a key that is known changes nothing.

        Raises:
            ValueError: If it cannot be read; see `decode_picture`.
        """
        if key not in self.uploads:
            self.uploads[key] = (name, decode_picture(data))
            while len(self.uploads) > MAX_UPLOADS:
                del self.uploads[next(iter(self.uploads))]

    def key(self, state: ExplorerState) -> str:
        """Key of a state's prompt; equal for states with the same question about the same pictures."""
        return repr((state.sample, state.pictures, state.question))

    def get(self, state: ExplorerState) -> PreparedPrompt | None:
        """Return the prompt of a state; None if there is no question."""
        key = self.key(state)
        if key not in self.prepared:
            sample = self._sample(state)
            if sample is None:
                return None
            inputs = prepare_batch(self.model, [sample])
            prefix = prefix_if_possible(self.model, inputs)
            clips = [load_clip(video, self.model.processor) for video in sample.videos]
            views = media_views([*sample.images, *clips], inputs.tokens)
            file_names = [] if state.sample else [self.uploads[name][0] for name in state.pictures]
            # Two, for two tabs: keys and values of a large model's prompt take much memory.
            self.prepared = dict(list(self.prepared.items())[-1:])
            self.prepared[key] = PreparedPrompt(sample, inputs, prefix, views, file_names)
        return self.prepared[key]

    def _sample(self, state: ExplorerState) -> Sample | None:
        """Sample with the question and pictures of a state, and with its own evidence; None without a question."""
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
