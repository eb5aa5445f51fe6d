"""Evidence and questions of other samples, and heads that follow them or not."""

from dataclasses import replace

import pytest
import torch

from corelens import Box, Evidence, HeadSet, HookedMLLM, Sample, evidence_tokens, toy
from corelens.experiments.scan import scan_metrics
from corelens.study.other_evidence import partners, with_other_evidence, with_other_questions
from corelens.study.relevance import MovedEvidence, relevance
from tests.helpers.studies import head_scores


def test_partners_ask_another_question_about_another_picture():
    def sample(number: int, question: str, group: str) -> Sample:
        return Sample(str(number), question, "a", about={"group": group})

    samples = [
        sample(number, question, group)
        for number, (question, group) in enumerate(
            [("which?", "one"), ("what?", "one"), ("which?", "two"), ("what?", "two"), ("what?", "three")]
        )
    ]
    found = [partner and partner.id for partner in partners(samples)]
    assert found == [None, None, "1", "0", "2"]
    assert [sample.question for sample in with_other_questions(samples)] == ["what?", "which?", "which?"]


def test_evidence_keeps_its_relative_place_in_pictures_of_other_sizes(toy_model: HookedMLLM):
    first, second = toy.scenes(2, 0)
    first = replace(first, evidence=(Evidence(Box(0, 0, 16, 16), weight=0.5), Evidence()))
    small = replace(second, images=(second.pictures[0].resize((32, 64)),), evidence=(Evidence(Box(0, 0, 16, 64)),))
    (moved,) = with_other_evidence(toy_model, [first, small]).samples
    width, height = first.pictures[0].size
    assert moved.evidence == (Evidence(Box(0, 0, 16 * 32 / width, 16 * 64 / height), weight=0.5), Evidence())
    assert replace(moved, evidence=small.evidence) == small


def test_the_overlap_is_the_share_of_own_tokens_that_hold_the_others_evidence(toy_model: HookedMLLM):
    samples = list(toy.scenes(12, 0))
    moved = with_other_evidence(toy_model, samples)
    assert len(moved.samples) == len(moved.overlap) >= 10
    by_id = {sample.id: sample for sample in samples}
    for other, overlap in zip(moved.samples, moved.overlap, strict=True):
        tokens = toy_model.prepare(other.images[0], other.question).tokens
        own, others = (
            set(evidence_tokens([one], tokens)[0].nonzero().flatten().tolist()) for one in (by_id[other.id], other)
        )
        assert overlap == pytest.approx(len(own & others) / len(own))
    at_one_place = [replace(sample, evidence=samples[0].evidence) for sample in samples]
    assert {*with_other_evidence(toy_model, at_one_place).overlap} == {1.0}


@pytest.mark.usefixtures("few_draws")
def test_heads_that_always_look_at_one_side_retrieve_nothing(toy_model: HookedMLLM):
    """The organism's heads follow evidence; five that are made to look at the left of every picture do not."""
    samples = {"": list(toy.scenes(40, 0))}
    moved = with_other_evidence(toy_model, samples[""])
    inputs = toy_model.prepare(samples[""][0].images[0], samples[""][0].question)
    width, height = samples[""][0].pictures[0].size
    left = inputs.tokens.in_box(Box(0, 0, width / 2, height))[0]
    fixed_heads = HeadSet.parse("L3H0, L3H1, L3H2, L3H3, L3H4")

    def look_left(scores: torch.Tensor, hook: object) -> torch.Tensor:
        looked_at = torch.where(left, 0.0, -50.0).expand_as(scores[:, :5])
        return torch.cat([torch.where(scores[:, :5].isfinite(), looked_at, scores[:, :5]), scores[:, 5:]], 1)

    results = {}
    for name, hooks in (("model", []), ("fixed", [("blocks.3.attn.hook_attn_scores", look_left)])):
        with toy_model.hooks(fwd_hooks=hooks):
            own, on_other = (
                scan_metrics(toy_model, {"": part}, ("ram_last",))["ram_last"] for part in (samples[""], moved.samples)
            )
        heads = own.top(5) if name == "model" else fixed_heads
        results[name] = relevance(own, on_other, None, heads, {"": moved})
    overlap, on_evidence, under_questions = results["model"]
    assert overlap.of_premise
    assert overlap.met
    assert on_evidence.met
    assert under_questions.met is None
    assert results["fixed"][1].met is False


def test_samples_about_one_picture_are_one_draw_of_the_overlap():
    def low(groups: int) -> float:
        about = [{"group": str(number % groups)} for number in range(40)]
        moved = MovedEvidence(
            [Sample(str(number), "q", "a", about=group) for number, group in enumerate(about)],
            [0.1 if number % groups < groups / 2 else 0.3 for number in range(40)],
        )
        scores = head_scores(torch.ones(1, 1, 1))
        return float(relevance(scores, None, None, HeadSet.parse("L0H0"), {"": moved})[0].low)

    assert low(4) < low(40) - 0.03


def test_a_ratio_pairs_samples_by_data_set_and_id():
    values = torch.arange(1.0, 5)[:, None, None].expand(4, 1, 2)
    own = replace(head_scores(values, ("a", "a", "b", "b")), samples=("0", "1", "0", "1"))
    null = replace(own.select([3, 0]), values=torch.tensor([2.0, 1.0])[:, None, None].expand(2, 1, 2))
    measured = relevance(own, null, null, own.top(1), {})[1]
    assert measured.value == pytest.approx((4 + 1) / (2 + 1), rel=0.1)
    unpaired = replace(null, datasets=("c", "c"))
    assert relevance(own, unpaired, None, own.top(1), {})[1].met is None
