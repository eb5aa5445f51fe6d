"""What the explorer shows: from a state to a view, through the same calls that a user of the library makes."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from corelens.answering import greedy_answers, with_answers
from corelens.causal import Said, Session, log_probability
from corelens.data import Evidence, Sample, evidence_tokens, prepare_batch
from corelens.heads import Head
from corelens.inputs import PreparedInputs
from corelens.interventions import FwdHooks, HeadOutputs, ablate, knock_out, mean_outputs
from corelens.measuring import Asked, Measure, measure
from corelens.media import load_picture
from corelens.metrics import PRESETS
from corelens.model import HookedMLLM
from corelens.prefix import Prefix
from corelens.scores import HeadScores
from corelens.tokens import Role, TokenMap
from corelens.viz.panels import Panel, data_url, panels_of, spread
from corelens.viz.script import GIVEN, script
from corelens.viz.state import ExplorerState
from corelens.viz.uploads import MOST_BYTES, decoded

MOST_SAMPLES = 100
MOST_MAPS = 6
"""Heads whose attention is shown at a time."""

MOST_UPLOADS = 8
LONGEST_ANSWER = 16
"""Tokens."""

N_ALTERNATIVES = 5
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


REFUSALS = (ValueError, TypeError, IndexError, ImportError, OSError, RuntimeError)
"""What a view that cannot be shown raises: mistakes are ValueErrors; others are a model's own, or a lack of memory."""


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


@dataclass(eq=False)
class Prompt:
    """A question about some pictures, prepared once for everything that is asked of it."""

    sample: Sample
    inputs: PreparedInputs
    prefix: Prefix | None
    """What comes before the question; None where the model has to run whole prompts."""

    panels: list[Panel]
    files: list[str]
    """The names of the files that own pictures came in."""

    known: dict[Hashable, Any] = field(default_factory=dict)
    """What was computed, by all that decides it."""

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]


