"""Samples of a scan are shown under the attention that was scored, and others are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import corelens as cl
from corelens import toy
from corelens.data import evidence_tokens
from corelens.experiments.run_folder import RunFolder
from corelens.heads import Head
from corelens.reports import scanned_samples
from corelens.reports.scanned_samples import ScannedSamples


@pytest.fixture(scope="module")
def scenes() -> "list[cl.Sample]":
    return list(toy.scenes(3, 0))


@pytest.fixture(scope="module")
def scanned(toy_model: Any, scenes: "list[cl.Sample]", tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    cl.scan_metrics(toy_model, scenes, ["ram", "ram_last"], out=folder)
    return folder


@pytest.mark.parametrize("metric", ["ram", "ram_last"])
def test_the_attention_on_the_evidence_is_the_score(
    metric: str, scanned: Path, toy_model: Any, scenes: "list[cl.Sample]"
):
    scores = cl.HeadScores.load(scanned / f"{metric}.safetensors")
    samples = ScannedSamples.of(RunFolder.load(scanned), scenes, lambda: toy_model)
    heads = [Head(3, 0), Head(2, 4), Head(3, 14)]
    for row, sample in enumerate(scenes):
        tokens, attention = samples.attention(sample, heads, metric == "ram")
        evidence = evidence_tokens([sample], tokens)[0]
        for head in heads:
            torch.testing.assert_close(attention[head][evidence].sum(), scores.values[row, *head])


def test_a_page_shows_the_attention_of_the_tokens_by_which_it_was_scored(
    scanned: Path, toy_model: Any, scenes: "list[cl.Sample]"
):
    samples = ScannedSamples.of(RunFolder.load(scanned), scenes, lambda: toy_model)
    for metric, words in (("ram", "the mean attention of the question's tokens"), ("ram_last", "the prompt's last")):
        scores = cl.HeadScores.load(scanned / f"{metric}.safetensors")
        drawn = samples.draw(scores, scores.top(1))
        (head,) = scores.top(1)
        assert words in drawn.attention
        assert drawn.figures.keys() == {(head, row) for row in range(3)}
        figures: list[Any] = list(drawn.figures.values())
        (highest,) = {figure.layout.coloraxis.cmax for figure in figures}  # one scale
        drawn_values = [np.nanmax(trace.z) for figure in figures for trace in figure.data if trace.type == "heatmap"]
        assert highest == pytest.approx(max(drawn_values))


def test_samples_that_do_not_fit_a_page_are_named_with_the_reason(
    scanned: Path, toy_model: Any, scenes: "list[cl.Sample]", monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scanned_samples, "MAX_PANELS", 0)
    samples = ScannedSamples.of(RunFolder.load(scanned), scenes, lambda: toy_model)
    scores = cl.HeadScores.load(scanned / "ram.safetensors")
    for (head, row), reason in samples.draw(scores, scores.top(1)).figures.items():
        value = f"{scores.values[row, *head]:.3g}"
        assert reason == f"{scenes[row].id}: {value}. It has 1 pictures, pages and frames, too many for this page."


def test_other_samples_and_other_weights_are_refused(scanned: Path, toy_model: Any, scenes: "list[cl.Sample]"):
    scan = RunFolder.load(scanned)
    for others in (scenes[:2], [replace(scenes[0], question="which digit is red ?"), *scenes[1:]]):
        with pytest.raises(ValueError, match=r"the data are other samples than the 3 of .*give --data"):
            ScannedSamples.of(scan, others, lambda: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match="were others: load the model that was scanned"):
        ScannedSamples.of(replace(scan, manifest={**scan.manifest, "weights": "others"}), scenes, lambda: toy_model)
