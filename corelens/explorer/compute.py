"""What the model says and where it looks under the changes of a state, each computed once for a prompt."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from corelens.causal import AnswerLogProbs, Session, log_prob
from corelens.causal.answers import append_answers, greedy_answers
from corelens.causal.session import prefix_if_possible
from corelens.data import Evidence, Sample, evidence_tokens, prepare_batch
from corelens.experiments.head_metrics import AnyMetric, ScoringInputs, score_heads
from corelens.explorer.state import ExplorerState
from corelens.explorer.uploads import decoded
from corelens.heads import Head
from corelens.hf.prefix_cache import PrefixCache
from corelens.inputs.media import load_clip
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks, ReferenceActivations, ablate, attention_knockout, mean_activations
from corelens.metrics import PRESETS
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import TokenMap
from corelens.viz.panels import View, media_views

MOST_SAMPLES = 100
MOST_UPLOADS = 8


@dataclass(eq=False)
class PreparedPrompt:
    """A question about some pictures, prepared once for everything that is asked of it."""

    sample: Sample
    inputs: PreparedInputs
    prefix: PrefixCache | None
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


class PromptCache:
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
        self.prepared: dict[Hashable, PreparedPrompt] = {}

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

    def of(self, state: ExplorerState) -> PreparedPrompt | None:
        """The prompt of a state; None if it asks nothing."""
        key = self.key(state)
        if key not in self.prepared:
            if (sample := self._asked(state)) is None:
                return None
            inputs = prepare_batch(self.model, [sample])
            prefix = prefix_if_possible(self.model, inputs)
            clips = [load_clip(video, self.model.processor) for video in sample.videos]
            views = media_views([*sample.images, *clips], inputs.tokens)
            files = [] if state.sample else [self.uploads[name][0] for name in state.pictures]
            # Two, for two tabs: keys and values of a large model's prompt take much memory.
            self.prepared = dict(list(self.prepared.items())[-1:])
            self.prepared[key] = PreparedPrompt(sample, inputs, prefix, views, files)
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


MAX_ANSWER_TOKENS = 16
"""Tokens."""

ON_EVIDENCE: dict[str, str] = {
    "ram": "attention on the evidence",
    "write_ram": "attention on the evidence, weighed by what is written",
    "vera": "share of the attention on pictures that is on the evidence",
}
"""What can colour heads where there is evidence. Here the chosen token looks, whatever a metric's own would be."""

ANYWHERE: dict[str, str] = {
    "visual_share": "attention on pictures and videos",
    "entropy": "entropy of attention, in nats",
    "effect": "log-probability that the answer loses without the head",
}
"""And where there is none; `effect` zeroes every head by itself, and knows of no other change."""


class Cancelled(BaseException):
    """A view that nobody waits for any more; no Exception, so that nothing takes it for a failure of a model."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model says under some changes."""

    ids: list[int]
    probability: float
    """Of the answer, all of its tokens together."""

    of_plain: float
    """Of the answer that the model gives without changes."""

    first: Float[Tensor, "vocabulary"]
    """How probable every token is as the answer's first."""


