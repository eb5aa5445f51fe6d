"""Answers and attention of a model under the changes of a state, each computed once for a prompt."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from corelens.causal import AnswerLogProbs, log_prob
from corelens.causal.answers import append_answers, greedy_answers
from corelens.causal.session import prefix_if_possible
from corelens.data import Evidence, Sample, evidence_tokens, prepare_batch
from corelens.experiments.head_metrics import score_heads
from corelens.experiments.layer_scores import AnyMetric, ScoringInputs, query_kind
from corelens.experiments.sweep import sweep
from corelens.explorer.state import ExplorerState
from corelens.explorer.uploads import decode_picture
from corelens.heads import Head
from corelens.hf.prefix_cache import PrefixCache
from corelens.hooks.points import hook_name
from corelens.inputs.media import load_clip
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks, ReferenceActivations, ablate, attention_knockout, mean_activations
from corelens.metrics import PRESETS
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import TokenMap
from corelens.viz.panels import View, media_views

MAX_SAMPLES = 100
MAX_UPLOADS = 8

MAX_ANSWER_TOKENS = 16
"""Tokens."""

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

    def evidence(self, state: ExplorerState) -> Tensor | None:
        """Visual tokens of the evidence; None if it is unknown."""
        regions = self.sample.evidence if state.evidence is None else state.evidence
        return self.region_tokens(regions) if regions else None

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


class Cancelled(BaseException):
    """A view that is not needed any more; no Exception, so that nothing takes it for a failure of a model."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of a model under some changes."""

    ids: list[int]
    probability: float
    """Probability of the answer, all of its tokens together."""

    plain_probability: float
    """Probability of the answer that the model gives without changes."""

    first_token: Float[Tensor, "vocabulary"]
    """Probability of every token as the answer's first."""


