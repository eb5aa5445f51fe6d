"""From samples to prepared batches and from their evidence to positions."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from corelens import HookedMLLM, scan
from corelens.data import Evidence, Sample, evidence_tokens, haystacks, prepare_batches
from corelens.tokens import Box, Role, TokenMap, grid_boxes
from tests.helpers import processors, tiny


@pytest.fixture(scope="module")
def model() -> HookedMLLM:
    return HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))


def picture(seed: int = 0, size: tuple[int, int] = (112, 96)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def video_map(n_views: int = 3, first: float = 0.0) -> TokenMap:
    """A video of 40 x 20 pixels seen in views of one second and 2 x 4 tokens each, after one structural token."""
    n = 8 * n_views
    view = torch.arange(n_views).repeat_interleave(8)

    def after_one(values: torch.Tensor, filler: float) -> torch.Tensor:
        return torch.cat([torch.full_like(values[:1], filler), values])[None]

    begins = view.float() + first
    return TokenMap(
        role=after_one(torch.full((n,), int(Role.VIDEO)), int(Role.STRUCTURAL)),
        media=after_one(torch.zeros(n, dtype=torch.int64), -1),
        view=after_one(view, -1),
        overview=torch.zeros(1, n + 1, dtype=torch.bool),
        row=after_one(torch.arange(2).repeat_interleave(4).repeat(n_views), -1),
        column=after_one(torch.arange(4).repeat(2 * n_views), -1),
        box=after_one(grid_boxes(Box(0, 0, 40, 20), 2, 4).repeat(n_views, 1), torch.nan),
        seconds=after_one(torch.stack([begins, begins + 1], -1), torch.nan),
        sizes=(((40, 20),),),
    )


def of_video(*evidence: Evidence) -> Sample:
    return Sample("v", "q", "a", videos=("a.mp4",), evidence=evidence)


def selected(mask: torch.Tensor) -> list[int]:
    return mask[0].nonzero().flatten().tolist()


def test_a_box_that_moves_through_a_video_is_followed_from_view_to_view():
    left, right = Box(0, 0, 10, 10), Box(30, 10, 40, 20)
    sample = of_video(Evidence(left, seconds=(0.0, 0.1)), Evidence(right, seconds=(2.5, 2.6)))
    # One structural position, then eight tokens a view: the first of the first view, the last of the third.
    assert selected(evidence_tokens([sample], video_map())) == [1, 24]


def test_a_view_gets_the_boxes_of_all_frames_it_stands_for():
    boxes = [Box(10 * step, 0, 10 * step + 10, 10) for step in range(3)]
    sample = of_video(*(Evidence(box, seconds=(0.1 * step, 0.1 * step + 0.1)) for step, box in enumerate(boxes)))
    assert selected(evidence_tokens([sample], video_map())) == [1, 2, 3]


def test_evidence_without_a_box_is_all_of_the_picture_or_of_the_time():
    assert selected(evidence_tokens([of_video(Evidence())], video_map())) == list(range(1, 25))
    assert selected(evidence_tokens([of_video(Evidence(seconds=(1, 2)))], video_map())) == list(range(9, 17))


def test_frames_before_the_first_sampled_one_are_no_evidence():
    late = video_map(first=1.0)
    box = Box(0, 0, 10, 10)
    sample = of_video(Evidence(box, seconds=(0.0, 0.5)), Evidence(box, seconds=(1.0, 1.5)))
    assert selected(evidence_tokens([sample], late)) == [1]
    with pytest.raises(ValueError, match="sample v: no sampled frame shows its evidence"):
        evidence_tokens([of_video(Evidence(box, seconds=(0.0, 0.5)))], late)


def test_weights_and_fractions_count_once_where_regions_overlap():
    whole, half = Box(0, 0, 10, 10), Box(0, 0, 5, 10)
    sample = of_video(Evidence(whole, seconds=(0, 1), weight=0.5), Evidence(half, seconds=(0, 1)))
    weighted = evidence_tokens([sample], video_map())
    assert weighted.dtype == torch.float32
    assert weighted[0, 1] == 1
    fractions = evidence_tokens([sample], video_map(), "fraction")
    assert fractions[0, 1] == 0.5
    light = evidence_tokens([of_video(Evidence(half, seconds=(0, 1), weight=0.5))], video_map(), "fraction")
    assert light[0, 1] == 0.25
    assert float(fractions.sum()) == 0.5


def test_a_batch_with_one_weighted_sample_is_weights_throughout(model: HookedMLLM):
    box = Box(30, 30, 60, 50)
    samples = [
        Sample("a", "Which digit is red?", "7", (picture(),), (Evidence(box),)),
        Sample("b", "Red?", "7", (picture(1),), (Evidence(box, weight=0.25),)),
    ]
    ((batch, inputs),) = prepare_batches(model, samples, 2, "test")
    mask = evidence_tokens(batch, inputs.tokens)
    assert mask.shape == inputs["input_ids"].shape
    assert mask[0].unique().tolist() == [0, 1]
    assert mask[1].unique().tolist() == [0, 0.25]
    assert torch.equal(mask[:1] > 0, inputs.tokens[0].in_box(box))


def test_all_of_a_picture_are_all_of_its_visual_tokens_and_of_no_other(model: HookedMLLM):
    sample = Sample("s", "Which digit is red?", "7", (picture(), picture(1)), (Evidence(media=1),))
    ((batch, inputs),) = prepare_batches(model, [sample], 1, "test")
    tokens = inputs.tokens
    assert torch.equal(evidence_tokens(batch, tokens), tokens.image & (tokens.media == 1))
    assert torch.equal(evidence_tokens(batch, tokens, "fraction"), (tokens.image & (tokens.media == 1)).float())


def test_pictures_may_be_paths_or_functions_and_are_read_when_prepared(model: HookedMLLM, tmp_path: Path):
    picture().save(tmp_path / "a.png")
    read = []

    def draw() -> Image.Image:
        read.append(True)
        return picture()

    samples = [
        Sample(name, "Which digit is red?", "7", (image,))
        for name, image in (("given", picture()), ("path", tmp_path / "a.png"), ("function", draw))
    ]
    assert not read
    ((_, inputs),) = prepare_batches(model, samples, 3, "test")
    assert read == [True]
    pixels = inputs["pixel_values"].chunk(3)
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])
    assert [np.array_equal(sample.pictures[0], picture()) for sample in samples] == [True] * 3


def test_a_prompt_puts_media_between_texts(model: HookedMLLM):
    prompt = ("Look at", 0, "and then at", 1, "Which digit is red?")
    sample = Sample("s", "Which digit is red?", "7", (picture(), picture(1)), prompt=prompt)
    plain = replace(sample, prompt=())
    ((_, inputs), (_, other)) = prepare_batches(model, [sample, plain], 1, "test")
    first, second = (inputs.tokens.media[0] == media for media in (0, 1))
    between = inputs.tokens.context[0, int(first.nonzero()[-1]) : int(second.nonzero()[0])]
    assert between.any()
    assert int(inputs.tokens.question.sum()) == int(other.tokens.question.sum())
    assert int(inputs.tokens.image.sum()) == int(other.tokens.image.sum())


def test_a_scan_of_a_haystack_runs_from_seed_to_scores(model: HookedMLLM):
    samples = haystacks(1, lengths=(3,), depths=(0, 1))
    scores = scan(model, samples, batch_size=1)
    assert scores.samples == ("haystacks-0-0-3-0", "haystacks-0-0-3-1")
    assert (scores.values > 0).all()


def test_values_that_are_no_evidence_and_samples_that_do_not_fit_together():
    with pytest.raises(ValueError, match=r"weight=0 is outside \(0, 1\]"):
        Evidence(weight=0)
    with pytest.raises(ValueError, match="media=-1 is negative"):
        Evidence(media=-1)
    with pytest.raises(ValueError, match=r"seconds=\(2, 1\) is not a time span"):
        Evidence(seconds=(2, 1))
    with pytest.raises(ValueError, match=r"sample s: evidence is in media \[1\], and there are 1"):
        Sample("s", "q", "a", (picture(),), (Evidence(media=1),))
    with pytest.raises(ValueError, match=r"sample s: the prompt places media \[1, 0\], and there are 2"):
        Sample("s", "q", "a", (picture(), picture()), prompt=(1, "q", 0))


BOX = Box(10, 20, 60, 40)
GIVEN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"images": "a.png"}, {"images": ("a.png",)}),
    ({"images": Path("a.png")}, {"images": (Path("a.png"),)}),
    ({"images": ["a.png", "b.png"]}, {"images": ("a.png", "b.png")}),
    ({"images": picture}, {"images": (picture,)}),
    ({"evidence": (10, 20, 60, 40)}, {"evidence": (Evidence(BOX),)}),
    ({"evidence": [10, 20, 60, 40]}, {"evidence": (Evidence(BOX),)}),
    ({"evidence": {"x1": 10, "y1": 20, "x2": 60, "y2": 40}}, {"evidence": (Evidence(BOX),)}),
    ({"evidence": {"bottom": 40, "right": 60, "top": 20, "left": 10}}, {"evidence": (Evidence(BOX),)}),
    ({"evidence": [{"x": 10, "y": 20, "width": 50, "height": 20}]}, {"evidence": (Evidence(BOX),)}),
    ({"evidence": BOX}, {"evidence": (Evidence(BOX),)}),
    ({"evidence": Evidence(BOX)}, {"evidence": (Evidence(BOX),)}),
    ({"evidence": [(10, 20, 60, 40), Evidence()]}, {"evidence": (Evidence(BOX), Evidence())}),
    ({"evidence": Evidence((10, 20, 60, 40))}, {"evidence": (Evidence(BOX),)}),
    ({"videos": "a.mp4"}, {"videos": ("a.mp4",)}),
    ({"choices": ["red", "blue"]}, {"choices": ("red", "blue")}),
]
"""Fields as people give them, and as samples hold them."""


@pytest.mark.parametrize(("given", "held"), GIVEN)
def test_single_values_and_lists_are_taken_for_tuples(given: dict[str, Any], held: dict[str, Any]):
    sample = Sample("s", "q", "red", **{"images": ("a.png",)} | given)
    assert {name: getattr(sample, name) for name in held} == held
    assert type(sample.evidence[0].box if sample.evidence else BOX) is Box
    assert replace(sample, id="t").images == sample.images


def test_a_picture_without_a_list_may_be_one_of_pillow():
    image = picture()
    assert Sample("s", "q", "red", image).images == (image,)


MISTAKEN = {
    "images=np.zeros((4, 4, 3))": "sample s: a picture is a path, a PIL image or a function that returns one, not "
    "ndarray. PIL.Image.fromarray makes a picture of an array.",
    "images=3": "sample s: a picture is a path, a PIL image or a function that returns one, not int.",
    "videos=[3]": "sample s: a video is a path or corelens.Video(frames, fps), not int.",
    "images='a.png', evidence=(1, 2, 3)": "sample s: a box is left, top, right and bottom in pixels, as in "
    "(10, 20, 60, 40), not 1.",
    "images='a.png', evidence={'bbox': [1, 2, 3, 4]}": "sample s: a box is left, top, right and bottom in pixels, as "
    "in (10, 20, 60, 40), or a dict of left, top, right, bottom; x1, y1, x2, y2; x, y, width, height, not "
    "{'bbox': [1, 2, 3, 4]}.",
    "images='a.png', evidence={'x': 1, 'y': 2, 'width': '3', 'height': 4}": "sample s: a box is left, top, right and "
    "bottom in pixels, as in (10, 20, 60, 40), or a dict of left, top, right, bottom; x1, y1, x2, y2; x, y, width, "
    "height, not {'x': 1, 'y': 2, 'width': '3', 'height': 4}.",
    "instruction=3": "sample s: instruction is a text, not 3.",
    "choices='red'": "sample s: choices is several texts: write ['red'].",
}
"""Arguments that are none, and what is said; in a process without the checks of types that tests have."""


def test_what_no_sample_holds_is_refused_with_the_way_out():
    code = (
        "import sys, json, numpy as np\nfrom corelens import Sample\nfor given in json.loads(sys.argv[1]):\n"
        '  try: eval(f\'Sample("s", "q", "red", {given})\')\n  except TypeError as error: print(error)'
    )
    run = subprocess.run([sys.executable, "-c", code, json.dumps(list(MISTAKEN))], capture_output=True, text=True)
    assert run.stdout.splitlines() == list(MISTAKEN.values()), run.stderr


def test_a_picture_that_cannot_be_read_is_named_with_its_samples(model: HookedMLLM):
    sample = Sample("lost", "q?", "a", ("nowhere.png",))
    with pytest.raises(FileNotFoundError, match=r"samples lost to lost: there is no picture file 'nowhere\.png'"):
        list(prepare_batches(model, [sample], 1, "test"))


@given(st.text("ab ", max_size=6), st.text("ab", min_size=1, max_size=3), st.text("ab ", max_size=6))
def test_another_question_takes_the_place_of_the_last_occurrence_alone(before: str, question: str, instruction: str):
    sample = Sample("s", question, "a", (picture(),), prompt=(before + "|", 0, before + question + instruction + "."))
    sample = replace(sample, instruction=instruction + ".")
    other = sample.with_question("?")
    assert other.prompt == (before + "|", 0, before + "?" + instruction + ".")
    assert (other.question, other.instruction) == ("?", sample.instruction)


def test_another_question_in_the_place_of_one_with_pictures_in_it_keeps_the_pictures():
    prompt = ("One ", 0, "\n\nHow often is ", 1, " there? Count.")
    sample = Sample("s", "How often is <image> there?", "1", (picture(), picture()), (), (), " Count.", prompt)
    assert [part.get("question") for part in sample.chat[0]["content"]] == [None, None, "How often is", None, "there?"]
    assert sample.with_question("?").prompt == ("One ", 0, "\n\n", 1, "? Count.")
    assert replace(sample, prompt=()).with_question("?").chat[0]["content"][-1]["text"] == "? Count."


@pytest.mark.parametrize(
    ("question", "prompt", "error"),
    [
        ("Which digit is red?", ("Look: ", 0, " which digit is red?"), "cannot be located in its prompt"),
        ("Which digit is red?", (0, "Which digit is red"), "cannot be located in its prompt"),
        ("<image>", ("Look: ", 0), "holds no text of the question"),
        ("", ("Look: ", 0), "holds no text of the question"),
    ],
)
def test_a_prompt_in_which_no_other_question_can_be_put_is_refused(
    question: str, prompt: tuple[str | int, ...], error: str
):
    # Asked again unchanged, it would make every score that is compared with the null question exactly zero.
    with pytest.raises(ValueError, match=f"sample s: .*{error}"):
        Sample("s", question, "7", (picture(),), prompt=prompt).with_question("N/A")