class ExplorerPasses:
    """Runs a model on prompts; what was computed once is kept with the prompt."""

    def __init__(self, model: HookedMLLM, samples: Collection[Sample], scores: HeadScores | None) -> None:
        """`samples` are what mean ablation averages over; `scores` are of a scan."""
        self.model, self.samples, self.scores = model, samples, scores
        self.means: ReferenceActivations | None = None

    def plain(self, prompt: PreparedPrompt) -> Answer:
        """What the model says as it is."""
        return prompt.once(("answer", ExplorerState().changes), lambda: self._answered(prompt, ExplorerState(), None))

    def answer(self, prompt: PreparedPrompt, state: ExplorerState) -> Answer:
        """What it says under the changes of a state, and how sure it is."""
        plain = self.plain(prompt)
        return prompt.once(("answer", state.changes), lambda: self._answered(prompt, state, plain))

    def _answered(self, prompt: PreparedPrompt, state: ExplorerState, plain: Answer | None) -> Answer:
        with self.model.hooks(fwd_hooks=self._hooks(prompt, state)):
            (ids,) = greedy_answers(self.model, prompt.inputs, MAX_ANSWER_TOKENS, prompt.prefix)
        of_own, first = self._probability(prompt, state, ids)
        of_plain = of_own if plain is None or plain.ids == ids else self._probability(prompt, state, plain.ids)[0]
        return Answer(ids, of_own, of_plain, first)

    def _probability(
        self, prompt: PreparedPrompt, state: ExplorerState, ids: list[int]
    ) -> tuple[float, Float[Tensor, "vocabulary"]]:
        """How probable an answer is, and what its first token could be."""
        asked = append_answers(self.model, prompt.inputs, [ids])
        with self.model.hooks(fwd_hooks=self._hooks(prompt, state, asked.tokens)):
            logits = self.model(asked, prefix=prompt.prefix)
        said = AnswerLogProbs.of(logits, asked, 0 if prompt.prefix is None else prompt.prefix.length)
        return float(log_prob(said, said).exp()), said.log_probs[0, 0].exp().cpu()

    def scored(self, prompt: PreparedPrompt, state: ExplorerState) -> Float[Tensor, "layer head"] | None:
        """What colours the heads; None if that needs evidence, and there is none."""
        if state.metric in ON_EVIDENCE and prompt.evidence(state) is None:
            return None
        key = ("heads", state.metric, state.token, state.evidence, state.shown_changes)
        return prompt.once(key, lambda: self._scored(prompt, state))

    def _scored(self, prompt: PreparedPrompt, state: ExplorerState) -> Float[Tensor, "layer head"]:
        if state.metric == "scan" and self.scores is not None:
            return self.scores.per_head
        if state.metric == "effect":
            return prompt.once("effect", lambda: self._effects(prompt))
        if state.metric not in ON_EVIDENCE | ANYWHERE:
            raise ValueError(f"there is no measure {state.metric!r} to colour heads by.")
        one: AnyMetric = PRESETS.get(state.metric, state.metric)
        tokens = prompt.inputs.tokens
        evidence = prompt.evidence(state)
        evidence = torch.zeros_like(tokens.last) if evidence is None else evidence
        asked = ScoringInputs(tokens, evidence, {"last": prompt.looking(state)}, torch.full_like(tokens.role, -1))
        with self.model.hooks(fwd_hooks=self._shown(prompt, state)):
            return score_heads(self.model, prompt.inputs, asked, [one], prompt.prefix)[state.metric][0]

    def _effects(self, prompt: PreparedPrompt) -> Float[Tensor, "layer head"]:
        """By how much the answer's log-probability drops when each head is zeroed by itself."""
        asked = append_answers(self.model, prompt.inputs, [self.plain(prompt).ids])
        session = Session(self.model, asked)
        said = partial(AnswerLogProbs.of, inputs=asked, first=session.first)
        before = said(session.plain)
        values = torch.full((self.model.cfg.n_layers, self.model.cfg.n_heads), torch.nan)
        heads = self.model.heads
        for start in range(0, len(heads), 8):
            some = heads[start : start + 8]
            zeroed = [ablate([head], positions="from_question") for head in some]
            for head, logits in zip(some, session.logits_of_each(zeroed), strict=True):
                drop = log_prob(before, before) - log_prob(said(logits), before)
                values[head] = float(drop)
        return values

    def rows(self, prompt: PreparedPrompt, state: ExplorerState) -> dict[Head, Float[Tensor, "position"]]:
        """Where the chosen heads look from the chosen token."""

        def key(head: Head) -> Hashable:
            return ("row", head, state.token, state.shown_changes)

        if new := [head for head in state.heads if key(head) not in prompt.known]:
            with self.model.hooks(fwd_hooks=self._shown(prompt, state)):
                _, cache = self.model.run_with_cache(
                    prompt.inputs,
                    prefix=prompt.prefix,
                    queries=prompt.looking(state),
                    names_filter=sorted({f"blocks.{head.layer}.attn.hook_pattern" for head in new}),
                )
            for head in new:
                prompt.known[key(head)] = cache["pattern", head.layer][0, head.head, 0].cpu()
        return {head: prompt.known[key(head)] for head in state.heads}

    def _hooks(self, prompt: PreparedPrompt, state: ExplorerState, tokens: TokenMap | None = None) -> FwdHooks:
        """The changes of a state as an intervention on the prompt, or on the prompt with an answer behind it."""
        instead = None
        if state.ablated and state.how == "mean":
            if not self.samples:
                raise ValueError("there is no gallery whose mean could stand in for what heads find; ablate by zero.")
            self.means = self.means or mean_activations(self.model, self.samples)
            instead = self.means
        hooks = ablate(sorted(state.ablated), state.how, instead, positions="from_question")
        if state.regions:
            heads = self.model.heads if state.blind == "all" else sorted(state.heads)
            hooks += attention_knockout(heads, "from_question", prompt.tokens_of(state.regions, tokens).bool())
        return hooks

    def _shown(self, prompt: PreparedPrompt, state: ExplorerState) -> FwdHooks:
        """The changes that heads and maps are shown with."""
        return self._hooks(prompt, state) if state.moment == "after" else []


@contextmanager
def stopping(model: HookedMLLM, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Lets passes end before their next layer once somebody says so."""

    def ask(module: Any, args: Any) -> None:
        if cancelled():
            raise Cancelled

    handles = [site.block.register_forward_pre_hook(ask) for site in model.hf_layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
