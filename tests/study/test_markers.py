"""Markers around the evidence: where they are put, and what they change in made-up scores."""

import pytest
import torch

from corelens import Evidence, HookedMLLM, Sample, toy
from corelens.study.markers import END, START, markers, with_markers
from tests.helpers.pictures import random_picture
from tests.helpers.studies import head_scores


def test_markers_surround_the_pictures_with_evidence_and_leave_the_question_as_it_is(toy_model: HookedMLLM):
    question = "which digit is red ?"
    pictures = (random_picture(), random_picture())
    interleaved = Sample("i", question, "1", pictures, (Evidence(media=0),), prompt=("copy", 0, "sum", 1, question))
    (scene,) = toy.scenes(1, 0)
    marked, marked_scene = with_markers([interleaved, scene])
    assert marked.prompt == ("copy", f" {START} ", 0, f" {END} ", "sum", 1, question)
    assert marked_scene.prompt == (f" {START} ", 0, f" {END} ", scene.question)
    for sample, plain in ((marked, interleaved), (marked_scene, scene)):
        tokens, plain_tokens = (
            toy_model.prepare(list(version.images), version.chat).tokens for version in (sample, plain)
        )
        assert tokens.question.sum() == plain_tokens.question.sum()
        assert tokens.image.sum() == plain_tokens.image.sum()
        assert tokens.context.sum() == plain_tokens.context.sum() + 2


@pytest.mark.usefixtures("few_draws")
def test_markers_may_change_neither_the_top_heads_nor_their_mass():
    values = torch.linspace(0, 1, 40).view(4, 10) + 0.001 * torch.rand(20, 4, 10)
    plain = head_scores(values)
    assert markers(plain, head_scores(values + 0.001 * torch.rand(20, 4, 10)), 0.1).verdict == "supported"
    assert markers(plain, head_scores(1.5 * values), 0.1).verdict == "not supported"
    assert markers(plain, head_scores(values.flip(1, 2)), 0.1).verdict == "not supported"