class ExplorerPasses:
    """Passes of a model on prompts; results are kept with the prompt."""

    def __init__(self, model: HookedMLLM, samples: Collection[Sample], scores: HeadScores | None) -> None:
        """Take what passes need besides a prompt.

        Args:
            model: The model.
            samples: Samples that mean ablation averages over.
            scores: Scores of a scan, as one more metric that colours heads.
        """
        self.model, self.samples, self.scores = model, samples, scores
        self.means: ReferenceActivations | None = None

    def plain_answer(self, prompt: PreparedPrompt) -> Answer:
        """Return the answer without changes."""
        state = ExplorerState()
        return prompt.cached(("answer", state.changes), lambda: self._compute_answer(prompt, state, None))

    def answer(self, prompt: PreparedPrompt, state: ExplorerState) -> Answer:
        """Return the answer under the changes of a state."""
        plain = self.plain_answer(prompt)
        return prompt.cached(("answer", state.changes), lambda: self._compute_answer(prompt, state, plain))

    def _compute_answer(self, prompt: PreparedPrompt, state: ExplorerState, plain: Answer | None) -> Answer:
        with self.model.hooks(fwd_hooks=self._hooks(prompt, state)):
            (ids,) = greedy_answers(self.model, prompt.inputs, MAX_ANSWER_TOKENS, prompt.prefix)
        probability, first_token = self._probability(prompt, state, ids)
        if plain is None or plain.ids == ids:
            return Answer(ids, probability, probability, first_token)
        return Answer(ids, probability, self._probability(prompt, state, plain.ids)[0], first_token)

    def _probability(
        self, prompt: PreparedPrompt, state: ExplorerState, ids: list[int]
    ) -> tuple[float, Float[Tensor, "vocabulary"]]:
        """Probability of an answer, and of every token as its first."""
        answered = append_answers(self.model, prompt.inputs, [ids])
        with self.model.hooks(fwd_hooks=self._hooks(prompt, state, answered.tokens)):
            logits = self.model(answered, prefix=prompt.prefix)
        log_probs = AnswerLogProbs.of(logits, answered, 0 if prompt.prefix is None else prompt.prefix.length)
        return float(log_prob(log_probs, log_probs).exp()), log_probs.log_probs[0, 0].exp().cpu()

    def head_values(self, prompt: PreparedPrompt, state: ExplorerState) -> Float[Tensor, "layer head"]:
        """Return the values that colour the heads, by the state's metric."""
        key = ("heads", state.metric, state.token, state.evidence, state.shown_changes)
        return prompt.cached(key, lambda: self._compute_head_values(prompt, state))

    def _compute_head_values(self, prompt: PreparedPrompt, state: ExplorerState) -> Float[Tensor, "layer head"]:
        if state.metric == "scan" and self.scores is not None:
            return self.scores.per_head
        if state.metric == "effect":
            return prompt.cached("effect", lambda: self._effects(prompt))
        known = NEED_EVIDENCE | NEED_NO_EVIDENCE
        if state.metric not in known:
            raise ValueError(
                f"there is no metric {state.metric!r} to colour heads by; choose one of {', '.join(known)}."
            )
        metric: AnyMetric = PRESETS.get(state.metric, state.metric)
        tokens = prompt.inputs.tokens
        evidence = prompt.evidence(state)
        evidence = torch.zeros_like(tokens.last) if evidence is None else evidence
        kind = query_kind(metric)
        queries = {kind: tokens.question if kind == "question" else prompt.query_mask(state)}
        scoring = ScoringInputs(tokens, evidence, queries, torch.full_like(tokens.role, -1))
        with self.model.hooks(fwd_hooks=self._shown_hooks(prompt, state)):
            return score_heads(self.model, prompt.inputs, scoring, [metric], prompt.prefix)[state.metric][0]

    def _effects(self, prompt: PreparedPrompt) -> Float[Tensor, "layer head"]:
        """Drop of the answer's log-probability when each head is zeroed by itself."""
        answered = append_answers(self.model, prompt.inputs, [self.plain_answer(prompt).ids])
        return sweep(self.model, answered, at_once=8, progress=False).scores().values[0]

    def attention_rows(self, prompt: PreparedPrompt, state: ExplorerState) -> dict[Head, Float[Tensor, "position"]]:
        """Attention of the chosen heads from the chosen token."""

        def key(head: Head) -> Hashable:
            return ("row", head, state.token, state.shown_changes)

        if missing := [head for head in state.heads if key(head) not in prompt.results]:
            with self.model.hooks(fwd_hooks=self._shown_hooks(prompt, state)):
                _, cache = self.model.run_with_cache(
                    prompt.inputs,
                    prefix=prompt.prefix,
                    queries=prompt.query_mask(state),
                    names_filter=sorted({hook_name(head.layer, "attn.pattern") for head in missing}),
                )
            for head in missing:
                prompt.results[key(head)] = cache["pattern", head.layer][0, head.head, 0].cpu()
        return {head: prompt.results[key(head)] for head in state.heads}

    def _hooks(self, prompt: PreparedPrompt, state: ExplorerState, tokens: TokenMap | None = None) -> FwdHooks:
        """Changes of a state as hooks on the prompt, or on the prompt with an answer appended."""
        reference = None
        if state.ablated and state.how == "mean":
            if not self.samples:
                raise ValueError("there is no gallery to take mean head outputs from; ablate by zero.")
            self.means = self.means or mean_activations(self.model, self.samples)
            reference = self.means
        hooks = ablate(sorted(state.ablated), state.how, reference, positions="from_question")
        if state.regions:
            heads = self.model.heads if state.blind == "all" else sorted(state.heads)
            hooks += attention_knockout(heads, "from_question", prompt.region_tokens(state.regions, tokens).bool())
        return hooks

    def _shown_hooks(self, prompt: PreparedPrompt, state: ExplorerState) -> FwdHooks:
        """Changes that heads and maps are shown with."""
        return self._hooks(prompt, state) if state.moment == "after" else []


@contextmanager
def cancellable(model: HookedMLLM, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Raise `Cancelled` before the next layer of a pass once `cancelled` returns True."""

    def check(module: Any, args: Any) -> None:
        if cancelled():
            raise Cancelled

    handles = [site.block.register_forward_pre_hook(check) for site in model.hf_layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
