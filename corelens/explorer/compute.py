"""Answers and attention of a model under the changes of a state, each computed once for a prompt."""

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.causal import AnswerLogProbs, log_prob
from corelens.causal.answers import append_answers, greedy_answers
from corelens.data import Sample
from corelens.experiments.head_metrics import score_heads
from corelens.experiments.layer_scores import AnyMetric, ScoringInputs, query_kind
from corelens.experiments.sweep import sweep
from corelens.explorer.prompts import NEED_EVIDENCE, NEED_NO_EVIDENCE, PreparedPrompt
from corelens.explorer.state import ExplorerState
from corelens.heads import Head
from corelens.hooks.points import hook_name
from corelens.inputs.prepare import PreparedInputs
from corelens.interventions import FwdHooks, ReferenceActivations, ablate, attention_knockout, mean_activations
from corelens.metrics import PRESETS
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import TokenMap

MAX_ANSWER_TOKENS = 16
"""Tokens."""


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


@dataclass(frozen=True, eq=False)
class Query:
    """The one token whose attention is shown, in the prompt or in the answer after it."""

    inputs: PreparedInputs
    """The prompt, or the prompt and the answer."""

    mask: Bool[Tensor, "1 position"]

    @property
    def position(self) -> int:
        """Its position."""
        return int(self.mask.nonzero()[0, 1])


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

    def query(self, prompt: PreparedPrompt, state: ExplorerState) -> Query:
        """Return the token whose attention is shown.

        A token of the answer predicted the next one. Positions behind the answer, which other changes may have made
        shorter, mean its last token that did.

        Raises:
            ValueError: If the position is neither of the question, nor after it, nor of any answer.
        """
        n = prompt.inputs["input_ids"].shape[1]
        if state.token is None or not n <= state.token < n + MAX_ANSWER_TOKENS:
            return Query(prompt.inputs, prompt.query_mask(state))
        answer = self.answer(prompt, state) if state.moment == "after" else self.plain_answer(prompt)
        inputs = append_answers(self.model, prompt.inputs, [answer.ids])
        mask = torch.zeros_like(inputs.tokens.last)
        mask[0, min(state.token, n + len(answer.ids) - 2)] = True
        return Query(inputs, mask)

    def without(self, prompt: PreparedPrompt, heads: tuple[Head, ...]) -> float:
        """Return the probability of the plain answer when heads are zeroed, whatever the state."""
        plain, state = self.plain_answer(prompt), ExplorerState(ablated=heads)
        return prompt.cached(("without", heads), lambda: self._probability(prompt, state, plain.ids)[0])

    def hides_evidence(self, prompt: PreparedPrompt, state: ExplorerState) -> bool:
        """Return True if the shown changes hide all evidence from all heads."""
        evidence = prompt.evidence(state)
        if evidence is None or not state.regions or state.blind == "chosen" or state.moment == "before":
            return False
        return not bool((evidence.bool() & ~prompt.region_tokens(state.regions).bool()).any())

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
        query = self.query(prompt, state)
        tokens = query.inputs.tokens
        evidence = prompt.evidence(state, tokens)
        evidence = torch.zeros_like(tokens.last) if evidence is None else evidence
        kind = query_kind(metric)
        queries = {kind: tokens.question if kind == "question" else query.mask}
        scoring = ScoringInputs(tokens, evidence, queries, torch.full_like(tokens.role, -1))
        with self.model.hooks(fwd_hooks=self._shown_hooks(prompt, state, tokens)):
            return score_heads(self.model, query.inputs, scoring, [metric], prompt.prefix)[state.metric][0]

    def _effects(self, prompt: PreparedPrompt) -> Float[Tensor, "layer head"]:
        """Drop of the answer's log-probability when each head is zeroed by itself."""
        answered = append_answers(self.model, prompt.inputs, [self.plain_answer(prompt).ids])
        return sweep(self.model, answered, at_once=8, progress=False).scores().values[0]

    def attention_rows(self, prompt: PreparedPrompt, state: ExplorerState) -> dict[Head, Float[Tensor, "position"]]:
        """Attention of the chosen heads from the chosen token."""

        def key(head: Head) -> Hashable:
            return ("row", head, state.token, state.shown_changes)

        if missing := [head for head in state.heads if key(head) not in prompt.results]:
            computed = self.rows_of(missing, prompt, state)
            prompt.results |= {key(head): row for head, row in computed.items()}
        return {head: prompt.results[key(head)] for head in state.heads}

    def rows_of(
        self, heads: Sequence[Head], prompt: PreparedPrompt, state: ExplorerState
    ) -> dict[Head, Float[Tensor, "position"]]:
        """Attention of any heads from the chosen token; not kept, since that of all heads takes much memory."""
        query = self.query(prompt, state)
        with self.model.hooks(fwd_hooks=self._shown_hooks(prompt, state, query.inputs.tokens)):
            _, cache = self.model.run_with_cache(
                query.inputs,
                prefix=prompt.prefix,
                queries=query.mask,
                names_filter=sorted({hook_name(head.layer, "attn.pattern") for head in heads}),
            )
        return {head: cache["pattern", head.layer][0, head.head, 0].cpu() for head in heads}

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

    def _shown_hooks(self, prompt: PreparedPrompt, state: ExplorerState, tokens: TokenMap) -> FwdHooks:
        """Changes that heads and maps are shown with."""
        return self._hooks(prompt, state, tokens) if state.moment == "after" else []


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
