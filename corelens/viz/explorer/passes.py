"""What the model says and where it looks under the changes of a state, each computed once for a prompt."""

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from corelens.answering import greedy_answers, with_answers
from corelens.causal import Said, Session, log_probability
from corelens.data import Sample
from corelens.heads import Head
from corelens.interventions import FwdHooks, HeadOutputs, ablate, knock_out, mean_outputs
from corelens.measuring import Asked, Measure, measure
from corelens.metrics import PRESETS
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import TokenMap
from corelens.viz.explorer.prompts import Prompt
from corelens.viz.explorer.state import ExplorerState

LONGEST_ANSWER = 16
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


class Passes:
    """Runs a model on prompts; what was computed once is kept with the prompt."""

    def __init__(self, model: HookedMLLM, samples: Collection[Sample], scores: HeadScores | None) -> None:
        """`samples` are what mean ablation averages over; `scores` are of a scan."""
        self.model, self.samples, self.scores = model, samples, scores
        self.means: HeadOutputs | None = None

    def plain(self, prompt: Prompt) -> Answer:
        """What the model says as it is."""
        return prompt.once(("answer", ExplorerState().changes), lambda: self._answered(prompt, ExplorerState(), None))

    def answer(self, prompt: Prompt, state: ExplorerState) -> Answer:
        """What it says under the changes of a state, and how sure it is."""
        plain = self.plain(prompt)
        return prompt.once(("answer", state.changes), lambda: self._answered(prompt, state, plain))

    def _answered(self, prompt: Prompt, state: ExplorerState, plain: Answer | None) -> Answer:
        with self.model.hooks(fwd_hooks=self._hooks(prompt, state)):
            (ids,) = greedy_answers(self.model, prompt.inputs, LONGEST_ANSWER, prompt.prefix)
        of_own, first = self._probability(prompt, state, ids)
        of_plain = of_own if plain is None or plain.ids == ids else self._probability(prompt, state, plain.ids)[0]
        return Answer(ids, of_own, of_plain, first)

    def _probability(
        self, prompt: Prompt, state: ExplorerState, ids: list[int]
    ) -> tuple[float, Float[Tensor, "vocabulary"]]:
        """How probable an answer is, and what its first token could be."""
        asked = with_answers(self.model, prompt.inputs, [ids])
        with self.model.hooks(fwd_hooks=self._hooks(prompt, state, asked.tokens)):
            logits = self.model(asked, prefix=prompt.prefix)
        said = Said.of(logits, asked, 0 if prompt.prefix is None else prompt.prefix.length)
        return float(log_probability(said, said).exp()), said.log_probs[0, 0].exp().cpu()

    def scored(self, prompt: Prompt, state: ExplorerState) -> Float[Tensor, "layer head"] | None:
        """What colours the heads; None if that needs evidence, and there is none."""
        if state.metric in ON_EVIDENCE and prompt.evidence(state) is None:
            return None
        key = ("heads", state.metric, state.token, state.evidence, state.shown_changes)
        return prompt.once(key, lambda: self._scored(prompt, state))

    def _scored(self, prompt: Prompt, state: ExplorerState) -> Float[Tensor, "layer head"]:
        if state.metric == "scan" and self.scores is not None:
            return self.scores.per_head
        if state.metric == "effect":
            return prompt.once("effect", lambda: self._effects(prompt))
        if state.metric not in ON_EVIDENCE | ANYWHERE:
            raise ValueError(f"there is no measure {state.metric!r} to colour heads by.")
        one: Measure = PRESETS.get(state.metric, state.metric)
        tokens = prompt.inputs.tokens
        evidence = prompt.evidence(state)
        evidence = torch.zeros_like(tokens.last) if evidence is None else evidence
        asked = Asked(tokens, evidence, {"last": prompt.looking(state)}, torch.full_like(tokens.role, -1))
        with self.model.hooks(fwd_hooks=self._shown(prompt, state)):
            return measure(self.model, prompt.inputs, asked, [one], prompt.prefix)[state.metric][0]

    def _effects(self, prompt: Prompt) -> Float[Tensor, "layer head"]:
        """By how much the answer's log-probability drops when each head is zeroed by itself."""
        asked = with_answers(self.model, prompt.inputs, [self.plain(prompt).ids])
        session = Session(self.model, asked)
        said = partial(Said.of, inputs=asked, first=session.first)
        before = said(session.plain)
        values = torch.full((self.model.cfg.n_layers, self.model.cfg.n_heads), torch.nan)
        heads = self.model.heads
        for start in range(0, len(heads), 8):
            some = heads[start : start + 8]
            zeroed = [ablate([head], positions="from_question") for head in some]
            for head, logits in zip(some, session.logits_of_each(zeroed), strict=True):
                drop = log_probability(before, before) - log_probability(said(logits), before)
                values[head] = float(drop)
        return values

    def rows(self, prompt: Prompt, state: ExplorerState) -> dict[Head, Float[Tensor, "position"]]:
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

    def _hooks(self, prompt: Prompt, state: ExplorerState, tokens: TokenMap | None = None) -> FwdHooks:
        """The changes of a state as an intervention on the prompt, or on the prompt with an answer behind it."""
        instead = None
        if state.ablated and state.how == "mean":
            if not self.samples:
                raise ValueError("there is no gallery whose mean could stand in for what heads find; ablate by zero.")
            self.means = self.means or mean_outputs(self.model, self.samples)
            instead = self.means
        hooks = ablate(sorted(state.ablated), state.how, instead, positions="from_question")
        if state.regions:
            heads = self.model.heads if state.blind == "all" else sorted(state.heads)
            hooks += knock_out(heads, "from_question", prompt.tokens_of(state.regions, tokens).bool())
        return hooks

    def _shown(self, prompt: Prompt, state: ExplorerState) -> FwdHooks:
        """The changes that heads and maps are shown with."""
        return self._hooks(prompt, state) if state.moment == "after" else []


@contextmanager
def stopping(model: HookedMLLM, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Lets passes end before their next layer once somebody says so."""

    def ask(module: Any, args: Any) -> None:
        if cancelled():
            raise Cancelled

    handles = [site.block.register_forward_pre_hook(ask) for site in model._sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
