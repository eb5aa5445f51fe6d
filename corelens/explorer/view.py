"""What the explorer shows: from a state to a view, through the same calls that a user of the library makes."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corelens.data import Sample
from corelens.explorer.code_export import GIVEN, script
from corelens.explorer.compute import (
    ANYWHERE,
    MAX_ANSWER_TOKENS,
    ON_EVIDENCE,
    Answer,
    ExplorerPasses,
    PreparedPrompt,
    PromptCache,
    stopping,
)
from corelens.explorer.state import ExplorerState
from corelens.explorer.uploads import MOST_BYTES
from corelens.heads import Head
from corelens.inputs.media import load_picture
from corelens.inputs.prepare import unknown_words
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import Role
from corelens.viz.panels import PIXELS, View, data_url, flatten_panels

MOST_MAPS = 6
"""Heads whose attention is shown at a time."""

N_ALTERNATIVES = 5
REFUSALS = (ValueError, TypeError, IndexError, ImportError, OSError, RuntimeError)
"""What a view that cannot be shown raises: mistakes are ValueErrors; others are a model's own, or a lack of memory."""


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
        """Takes the gallery; the model does not run yet.

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
        self.prompts = PromptCache(model, samples)
        shape = (model.cfg.n_layers, model.cfg.n_heads)
        if scores is not None and scores.values.shape[1:] != shape:
            raise ValueError(
                f"the scores are of {tuple(scores.values.shape[1:])} layers and heads, and the model has {shape}."
            )
        self.core = () if scores is None else tuple(scores.top())
        self._passes = ExplorerPasses(model, self.samples.values(), scores)

    @property
    def samples(self) -> dict[str, Sample]:
        """The gallery, by id."""
        return self.prompts.samples

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
            prompt = self.prompts.of(state)
            assert prompt is not None  # a sample is asked about
            values = self._passes.scored(prompt, state)
            assert values is not None  # it says where its evidence is, or needs none
        best = int(values.nan_to_num(-torch.inf).argmax())
        return replace(state, heads=(Head(*divmod(best, values.shape[1])),))

    # --- what a state shows ---

    def prompt(self, state: ExplorerState) -> dict[str, Any] | None:
        """What is asked, as JSON; None if that is nothing. The same for all states with the same `prompts.key`."""
        if (prompt := self.prompts.of(state)) is None:
            return None
        tokens = prompt.inputs.tokens
        text = self.model.processor.tokenizer
        return {
            "key": self.prompts.key(state),
            "question": prompt.sample.question,
            "expected": prompt.sample.answer,
            "note": unknown_words(text, prompt.inputs),
            "panels": [_panel(view, PIXELS // len(prompt.views)) for view in prompt.views],
            "no_boxes": tokens.no_boxes,
            "evidence": ExplorerState(evidence=prompt.sample.evidence).json()["evidence"],
            "tokens": [
                {
                    "position": position,
                    "text": text.decode([int(prompt.inputs["input_ids"][0, position])]),
                    "role": Role(int(tokens.role[0, position])).name.lower(),
                }
                for position in prompt.askers
            ],
        }

    def look(self, state: ExplorerState, cancelled: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """What a state shows, as JSON.

        Args:
            state: What the user has chosen.
            cancelled: Asked before every layer of every pass whether to give up.

        Raises:
            ValueError: If the state asks for what there is not: a head, a position, a region, a picture.
            Cancelled: If `cancelled` said so. The model and all that is known are as before.
        """
        with stopping(self.model, cancelled), torch.no_grad():
            prompt = self.prompts.of(state)
            if prompt is None:
                return {"state": state.json(), "prompt": "", "note": "Drop a picture here, or type a question."}
            return self._view(prompt, state)

    def _view(self, prompt: PreparedPrompt, state: ExplorerState) -> dict[str, Any]:
        self.model.check_heads((*state.heads, *state.ablated))
        if len(state.heads) > MOST_MAPS:
            raise ValueError(f"{len(state.heads)} heads are chosen; the attention of {MOST_MAPS} is shown at most.")
        plain, after = self._passes.plain(prompt), self._passes.answer(prompt, state)
        values, evidence = self._passes.scored(prompt, state), prompt.evidence(state)
        rows = self._passes.rows(prompt, state)
        return {
            "state": state.json(),
            "prompt": self.prompts.key(state),
            "note": "Mark the evidence in the picture, or colour heads by another measure." if values is None else "",
            "map": None if values is None else _short(values),
            "maps": [self._map(prompt, head, row, evidence) for head, row in rows.items()],
            "before": self._told(plain),
            "after": self._told(after),
            "alternatives": self._alternatives(plain, after),
            "code": script(self.given, state, prompt.sample, prompt.files, MAX_ANSWER_TOKENS),
        }

    # --- as JSON ---

    def _map(self, prompt: PreparedPrompt, head: Head, row: Tensor, evidence: Tensor | None) -> dict[str, Any]:
        tokens = prompt.inputs.tokens.to("cpu")
        return {
            "head": str(head),
            "cells": _short(flatten_panels(tokens, prompt.views, row)),
            "tokens": _short(row[prompt.askers]),
            "on_pictures": _short(row[tokens.visual[0]].sum()),
            "on_evidence": None if evidence is None else _short((row * evidence[0].to(row)).sum()),
        }

    def _told(self, answer: Answer) -> dict[str, Any]:
        cut = len(answer.ids) == MAX_ANSWER_TOKENS
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
        src = data_url(load_picture(sample.images[0]), 64 * 64) if sample.images else ""
        return {"id": sample.id, "question": sample.question, "src": src}


def _panel(view: View, n_pixels: int) -> dict[str, Any]:
    return {
        "media": view.media,
        "label": view.name,
        "src": data_url(view.picture, n_pixels),
        "width": view.picture.width,
        "height": view.picture.height,
        "seconds": view.seconds,
        "grids": [asdict(grid) for grid in view.grids],
    }


def _short(values: Tensor | float | int) -> Any:
    """Numbers as JSON with four digits that count, which is what can be read; None where there is none."""
    numbers = torch.as_tensor(values).double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (3 - np.floor(np.log10(np.abs(numbers))))
        rounded = np.where(numbers == 0, 0.0, np.round(numbers * scale) / scale)
    return np.where(np.isfinite(rounded), rounded.astype(object), np.array(None)).tolist()
