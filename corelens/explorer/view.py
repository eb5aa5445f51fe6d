"""The explorer: from a state to a view, through the same calls that a user of the library makes."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corelens.data import Sample
from corelens.explorer.code_export import DEFAULT_SETUP, export_code
from corelens.explorer.compute import MAX_ANSWER_TOKENS, Answer, ExplorerPasses, Query, cancellable
from corelens.explorer.prompts import NEED_EVIDENCE, NEED_NO_EVIDENCE, UNITS, PreparedPrompt, PromptCache
from corelens.explorer.state import ExplorerState
from corelens.explorer.uploads import MAX_BYTES
from corelens.explorer.wall import wall_json
from corelens.heads import Head
from corelens.inputs.media import load_picture
from corelens.inputs.prepare import unknown_words
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.tokens import Role
from corelens.viz.panels import PIXELS, View, data_url, flatten_panels
from corelens.viz.styles import ABLATED, ACCENT, DARK, HEAT, LIGHT

MAX_MAPS = 16
"""Most heads whose attention is shown at a time."""

PANEL_PIXELS = 100_000
"""Pixels that each of many pictures may have, since each can be shown large."""

N_ALTERNATIVES = 5
_TEMPLATES: dict[str, Any] = {"light": LIGHT, "dark": DARK}
COLOURS = {
    "attention": HEAT,
    "core": ACCENT,
    "ablated": ABLATED,
    "heads": {
        theme: {kind: [*map(list, template.layout.colorscale[kind])] for kind in ("sequential", "diverging")}
        for theme, template in _TEMPLATES.items()
    },
}
"""Colours of the figures: the page shows the same things in the same ones."""

VIEW_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, ImportError, OSError, RuntimeError)
"""Errors of a state that cannot be shown: mistakes are ValueErrors; others are a model's own, or a lack of memory."""


