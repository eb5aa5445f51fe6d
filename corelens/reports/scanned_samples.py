"""Samples of a finished scan, drawn under the attention of its heads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.data import Sample, prepare_batch
from corelens.experiments.fingerprint import model_fingerprint, samples_hash
from corelens.experiments.layer_scores import DESCRIPTIVE_METRICS
from corelens.experiments.resumable import SampleSets, flatten_datasets
from corelens.experiments.run_folder import RunFolder
from corelens.heads import Head, HeadSet
from corelens.hooks.points import hook_name
from corelens.inputs.media import load_clip
from corelens.model import HookedMLLM
from corelens.reports.scan import both_ends
from corelens.scores import HeadScores
from corelens.tokens import TokenMap
from corelens.viz import attention_over_media
from corelens.viz.panels import media_views
from corelens.viz.styles import literal

N_PIXELS = 120_000
"""Most pixels of the pictures of one sample, so that a page of several samples stays small."""

MAX_PANELS = 12
"""Most pictures, pages and frames of a sample that are drawn."""


@dataclass(frozen=True)
class Drawn:
    """Samples at both ends of the scores of some heads."""

    figures: Mapping[tuple[Head, int], go.Figure | str]
    """By head and number of the sample; the reason where one cannot be drawn."""

    attention: str
    """The attention that they show, in words."""


@dataclass(frozen=True)
class ScannedSamples:
    """The samples of a scan, and the model that it was of."""

    model: HookedMLLM
    samples: Mapping[tuple[str, str], Sample]
    """By data set and id."""

    @classmethod
    def of(cls, scan: RunFolder, samples: SampleSets, load: Callable[[], HookedMLLM]) -> "ScannedSamples":
        """Load the model of a scan for its samples.

        Args:
            scan: The run folder of the scan.
            samples: Its samples.
            load: Loads its model; called only if the samples are those of the scan.

        Raises:
            ValueError: If samples or model are others.
        """
        listed = flatten_datasets(samples)
        if samples_hash(listed) != scan.manifest["samples sha256"]:
            raise ValueError(
                f"the data are other samples than the {scan.manifest['samples']:,} of {scan.folder}: give --data, "
                f"--limit and --seed as the scan had them."
            )
        model = load()
        if (weights := model_fingerprint(model, whole=True)["weights"]) != scan.manifest["weights"]:
            raise ValueError(
                f"{model.cfg.model_name} has the weights {weights}, and those of {scan.folder} were "
                f"{scan.manifest['weights']}: load the model that was scanned."
            )
        return cls(model, {(name, sample.id): sample for name, sample in listed})

    def draw(self, scores: HeadScores, heads: HeadSet) -> Drawn:
        """Draw the samples at both ends of the scores of each head, in one pass for each sample."""
        of_question = _query_kind(scores) == "question"
        by_sample: dict[int, list[Head]] = {}
        for head in heads:
            for row in dict.fromkeys(row for rows in both_ends(scores, head) for row in rows):
                by_sample.setdefault(row, []).append(head)
        figures: dict[tuple[Head, int], go.Figure | str] = {}
        for row, of_sample in by_sample.items():
            sample = self.samples[scores.datasets[row] if scores.datasets else "", scores.samples[row]]
            tokens, attention = self.attention(sample, of_sample, of_question)
            for head in of_sample:
                title = f"{sample.id}: {scores.values[row, *head]:.3g}"
                figures[head, row] = self._figure(sample, tokens, attention[head], title)
        for head in heads:
            _share_scale([figure for (of_figure, _), figure in figures.items() if of_figure == head])
        of = "mean attention of the question's tokens" if of_question else "attention of the prompt's last token"
        return Drawn(figures, f"the {of}")

    @torch.no_grad()
    def attention(
        self, sample: Sample, heads: Sequence[Head], of_question: bool
    ) -> tuple[TokenMap, dict[Head, Float[Tensor, "position"]]]:
        """Attention of some heads in one sample: the mean over the question's tokens, or that of the last token."""
        inputs = prepare_batch(self.model, [sample])
        _, cache = self.model.run_with_cache(
            inputs,
            queries=inputs.tokens.question if of_question else inputs.tokens.last,
            names_filter=sorted({hook_name(head.layer, "attn.pattern") for head in heads}),
        )
        rows = {head: cache["pattern", head.layer][0, head.head].mean(0).cpu() for head in heads}
        return inputs.tokens.to("cpu"), rows

    def _figure(
        self, sample: Sample, tokens: TokenMap, attention: Float[Tensor, "position"], title: str
    ) -> go.Figure | str:
        media = [*sample.pictures, *(load_clip(video, self.model.processor) for video in sample.videos)]
        if (n_panels := len(media_views(media, tokens))) > MAX_PANELS:
            return f"{title}. It has {n_panels} pictures, pages and frames, too many for this page."
        try:
            figure = attention_over_media(media, {"": attention}, tokens, title, sample.evidence, N_PIXELS)
        except ValueError as cause:
            return f"{title}. {cause}"
        layout: Any = figure.layout  # plotly does not type it
        # Half as high, since two stand side by side.
        height = 110 + (layout.height - 110) / 2
        return figure.update_layout(height=height, title_subtitle_text=literal(f"{sample.question} {sample.answer}"))


def _share_scale(figures: Sequence[go.Figure | str]) -> None:
    """Give figures one scale, so that samples in which a head hardly looks at the pictures do not light up."""
    drawn: list[Any] = [figure for figure in figures if isinstance(figure, go.Figure)]
    highest = max((figure.layout.coloraxis.cmax for figure in drawn), default=1.0)
    for figure in drawn:
        figure.update_layout(coloraxis_cmax=highest)


def _query_kind(scores: HeadScores) -> str:
    """Query tokens of the metric of some scores."""
    descriptive = DESCRIPTIVE_METRICS.get(scores.metric)
    return scores.choices.get("queries", descriptive.queries if descriptive else "last")