class Explorer:
    """A model, and what there is to ask it. It keeps no state of its users: what it shows depends on theirs alone.

    Not to be used from two threads at once.
    """

    def __init__(
        self,
        model: HookedMLLM,
        samples: Iterable[Sample] = (),
        scores: HeadScores | None = None,
        given: str = GIVEN,
    ) -> None:
        """Prepares the gallery; the model does not run yet.

        Args:
            model: Any model whose answers follow its prompts.
            samples: The gallery, and what mean ablation averages over.
            scores: Scores of the model's heads; the top five percent are marked.
            given: Python code that makes `model`, `samples` and `scores`, for the code that reproduces a view.

        Raises:
            TypeError: If the model's decoder stands beside an encoder.
            ValueError: If there are too many samples, two have one id, or the scores are of another model's heads.
        """
        if model.hf_model.config.is_encoder_decoder:
            raise TypeError(
                f"{type(model.hf_model).__name__} has an encoder and a decoder: its answers do not follow the prompt, "
                f"and there is nothing to explore from the question on."
            )
        self.model, self.scores, self.given = model, scores, given
        chosen = list(islice(samples, MOST_SAMPLES + 1))
        if len(chosen) > MOST_SAMPLES:
            raise ValueError(
                f"the gallery holds at most {MOST_SAMPLES} samples: choose some, e.g. by itertools.islice."
            )
        self.samples = {sample.id: sample for sample in chosen}
        if len(self.samples) < len(chosen):
            raise ValueError("two samples of the gallery have the same id.")
        shape = (model.cfg.n_layers, model.cfg.n_heads)
        if scores is not None and scores.values.shape[1:] != shape:
            raise ValueError(
                f"the scores are of {tuple(scores.values.shape[1:])} layers and heads, and the model has {shape}."
            )
        self.core = () if scores is None else tuple(scores.top())
        self._uploads: dict[str, tuple[str, Image.Image]] = {}
        self._prompts: dict[Hashable, Prompt] = {}
        self._means: HeadOutputs | None = None

    # --- what does not change ---

    def about(self) -> dict[str, Any]:
        """What the front end has to know once, as JSON."""
        n_heads = [0] * self.model.cfg.n_layers
        for head in self.model.heads:
            n_heads[head.layer] += 1
        metrics = {**ON_EVIDENCE, **ANYWHERE}
        if self.scores is not None:
            metrics["scan"] = f"{self.scores.metric}, over {len(self.scores.samples)} samples"
        return {
            "model": self.model.cfg.model_name,
            "n_heads": n_heads,
            "metrics": metrics,
            "core": [str(head) for head in self.core],
            "core_name": "" if self.scores is None else self.scores.top().name,
            "gallery": [self._thumbnail(sample) for sample in self.samples.values()],
            "most_maps": MOST_MAPS,
            "most_bytes": MOST_BYTES,
            "first": self.first().json(),
        }

    def first(self) -> ExplorerState:
        """Where an exploration begins: the first sample, and the head that looks most at what it asks about."""
        sample = next(iter(self.samples.values()), None)
        if sample is None:
            return ExplorerState(metric="visual_share")
        state = ExplorerState(sample.id, metric="ram" if sample.evidence else "visual_share")
        with torch.no_grad():
            prompt = self._prompt(state)
            assert prompt is not None  # a sample is asked about
            values = self._scored(prompt, state)
        best = int(values.nan_to_num(-torch.inf).argmax())
        return replace(state, heads=(Head(*divmod(best, values.shape[1])),))

    def add_picture(self, key: str, name: str, data: bytes) -> None:
        """Takes an own picture, which states then name by its key; the same one again changes nothing.

        Raises:
            ValueError: If it cannot be read; see `decoded`.
        """
        if key not in self._uploads:
            self._uploads[key] = (name, decoded(data))
            while len(self._uploads) > MOST_UPLOADS:
                del self._uploads[next(iter(self._uploads))]

    # --- what a state shows ---

    def prompt(self, state: ExplorerState) -> dict[str, Any] | None:
        """What is asked, as JSON; None if that is nothing. The same for all states with the same `prompt_key`."""
        if (prompt := self._prompt(state)) is None:
            return None
        tokens = prompt.inputs.tokens
        text = self.model.processor.tokenizer
        return {
            "key": self.prompt_key(state),
            "question": prompt.sample.question,
            "expected": prompt.sample.answer,
            "panels": [asdict(panel) for panel in prompt.panels],
            "no_boxes": tokens.no_boxes,
            "evidence": ExplorerState(evidence=prompt.sample.evidence).json()["evidence"],
            "tokens": [
                {
                    "position": position,
                    "text": text.decode([int(prompt.inputs["input_ids"][0, position])]),
                    "role": Role(int(tokens.role[0, position])).name.lower(),
                }
                for position in _askers(prompt)
            ],
        }

    def prompt_key(self, state: ExplorerState) -> str:
        """Equal where the same is asked of the same pictures."""
        return repr((state.sample, state.pictures, state.question))

    def look(self, state: ExplorerState, cancelled: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """What a state shows, as JSON.

        Args:
            state: What the user has chosen.
            cancelled: Asked before every layer of every pass whether to give up.

        Raises:
            ValueError: If the state asks for what there is not: a head, a position, a region, a picture.
            Cancelled: If `cancelled` said so. The model and all that is known are as before.
        """
        with _stopping(self.model, cancelled), torch.no_grad():
            prompt = self._prompt(state)
            if prompt is None:
                return {"state": state.json(), "prompt": "", "note": "Drop a picture here, or type a question."}
            return self._view(prompt, state)

    def _view(self, prompt: Prompt, state: ExplorerState) -> dict[str, Any]:
        self.model.check_heads((*state.heads, *state.ablated))
        if len(state.heads) > MOST_MAPS:
            raise ValueError(f"{len(state.heads)} heads are chosen; the attention of {MOST_MAPS} is shown at most.")
        plain = self._plain(prompt)
        after = prompt.once(("answer", state.changes), lambda: self._answered(prompt, state, plain))
        evidence = self._evidence(prompt, state)
        note, values = "", None
        if evidence is None and state.metric in ON_EVIDENCE:
            note = "Mark the evidence in the picture to see which heads look at it."
        else:
            key = ("heads", state.metric, state.token, state.evidence, state.shown_changes)
            values = prompt.once(key, lambda: self._scored(prompt, state))
        rows = self._rows(prompt, state)
        return {
            "state": state.json(),
            "prompt": self.prompt_key(state),
            "note": note,
            "map": None if values is None else _short(values),
            "maps": [self._map(prompt, head, row, evidence) for head, row in rows.items()],
            "before": self._told(plain),
            "after": self._told(after),
            "alternatives": self._alternatives(plain, after),
            "code": script(self.given, state, prompt.sample, prompt.files, LONGEST_ANSWER),
        }

    # --- the prompt ---

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
        if missing := [key for key in state.pictures if key not in self._uploads]:
            raise ValueError(f"{len(missing)} of the pictures are not here any more; drop them again.")
        if not state.question:
            return None
        return Sample("own", state.question, "", tuple(self._uploads[key][1] for key in state.pictures))

    def _prompt(self, state: ExplorerState) -> Prompt | None:
        key = self.prompt_key(state)
        if key not in self._prompts:
            if (sample := self._asked(state)) is None:
                return None
            inputs = prepare_batch(self.model, [sample])
            try:
                prefix = self.model.prefix(inputs)
            except ValueError:
                prefix = None  # nothing before the question, or no cache to share: whole prompts it is
            panels = panels_of(sample, inputs.tokens, self.model.processor)
            # Two, for two tabs: keys and values of a large model's prompt take much memory.
            self._prompts = dict(list(self._prompts.items())[-1:])
            files = [] if state.sample else [self._uploads[name][0] for name in state.pictures]
            self._prompts[key] = Prompt(sample, inputs, prefix, panels, files)
        return self._prompts[key]

    def _looking(self, prompt: Prompt, state: ExplorerState) -> Bool[Tensor, "1 position"]:
        """The one token whose attention is shown."""
        last = prompt.inputs.tokens.last
        if state.token is None:
            return last
        if state.token not in _askers(prompt):
            raise ValueError(f"position {state.token} is not one of the question or after it, which can be seen here.")
        chosen = torch.zeros_like(last)
        chosen[0, state.token] = True
        return chosen

    def _evidence(self, prompt: Prompt, state: ExplorerState) -> Tensor | None:
        regions = prompt.sample.evidence if state.evidence is None else state.evidence
        return _tokens_of(prompt, regions) if regions else None

    # --- passes ---

    def _hooks(self, prompt: Prompt, state: ExplorerState, tokens: TokenMap | None = None) -> FwdHooks:
        """The changes of a state as an intervention on the prompt, or on the prompt with an answer behind it."""
        instead = None
        if state.ablated and state.how == "mean":
            if not self.samples:
                raise ValueError("there is no gallery whose mean could stand in for what heads find; ablate by zero.")
            self._means = self._means or mean_outputs(self.model, self.samples.values())
            instead = self._means
        hooks = ablate(sorted(state.ablated), state.how, instead, positions="from_question")
        if state.regions:
            heads = self.model.heads if state.blind == "all" else sorted(state.heads)
            hooks += knock_out(heads, "from_question", _tokens_of(prompt, state.regions, tokens).bool())
        return hooks

    def _shown(self, prompt: Prompt, state: ExplorerState) -> FwdHooks:
        """The changes that heads and maps are shown with."""
        return self._hooks(prompt, state) if state.moment == "after" else []

    def _scored(self, prompt: Prompt, state: ExplorerState) -> Float[Tensor, "layer head"]:
        """What colours the heads."""
        if state.metric == "scan" and self.scores is not None:
            return self.scores.per_head
        if state.metric == "effect":
            return prompt.once("effect", lambda: self._effects(prompt))
        if state.metric not in ON_EVIDENCE | ANYWHERE:
            raise ValueError(f"there is no measure {state.metric!r} to colour heads by.")
        one: Measure = PRESETS.get(state.metric, state.metric)
        tokens = prompt.inputs.tokens
        evidence = self._evidence(prompt, state)
        evidence = torch.zeros_like(tokens.last) if evidence is None else evidence
        asked = Asked(tokens, evidence, {"last": self._looking(prompt, state)}, torch.full_like(tokens.role, -1))
        with self.model.hooks(fwd_hooks=self._shown(prompt, state)):
            return measure(self.model, prompt.inputs, asked, [one], prompt.prefix)[state.metric][0]

    def _effects(self, prompt: Prompt) -> Float[Tensor, "layer head"]:
        """By how much the answer's log-probability drops when each head is zeroed by itself."""
        asked = with_answers(self.model, prompt.inputs, [self._plain(prompt).ids])
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

    def _rows(self, prompt: Prompt, state: ExplorerState) -> dict[Head, Float[Tensor, "position"]]:
        """Where the chosen heads look from the chosen token."""

        def key(head: Head) -> Hashable:
            return ("row", head, state.token, state.shown_changes)

        if new := [head for head in state.heads if key(head) not in prompt.known]:
            with self.model.hooks(fwd_hooks=self._shown(prompt, state)):
                _, cache = self.model.run_with_cache(
                    prompt.inputs,
                    prefix=prompt.prefix,
                    queries=self._looking(prompt, state),
                    names_filter=sorted({f"blocks.{head.layer}.attn.hook_pattern" for head in new}),
                )
            for head in new:
                prompt.known[key(head)] = cache["pattern", head.layer][0, head.head, 0].cpu()
        return {head: prompt.known[key(head)] for head in state.heads}

    def _plain(self, prompt: Prompt) -> Answer:
        """What the model says as it is."""
        return prompt.once(("answer", ExplorerState().changes), lambda: self._answered(prompt, ExplorerState(), None))

    def _answered(self, prompt: Prompt, state: ExplorerState, plain: Answer | None) -> Answer:
        """What the model says under the changes of a state, and how sure it is."""
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

    # --- as JSON ---

    def _map(self, prompt: Prompt, head: Head, row: Tensor, evidence: Tensor | None) -> dict[str, Any]:
        tokens = prompt.inputs.tokens.to("cpu")
        return {
            "head": str(head),
            "cells": _short(spread(tokens, prompt.panels, row)),
            "tokens": _short(row[_askers(prompt)]),
            "on_pictures": _short(row[tokens.visual[0]].sum()),
            "on_evidence": None if evidence is None else _short((row * evidence[0].to(row)).sum()),
        }

    def _told(self, answer: Answer) -> dict[str, Any]:
        cut = len(answer.ids) == LONGEST_ANSWER
        return {
            "text": self._text(answer.ids) + " …" * cut,
            "probability": _short(answer.probability),
            "of_plain": _short(answer.of_plain),
        }

    def _alternatives(self, plain: Answer, after: Answer) -> list[dict[str, Any]]:
        """What the first token could be, before and after; the likeliest of either, those of before first."""
        likely = [
            *plain.first.topk(N_ALTERNATIVES).indices.tolist(),
            *after.first.topk(N_ALTERNATIVES).indices.tolist(),
        ]
        return [
            {"text": self._text([token]), "before": _short(plain.first[token]), "after": _short(after.first[token])}
            for token in dict.fromkeys(likely)
        ]

    def _text(self, ids: list[int]) -> str:
        """Text of tokens; those that end answers and have no text by their names."""
        tokenizer = self.model.processor.tokenizer
        return tokenizer.decode(ids, skip_special_tokens=True).strip() or tokenizer.decode(ids)

    def _thumbnail(self, sample: Sample) -> dict[str, Any]:
        src = data_url(load_picture(sample.images[0]), 64) if sample.images else ""
        return {"id": sample.id, "question": sample.question, "src": src}


def _askers(prompt: Prompt) -> list[int]:
    """The positions that can look: the question, and the end of the prompt."""
    return prompt.inputs.tokens.from_question[0].nonzero()[:, 0].tolist()


def _tokens_of(prompt: Prompt, regions: Sequence[Evidence], tokens: TokenMap | None = None) -> Tensor:
    """The visual tokens that some regions overlap."""
    return evidence_tokens([replace(prompt.sample, evidence=tuple(regions))], tokens or prompt.inputs.tokens)


def _short(values: Tensor | float | int) -> Any:
    """Numbers as JSON with four digits that count, which is what can be read; None where there is none."""
    numbers = torch.as_tensor(values).double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (3 - np.floor(np.log10(np.abs(numbers))))
        rounded = np.where(numbers == 0, 0.0, np.round(numbers * scale) / scale)
    return np.where(np.isfinite(rounded), rounded.astype(object), np.array(None)).tolist()


@contextmanager
def _stopping(model: HookedMLLM, cancelled: Callable[[], bool]) -> Iterator[None]:
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