class Explorer:
    """A model and a gallery to explore. It holds no state of its users: a view depends on the state alone.

    Not to be used from two threads at once.
    """

    def __init__(
        self,
        model: HookedMLLM,
        samples: Iterable[Sample] = (),
        scores: HeadScores | None = None,
        setup_code: str = DEFAULT_SETUP,
    ) -> None:
        """Take the gallery; the model does not run yet.

        Args:
            model: Any model whose answers follow its prompts.
            samples: The gallery, which mean ablation averages over.
            scores: Scores of the model's heads; the top five percent are marked.
            setup_code: Python code that defines `model`, `samples` and `scores`, for the code that reproduces a view.

        Raises:
            TypeError: If the model has an encoder and a decoder.
            ValueError: If there are too many samples, two have one id, or the scores are of another model's heads.
        """
        if model.hf_model.config.is_encoder_decoder:
            raise TypeError(
                f"{type(model.hf_model).__name__} has an encoder and a decoder: its answers do not follow the prompt, "
                f"and there is nothing to explore from the question on."
            )
        self.model, self.scores, self.setup_code = model, scores, setup_code
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

    def about(self) -> dict[str, Any]:
        """Return what the front end needs once, as JSON."""
        n_heads = [0] * self.model.cfg.n_layers
        for head in self.model.heads:
            n_heads[head.layer] += 1
        metrics = {**NEED_EVIDENCE, **NEED_NO_EVIDENCE}
        if self.scores is not None:
            metrics["scan"] = f"{self.scores.metric}, over {len(self.scores.samples)} samples"
        return {
            "model": self.model.cfg.model_name,
            "n_heads": n_heads,
            "metrics": metrics,
            "units": UNITS,
            "colours": COLOURS,
            "core": [str(head) for head in self.core],
            "core_name": "" if self.scores is None else self.scores.top().name,
            "gallery": [self._thumbnail(sample) for sample in self.samples.values()],
            "most_maps": MAX_MAPS,
            "most_bytes": MAX_BYTES,
            "first": self.first().json(),
        }

    def first(self) -> ExplorerState:
        """Return the initial state: the first sample, and the head that attends most to its evidence or pictures."""
        sample = next(iter(self.samples.values()), None)
        if sample is None:
            return ExplorerState(metric="visual_share")
        state = ExplorerState(sample.id, metric="ram" if sample.evidence else "visual_share")
        with torch.no_grad():
            prompt = self.prompts.get(state)
            assert prompt is not None  # a sample has a question
            # The picture shows the attention of one token, at first the last one.
            shown = replace(state, metric="ram_last") if sample.evidence else state
            values = self._passes.head_values(prompt, shown)
        best = int(values.nan_to_num(-torch.inf).argmax())
        return replace(state, heads=(Head(*divmod(best, values.shape[1])),))

    def prompt(self, state: ExplorerState) -> dict[str, Any] | None:
        """Return the prompt as JSON; None if there is no question. Equal for states with one `prompts.key`."""
        prompt = self.prompts.get(state)
        if prompt is None:
            return None
        tokens = prompt.inputs.tokens
        tokenizer = self.model.processor.tokenizer
        return {
            "key": self.prompts.key(state),
            "question": prompt.sample.question,
            "expected": prompt.sample.answer,
            "note": unknown_words(tokenizer, prompt.inputs),
            "panels": [_panel_json(view, max(PIXELS // len(prompt.views), PANEL_PIXELS)) for view in prompt.views],
            "no_boxes": tokens.no_boxes,
            "evidence": ExplorerState(evidence=prompt.sample.evidence).json()["evidence"],
            "tokens": [
                {
                    "position": position,
                    "text": tokenizer.decode([int(prompt.inputs["input_ids"][0, position])]),
                    "role": Role(int(tokens.role[0, position])).name.lower(),
                }
                for position in prompt.query_positions
            ],
        }

    def view(self, state: ExplorerState, cancelled: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Compute the view of a state, as JSON.

        Args:
            state: The user's choices.
            cancelled: Called before every layer of every pass; True ends the computation.

        Raises:
            ValueError: If the state names a head, position, region or picture that does not exist.
            Cancelled: If `cancelled` returned True. The model and all earlier results are as before.
        """
        with cancellable(self.model, cancelled), torch.no_grad():
            prompt = self.prompts.get(state)
            if prompt is None:
                return {"state": state.json(), "prompt": "", "note": "Drop a picture here, or type a question."}
            return self._view_of_prompt(prompt, state)

    def _view_of_prompt(self, prompt: PreparedPrompt, state: ExplorerState) -> dict[str, Any]:
        self.model.check_heads((*state.heads, *state.ablated))
        if len(state.heads) > MAX_MAPS:
            raise ValueError(f"{len(state.heads)} heads are chosen; the attention of {MAX_MAPS} is shown at most.")
        plain, changed = self._passes.plain_answer(prompt), self._passes.answer(prompt, state)
        coloured = replace(state, metric=prompt.usable_metric(state))
        values, query = self._passes.head_values(prompt, coloured), self._passes.query(prompt, state)
        rows = self._passes.attention_rows(prompt, state)
        evidence = prompt.evidence(state, query.inputs.tokens)
        is_of_answer = query.position >= prompt.inputs["input_ids"].shape[1]
        return {
            "state": state.json(),
            "prompt": self.prompts.key(state),
            "metric": coloured.metric,
            "unmarked": ""
            if coloured == state
            else (
                f"No evidence is marked for this question, so heads are not coloured by "
                f"“{NEED_EVIDENCE[state.metric]}” but by “{NEED_NO_EVIDENCE[coloured.metric]}”."
            ),
            "hidden": coloured.metric in NEED_EVIDENCE and self._passes.hides_evidence(prompt, state),
            "without_core": _rounded(self._passes.without(prompt, self.core)) if self.core else None,
            "map": _rounded(values),
            "query": query.position,
            "maps": [self._map_json(prompt, query, head, row, evidence) for head, row in rows.items()],
            "wall": self._wall(prompt, state, query) if state.wall else None,
            "before": self._answer_json(prompt, plain),
            "after": self._answer_json(prompt, changed),
            "alternatives": self._alternatives(plain, changed),
            "code": export_code(
                self.setup_code,
                replace(coloured, token=None if state.token is None else query.position),
                prompt.sample,
                prompt.file_names,
                MAX_ANSWER_TOKENS,
                is_of_answer,
            ),
        }

    def _map_json(
        self, prompt: PreparedPrompt, query: Query, head: Head, row: Tensor, evidence: Tensor | None
    ) -> dict[str, Any]:
        tokens = query.inputs.tokens.to("cpu")
        return {
            "head": str(head),
            "cells": _rounded(flatten_panels(tokens, prompt.views, row)),
            "tokens": _rounded(row[prompt.query_positions]),
            "on_pictures": _rounded(row[tokens.visual[0]].sum()),
            "on_evidence": None if evidence is None else _rounded((row * evidence[0].to(row)).sum()),
        }

    def _wall(self, prompt: PreparedPrompt, state: ExplorerState, query: Query) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            rows = self._passes.rows_of(self.model.heads, prompt, state)
            return wall_json(query.inputs.tokens.to("cpu"), prompt.views, rows)

        return prompt.cached(("wall", state.token, state.shown_changes), compute)

    def _answer_json(self, prompt: PreparedPrompt, answer: Answer) -> dict[str, Any]:
        """The answer, and its tokens with the positions that predicted them."""
        before = prompt.inputs["input_ids"].shape[1] - 1
        is_cut = len(answer.ids) == MAX_ANSWER_TOKENS
        return {
            "text": self._decode(answer.ids) + " …" * is_cut,
            "probability": _rounded(answer.probability),
            "of_plain": _rounded(answer.plain_probability),
            "tokens": [
                {"text": self._decode([token]), "position": before + number} for number, token in enumerate(answer.ids)
            ],
        }

    def _alternatives(self, plain: Answer, changed: Answer) -> list[dict[str, Any]]:
        """Likeliest first tokens before and after the changes, those before them first."""
        likeliest = [
            *plain.first_token.topk(N_ALTERNATIVES).indices.tolist(),
            *changed.first_token.topk(N_ALTERNATIVES).indices.tolist(),
        ]
        return [
            {
                "text": self._decode([token]),
                "before": _rounded(plain.first_token[token]),
                "after": _rounded(changed.first_token[token]),
            }
            for token in dict.fromkeys(likeliest)
        ]

    def _decode(self, ids: list[int]) -> str:
        """Text of tokens; special tokens by their names if there is no other text."""
        tokenizer = self.model.processor.tokenizer
        return tokenizer.decode(ids, skip_special_tokens=True).strip() or tokenizer.decode(ids)

    def _thumbnail(self, sample: Sample) -> dict[str, Any]:
        src = data_url(load_picture(sample.images[0]), 64 * 64) if sample.images else ""
        return {"id": sample.id, "question": sample.question, "src": src}


def _panel_json(view: View, n_pixels: int) -> dict[str, Any]:
    return {
        "media": view.media,
        "label": view.name,
        "src": data_url(view.picture, n_pixels),
        "width": view.picture.width,
        "height": view.picture.height,
        "seconds": view.seconds,
        "grids": [asdict(grid) for grid in view.grids],
    }


def _rounded(values: Tensor | float | int) -> Any:
    """Numbers as JSON with four significant digits; None for those that are not finite."""
    numbers = torch.as_tensor(values).double().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (3 - np.floor(np.log10(np.abs(numbers))))
        rounded = np.where(numbers == 0, 0.0, np.round(numbers * scale) / scale)
    return np.where(np.isfinite(rounded), rounded.astype(object), np.array(None)).tolist()
