"""Pages ranked by heads: against whole patterns of single prompts, on models with one and with several views."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from corelens import Evidence, HeadSet, HookedMLLM, Role, Sample, TokenMap, rank_pages
from corelens.data import mmdocir
from corelens.experiments.page_ranking import PageQueries, page_numbers
from tests.helpers import tiny_family
from tests.helpers.dataset_files import mmdocir_folder, mmdocir_question
from tests.helpers.questions import samples

SETS = {"one": HeadSet.parse("L1H2"), "three": HeadSet.parse("L0H1, L1H0, L1H3")}


def build(name: str) -> HookedMLLM:
    family = tiny_family.build(name)
    return HookedMLLM(family.hf_model, family.processor)


def several_pictures() -> list[Sample]:
    """Prompts of three, one and two pictures; the last question names no evidence."""
    one, two, three = samples(3)
    pictures = [sample.images[0] for sample in (one, two, three)]
    return [
        replace(one, images=pictures, evidence=[Evidence(media=2), Evidence((30, 30, 60, 50), media=0)]),
        two,
        replace(three, images=pictures[1:], evidence=()),
    ]


def masses_by_loop(model: HookedMLLM, sample: Sample, heads: HeadSet, queries: PageQueries) -> list[float]:
    """Mean attention of some heads to every picture of a prompt, from whole patterns."""
    inputs = model.prepare(list(sample.images), sample.question)
    rows = (inputs.tokens.question if queries == "question" else inputs.tokens.last)[0].nonzero().flatten().tolist()
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
    masses = []
    for media in range(len(sample.images)):
        keys = inputs.tokens.media_tokens(media)[0]
        of_heads = [float(cache["pattern", layer][0, head, row, keys].sum()) for layer, head in heads for row in rows]
        masses.append(sum(of_heads) / len(of_heads))
    return masses


@pytest.mark.parametrize("queries", ["question", "last"])
@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "internvl"])
def test_scores_are_differences_of_masses_of_whole_patterns(family: str, queries: PageQueries):
    model = build(family)
    ranking = rank_pages(model, several_pictures(), SETS, queries, batch_size=2)
    for index, sample in enumerate(several_pictures()):
        n = len(sample.images)
        for name, heads in SETS.items():
            own = masses_by_loop(model, sample, heads, queries)
            nothing = masses_by_loop(model, sample.with_question("N/A"), heads, queries)
            expected = torch.tensor(own) - torch.tensor(nothing)
            assert_close(ranking.scores[name][index, :n], expected, atol=1e-5, rtol=1e-4)
            assert ranking.scores[name][index, n:].isnan().all()
            ranked = ranking.ranked(name, index)
            assert sorted(page for page, _ in ranked) == list(range(n))
            assert [score for _, score in ranked] == sorted(ranking.scores[name][index, :n].tolist(), reverse=True)
            assert all(ranking.scores[name][index, page] == score for page, score in ranked)


def test_pages_with_evidence_count_and_chance_is_their_share():
    ranking = rank_pages(build("qwen3_vl"), several_pictures()[:2], SETS)
    assert ranking.evidence.tolist() == [[True, False, True], [True, False, False]]
    order = [page for page, _ in ranking.ranked("one", 0)]
    assert float(ranking.recall("one", 2)[0]) == len({*order[:2]} & {0, 2}) / 2
    assert ranking.chance(2).tolist() == pytest.approx([2 / 3, 1])
    unknown = rank_pages(build("qwen3_vl"), several_pictures()[2:], SETS)
    with pytest.raises(ValueError, match="`relevant` marks nothing"):
        unknown.recall("one", 1)


def test_labels_of_mmdocir_are_its_pages(tmp_path: Path):
    folder = mmdocir_folder(tmp_path, [mmdocir_question(), mmdocir_question(page_id=[0, 2], layout_mapping=[])])
    ranking = rank_pages(build("llava"), mmdocir(folder), SETS)
    assert ranking.evidence.tolist() == [[False, True, False], [True, False, True]]
    assert ranking.groups == ("report", "report")
    assert ranking.recall("three", 3).tolist() == [1, 1]


def test_every_frame_of_a_video_is_a_page_and_tiles_of_a_picture_are_one():
    text, image, video = int(Role.QUESTION), int(Role.IMAGE), int(Role.VIDEO)
    role = torch.tensor([[image, image, image, text, video, video, video, text], [text] * 5 + [image, text, text]])
    media = torch.tensor([[0, 0, 1, -1, 2, 2, 2, -1], [-1] * 5 + [0, -1, -1]])
    view = torch.tensor([[0, 1, 0, -1, 0, 1, 1, -1], [-1] * 5 + [0, -1, -1]])
    none = torch.full_like(role, -1)
    boxes = torch.full((*role.shape, 4), torch.nan)
    tokens = TokenMap(role, media, view, role == -1, none, none, boxes, boxes[..., :2], (((4, 4),) * 3, ((4, 4),)))
    assert page_numbers(tokens).tolist() == [[0, 0, 1, -1, 2, 3, 3, -1], [-1] * 5 + [0, -1, -1]]


def test_what_cannot_be_ranked_is_refused():
    model, asked = build("qwen3_vl"), several_pictures()
    with pytest.raises(ValueError, match="pass one or more by name"):
        rank_pages(model, asked, {})
    with pytest.raises(ValueError, match="pass one or more by name"):
        rank_pages(model, asked, {"none": HeadSet(())})
    with pytest.raises(ValueError, match="L9H0"):
        rank_pages(model, asked, {"absent": HeadSet.parse("L9H0")})
    with pytest.raises(ValueError, match="sample text has no pictures and no videos"):
        rank_pages(model, [*asked, Sample("text", "Which digit?", "7")], SETS)
