"""Videos from frames to token maps: frame, pixels and seconds of every visual token, checked by the vision towers."""

import base64
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from corelens import Box, Evidence, HookedMLLM, Role, Sample, Video, evidence_tokens, prepare_batches
from corelens.inputs import token_geometry
from corelens.inputs.media import load_clip
from corelens.inputs.prepare import PreparedInputs
from corelens.viz import attention_over_media
from corelens.viz.panels import flatten_panels, media_views
from tests.helpers import processors, tiny, video_processors

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None,
    reason="transformers' video processors need torchvision: pip install 'corelens[video]'",
)
QUESTION = "Which digit is red?"
WIDTH, HEIGHT = 150, 100
SAMPLED = {
    "qwen2_vl": [0, 2, 4, 6, 8, 10],
    "qwen2_5_vl": [0, 2, 4, 6, 8, 10],
    "qwen3_vl": [0, 2, 4, 7, 9, 11],
    "llava_onevision": [0, 2, 4, 6, 8, 10],
    "internvl": [1, 3, 5, 7, 9, 11],
}
"""Frames that each processor samples at 4 per second from 12 frames of 8 per second."""
PAIRS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=video_processors.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sampling(family: str) -> HookedMLLM:
    """A model whose processor samples four frames per second."""
    return HookedMLLM(
        video_processors.model(family), video_processors.build(family, do_sample_frames=True, fps=4, num_frames=None)
    )


@pytest.fixture(scope="module")
def taking_all(family: str, sampling: HookedMLLM) -> HookedMLLM:
    """The same model whose processor takes every frame."""
    return HookedMLLM(sampling.hf_model, video_processors.build(family, do_sample_frames=False))


def noise(n: int, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size[1], size[0], 3), np.uint8)


def prepared(model: HookedMLLM, frames: np.ndarray, fps: float = 8.0) -> PreparedInputs:
    return model.prepare(None, QUESTION, Video(frames, fps))


@torch.no_grad()
def features(model: HookedMLLM, frames: np.ndarray) -> torch.Tensor:
    """Features of a video by token, as the decoder gets them."""
    inputs = prepared(model, frames)
    hf_model: Any = model.hf_model  # its methods differ by family
    if "video_grid_thw" in inputs:
        return hf_model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output[0]
    if "pixel_values_videos" in inputs:
        # The last one is the newline.
        return hf_model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0][:-1]
    return hf_model.get_image_features(inputs["pixel_values"]).pooler_output.flatten(0, 1)


def hit_rate(model: HookedMLLM, frames: np.ndarray, frames_of: list[list[int]], shift: int = 0) -> float:
    """Share of sampled tokens t with t = argmax_u |f'_u - f_u| > 0.

    f are the features of the video, and f' those of a video whose pixels in the rectangle of t are inverted in one of
    the frames of its view, or in one `shift` frames later.
    """
    tokens, original_features = prepared(model, frames).tokens, features(model, frames)
    view, box = tokens.view[tokens.video], tokens.box[tokens.video]
    assert len(box) == len(original_features)
    generator = np.random.default_rng(0)
    sampled_tokens = generator.choice(len(box), min(30, len(box)), replace=False)
    hits = 0
    for token in sampled_tokens:
        frame = (generator.choice(frames_of[view[token]]) + shift) % len(frames)
        left, top, right, bottom = box[token].tolist()
        # The inner part: resizing mixes pixels across the edges of rectangles.
        x, y = (right - left) / 4, (bottom - top) / 4
        rows, columns = slice(int(top + y), int(np.ceil(bottom - y))), slice(int(left + x), int(np.ceil(right - x)))
        changed = frames.copy()
        changed[frame, rows, columns] = 255 - changed[frame, rows, columns]
        distance = (features(model, changed) - original_features).norm(dim=-1)
        hits += bool(distance.max() > 0) and int(distance.argmax()) == token
    return hits / len(sampled_tokens)


def views(family: str, frames: list[int]) -> list[list[int]]:
    """The frames of each view."""
    n = 2 if family in PAIRS else 1
    return [frames[start : start + n] for start in range(0, len(frames), n)]


@needs_torchvision
def test_changing_pixels_of_a_token_in_its_frame_changes_its_feature_most(
    family: str, sampling: HookedMLLM, taking_all: HookedMLLM
):
    assert hit_rate(sampling, noise(12), views(family, SAMPLED[family])) >= 0.95
    # An odd number of frames: where frames are merged, the last one stands for two.
    assert hit_rate(taking_all, noise(5), views(family, list(range(5)))) >= 0.95


@needs_torchvision
def test_the_check_of_frames_can_fail(family: str, taking_all: HookedMLLM):
    """Were every frame off by its view's length, hardly a token would be hit."""
    assert hit_rate(taking_all, noise(6), views(family, list(range(6))), shift=2 if family in PAIRS else 1) < 0.1


@needs_torchvision
def test_frames_that_are_not_sampled_change_nothing(family: str, sampling: HookedMLLM):
    frames = noise(12)
    changed = frames.copy()
    not_sampled = [frame for frame in range(12) if frame not in SAMPLED[family]]
    changed[not_sampled] = 255 - changed[not_sampled]
    for name, tensor in prepared(sampling, frames).items():
        assert torch.equal(tensor, prepared(sampling, changed)[name]), name


@needs_torchvision
@pytest.mark.parametrize("size", [(150, 100), (97, 180), (64, 64)], ids=str)
def test_rectangles_tile_every_whole_frame(taking_all: HookedMLLM, size: tuple[int, int]):
    tokens = prepared(taking_all, noise(4, size=size)).tokens
    for view in range(int(tokens.view.max()) + 1):
        boxes = tokens.box[tokens.video & (tokens.view == view)]
        region = torch.stack([*boxes[:, :2].amin(0), *boxes[:, 2:].amax(0)])
        torch.testing.assert_close(region, torch.tensor([0, 0, *size]).float(), atol=0.01 * max(size), rtol=0)
        area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()
        torch.testing.assert_close(area, (region[2] - region[0]) * (region[3] - region[1]), rtol=1e-4, atol=0)
        assert tokens.grid_shape(view=view)[0] * tokens.grid_shape(view=view)[1] == len(boxes)


@needs_torchvision
def test_frames_that_the_processor_crops():
    """The region of a frame is measured, not assumed: this processor shows the middle square."""
    cropping = {"size": {"shortest_edge": 70}, "do_center_crop": True, "crop_size": {"height": 70, "width": 70}}
    processor = video_processors.build("llava_onevision")
    for name, value in cropping.items():
        setattr(processor.video_processor, name, value)
    model = HookedMLLM(video_processors.model("llava_onevision"), processor)
    boxes = prepared(model, noise(3)).tokens.box[0]
    left_and_right = torch.stack([boxes[:, 0].nan_to_num(999).min(), boxes[:, 2].nan_to_num(-1).max()])
    torch.testing.assert_close(left_and_right, torch.tensor([25.0, 125.0]), atol=1.5, rtol=0)
    assert hit_rate(model, noise(3), [[0], [1], [2]]) >= 0.95


def expected_seconds(frames_of: list[list[int]], n_frames: int, fps: float) -> torch.Tensor:
    """Begin s_v / fps and end s_(v+1) / fps of every view v; s_v is its first frame, and the last s is n_frames."""
    first = [frames[0] for frames in frames_of]
    return torch.tensor(list(zip(first, [*first[1:], n_frames], strict=True))) / fps


@needs_torchvision
def test_seconds_in_closed_form(family: str, sampling: HookedMLLM, taking_all: HookedMLLM):
    for model, n_frames, fps, frames in (
        (sampling, 12, 8.0, SAMPLED[family]),
        (taking_all, 5, 8.0, list(range(5))),
        (taking_all, 6, 29.97, list(range(6))),
    ):
        tokens = prepared(model, noise(n_frames), fps).tokens
        expected = expected_seconds(views(family, frames), n_frames, fps)
        torch.testing.assert_close(tokens.seconds[tokens.video], expected[tokens.view[tokens.video]])
        assert tokens.seconds[~tokens.video].isnan().all()
        assert tokens.view[tokens.video].max() == len(expected) - 1


@needs_torchvision
def test_only_visual_tokens_of_frames_are_video(family: str, sampling: HookedMLLM):
    inputs = prepared(sampling, noise(12))
    tokens, ids = inputs.tokens, inputs["input_ids"]
    visual_id = tiny.IMAGE if family == "internvl" else tiny.VIDEO
    assert set(ids[tokens.video].tolist()) == {visual_id}
    placeholders = (ids == visual_id) & ~tokens.video
    assert tokens.structural[placeholders].all()
    # The newline after a video of LLaVA-OneVision has the id of its visual tokens.
    assert placeholders.sum() == (family == "llava_onevision")
    structural_text = sampling.processor.tokenizer.decode(ids[tokens.structural])
    assert {"internvl": "Frame2: ", "qwen3_vl": "seconds>"}.get(family, "") in structural_text
    assert sampling.processor.tokenizer.decode(ids[tokens.question]).strip() == QUESTION


@needs_torchvision
def test_prepared_tensors_are_those_of_the_processor(family: str, sampling: HookedMLLM):
    """Also the frames that it samples by itself."""
    frames = noise(12)
    chat = [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": QUESTION}]}]
    expected = sampling.processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"videos_kwargs": {"video_metadata": [{"total_num_frames": 12, "fps": 8.0}]}},
    )  # fmt: skip
    inputs = prepared(sampling, frames)
    assert set(inputs) == set(expected)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, expected[name]), name


@needs_torchvision
def test_pictures_and_videos_are_numbered_as_in_the_prompt(family: str, taking_all: HookedMLLM):
    image = Image.fromarray(noise(1, size=(70, 60))[0])
    video = {"type": "video", "video": Video([Image.fromarray(frame) for frame in noise(4)], 8.0)}
    parts = [video, {"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": QUESTION}]
    tokens = taking_all.prepare(image, [{"role": "user", "content": parts}]).tokens
    # LLaVA-OneVision's template puts pictures before videos.
    video_number, image_number = (1, 0) if family == "llava_onevision" else (0, 1)
    assert tokens.sizes[0][video_number] == (WIDTH, HEIGHT)
    assert tokens.sizes[0][image_number] == (70, 60)
    assert set(tokens.role[tokens.media == video_number].tolist()) >= {Role.VIDEO}
    assert tokens.video[tokens.media == image_number].sum() == 0
    assert tokens.image[tokens.media == image_number].any()
    assert tokens.in_box((0, 0, WIDTH, HEIGHT), media=video_number).sum() == tokens.video.sum()
    alone = prepared(taking_all, noise(4)).tokens
    assert torch.equal(tokens.seconds[tokens.video], alone.seconds[alone.video])
    assert torch.equal(tokens.box[tokens.video], alone.box[alone.video])
    first = tokens.media[tokens.media >= 0][0]
    assert first == 0
    if image_number == 1 and not tokens.box[tokens.image].isnan().any():
        with pytest.raises(ValueError, match=r"was given, but picture 1 of sample 0 is no video"):
            tokens.in_box((0, 0, 9, 9), media=1, seconds=(0, 0.1))


@needs_torchvision
@torch.no_grad()
def test_a_batch_is_its_samples_left_padded(taking_all: HookedMLLM):
    image, short, long = Image.fromarray(noise(1)[0]), Video(noise(4, 1), 8.0), Video(noise(4, 2, (97, 120)), 2.0)
    samples = [(image, QUESTION, short), (None, "You?", [long, short]), (image, "What colour is the 7?", None)]
    together = taking_all.prepare(*(list(column) for column in zip(*samples, strict=True)))
    logits = taking_all(together)
    for index, sample in enumerate(samples):
        alone = taking_all.prepare(*sample)
        n = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][index, -n:], alone["input_ids"][0])
        assert together.tokens.padding[index, :-n].all()
        tokens = together.tokens[index]
        assert tokens.sizes == alone.tokens.sizes
        for name in ("role", "media", "view", "row", "column", "box", "seconds"):
            of_batch, of_sample = getattr(tokens, name)[:, -n:], getattr(alone.tokens, name)
            assert torch.equal(of_batch.nan_to_num(-1), of_sample.nan_to_num(-1)), name
        torch.testing.assert_close(logits[index, -1], taking_all(alone)[0, -1], atol=1e-3, rtol=1e-2)


@needs_torchvision
def test_evidence_in_space_and_time(family: str, sampling: HookedMLLM):
    tokens = prepared(sampling, noise(12)).tokens
    box, corner = (0, 0, WIDTH, HEIGHT), (0, 0, 10, 10)
    assert tokens.in_box(box).sum() == tokens.video.sum()
    assert tokens.in_box(box, seconds=(0, 1.5)).sum() == tokens.video.sum()
    selected = tokens.in_box(corner, seconds=(0.7, 0.74))
    begins = [frames[0] / 8 for frames in views(family, SAMPLED[family])]
    showing = max(view for view, begin in enumerate(begins) if begin < 0.74)
    assert tokens.view[selected].unique().tolist() == [showing]
    assert (tokens.row[selected] == 0).all()
    # Half-open in time: a view that ends when the evidence begins shows none of it.
    late = tokens.in_box(box, seconds=(begins[1], 1.5))
    assert tokens.view[late].min() == 1
    for wrong in ((-0.1, 1), (0.5, 0.5), (1, 0.5), (0, 1.6), (0, float("nan"))):
        with pytest.raises(ValueError, match=r"is not a part of video 0 of sample 0, which lasts 1.5 seconds"):
            tokens.in_box(box, seconds=wrong)
    with pytest.raises(ValueError, match=r"is not a region of video 0 of sample 0, which is 150 x 100 pixels"):
        tokens.in_box((0, 0, 151, 9))
    if family == "internvl":
        with pytest.raises(ValueError, match=r"or no sampled frame shows \(0, 0.1\) seconds"):
            tokens.in_box(box, seconds=(0, 0.1))


@needs_torchvision
def test_videos_that_cannot_be_prepared(tmp_path: Path):
    model = HookedMLLM(tiny.build("qwen3_vl"), video_processors.build("qwen3_vl"))
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "a"}]}]
    with pytest.raises(ValueError, match="names more videos than the 0 given"):
        model.prepare(question=chat)
    with pytest.raises(ValueError, match=r"1 of 2 videos have no place in the chat.*\{'type': 'video'\}"):
        model.prepare(question=chat, videos=[Video(noise(4), 8.0)] * 2)
    with pytest.raises(ValueError, match="2 questions came with one video"):
        model.prepare(question=["a", "b"], videos=Video(noise(4), 8.0))
    with pytest.raises(TypeError, match=r"corelens.Video\(frames, fps\), not ndarray"):
        model.prepare(question="a", videos=[noise(4)])
    with pytest.raises(FileNotFoundError, match=r"no video file .*none.mp4"):
        model.prepare(question="a", videos=tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="stands for a video; pass videos instead"):
        model.prepare(question="is <|video_pad|> red?")
    pictures = [Image.fromarray(noise(1)[0]), Image.fromarray(noise(1, size=(9, 9))[0])]
    with pytest.raises(ValueError, match=r"the frames of a video have one size.*\[\(9, 9\), \(150, 100\)\]"):
        model.prepare(question="a", videos=Video(pictures, 8.0))
    qwen2 = HookedMLLM(model.hf_model, video_processors.build("qwen2_vl", do_sample_frames=True, fps=2))
    with pytest.raises(ValueError, match=r"cannot sample a video of 1 frames at 8.0 frames per second"):
        qwen2.prepare(question="a", videos=Video(noise(1), 8.0))
    model.processor.chat_template = processors.QWEN_TEMPLATE
    with pytest.raises(ValueError, match=r"Found total 0 <\|video_pad\|> tokens and 1 videos"):
        model.prepare(question="a", videos=Video(noise(4), 8.0))
    with pytest.raises(ValueError, match="LlavaProcessor has no video processor: the model takes no videos"):
        HookedMLLM(tiny.build("llava"), processors.build("llava")).prepare(question="a", videos=Video(noise(4), 8.0))


@needs_torchvision
@pytest.mark.parametrize("name", ["llava_onevision", "internvl"])
def test_videos_of_several_lengths_where_the_processor_stacks_them(name: str):
    model = HookedMLLM(video_processors.model(name), video_processors.build(name))
    with pytest.raises(ValueError, match=r"takes only videos of one length together, and \[3, 4\] frames were sampled"):
        model.prepare([None] * 2, ["a", "b"], [Video(noise(3), 8.0), Video(noise(4), 8.0)])


@needs_torchvision
def test_a_family_without_known_frames_still_prepares_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(token_geometry.VIDEO_SEGMENTS, "qwen3_vl")
    model = HookedMLLM(tiny.build("qwen3_vl"), video_processors.build("qwen3_vl"))
    tokens = prepared(model, noise(8)).tokens
    assert tokens.video.any()
    with pytest.raises(ValueError, match=r"tile a video is not known.*VIDEO_SEGMENTS\['qwen3_vl'\]"):
        tokens.in_box((0, 0, 9, 9))


@needs_torchvision
def test_files_are_decoded_only_where_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a stand-in for Hugging Face's loading: no decoder is installed here."""
    model = HookedMLLM(tiny.build("qwen3_vl"), video_processors.build("qwen3_vl", fps=4))
    frames = noise(12)
    file = tmp_path / "a.mp4"
    file.write_bytes(b"no video")
    monkeypatch.setattr("transformers.utils.import_utils.is_torchcodec_available", lambda: False)
    monkeypatch.setattr("transformers.utils.import_utils.is_av_available", lambda: False)
    with pytest.raises(ImportError, match=r"nothing that decodes .*a.mp4' is installed: pip install torchcodec"):
        model.prepare(question="a", videos=file)

    def load(path: str, backend: str, sample_indices_fn: Any) -> Any:
        metadata = VideoMetadata(total_num_frames=12, fps=8.0)
        metadata.frames_indices = sample_indices_fn(metadata=metadata)
        assert backend == "torchcodec"
        return torch.from_numpy(frames).permute(0, 3, 1, 2)[metadata.frames_indices[:n_decoded]], metadata

    monkeypatch.setattr("transformers.utils.import_utils.is_torchcodec_available", lambda: True)
    monkeypatch.setattr("transformers.video_utils.load_video", load)
    n_decoded = 12
    expected = prepared(model, frames)
    inputs = model.prepare(question=QUESTION, videos=str(file))
    assert torch.equal(inputs["pixel_values_videos"], expected["pixel_values_videos"])
    assert torch.equal(inputs.tokens.seconds.nan_to_num(-1), expected.tokens.seconds.nan_to_num(-1))
    n_decoded = 3
    with pytest.raises(ValueError, match=r"should have 12 frames, but only 3 of the 6 sampled ones could be decoded"):
        model.prepare(question=QUESTION, videos=str(file))


@needs_torchvision
def test_checkpoints_load_with_their_video_processor(family: str, sampling: HookedMLLM, tmp_path: Path):
    sampling.hf_model.save_pretrained(tmp_path)
    sampling.processor.save_pretrained(tmp_path)
    loaded = HookedMLLM.from_pretrained(str(tmp_path))
    inputs, expected = prepared(loaded, noise(12)), prepared(sampling, noise(12))
    for name, tensor in expected.items():
        assert torch.equal(inputs[name], tensor), name


def test_without_torchvision_videos_raise_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_torchvision_available", lambda: False)
    model = HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    with pytest.raises(ImportError, match=r"need torchvision, which is not installed: pip install 'corelens\[video\]'"):
        model.prepare(question="a", videos=Video(noise(4), 8.0))
    assert model.prepare(Image.fromarray(noise(1)[0]), "a").tokens.image.any()


@pytest.mark.parametrize(
    ("frames", "fps", "error", "message"),
    [
        (noise(2), 0.0, ValueError, "fps=0.0 is no frame rate"),
        (noise(2), float("inf"), ValueError, "fps=inf is no frame rate"),
        ([], 8.0, ValueError, "the video has no frames"),
        ("a.mp4", 8.0, TypeError, "not str; pass the path of a video file as it is"),
        (noise(2).transpose(0, 3, 1, 2), 8.0, ValueError, r"this one is \[2, 3, 100, 150\] of uint8"),
        (noise(2) / 255, 8.0, ValueError, r"this one is \[2, 100, 150, 3\] of float64"),
    ],
)
def test_values_that_are_no_video(frames: Any, fps: float, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Video(frames, fps)


@needs_torchvision
def test_samples_with_videos_are_prepared_and_their_evidence_moves(sampling: HookedMLLM, family: str):
    left, right = Box(0, 0, 40, 40), Box(110, 60, 150, 100)
    moving = (Evidence(left, seconds=(0.25, 0.375)), Evidence(right, seconds=(1.25, 1.375)))
    sample = Sample("moving", QUESTION, "7", videos=(Video(noise(12), 8.0),), evidence=moving)
    ((batch, inputs),) = prepare_batches(sampling, [sample], 1, "test")
    tokens = inputs.tokens
    evidence = evidence_tokens(batch, tokens)
    early, late = tokens.in_box(left, seconds=(0.25, 0.375)), tokens.in_box(right, seconds=(1.25, 1.375))
    assert torch.equal(evidence, early | late)
    assert not (early & late).any()
    for name, tensor in prepared(sampling, noise(12)).items():
        assert torch.equal(tensor, inputs[name]), name


@needs_torchvision
def test_the_explorer_shows_the_frame_that_each_view_begins_with(family: str, sampling: HookedMLLM):
    frames = np.stack([np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8) for number in range(12)])
    tokens = prepared(sampling, frames).tokens
    panels = media_views([load_clip(Video(frames, 8.0), sampling.processor)], tokens)
    colours = [panel.picture.getpixel((9, 9)) for panel in panels]
    assert [colour[0] // 20 for colour in colours] == [view[0] for view in views(family, SAMPLED[family])]
    assert [list(panel.seconds or ()) for panel in panels] == tokens.seconds[tokens.video].unique(dim=0).tolist()
    (n_visual,) = flatten_panels(tokens, panels, torch.ones(tokens.role.shape[1])).shape
    assert n_visual == int((tokens.row >= 0).sum())


@needs_torchvision
def test_a_figure_has_a_panel_for_every_view_with_the_frame_that_it_begins_with(sampling: HookedMLLM):
    frames = noise(16)
    frames[:] = np.arange(16, dtype=np.uint8)[:, None, None, None] * 15
    video = Video(frames, 8.0)
    tokens = prepared(sampling, frames).tokens
    row = torch.full((tokens.role.shape[1],), 1.0)
    figure = attention_over_media([video], {"even": row}, tokens, "t")
    n_views = int(tokens.view[tokens.video].max()) + 1
    heatmaps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(heatmaps) == len(figure.layout.images) == n_views > 1
    assert sum(heatmap.z.size for heatmap in heatmaps) == int((tokens.video & (tokens.row >= 0)).sum())
    begins = [tokens.seconds[tokens.video & (tokens.view == view)][0, 0] for view in range(n_views)]
    panels = [Image.open(io.BytesIO(base64.b64decode(image.source.split(",")[1]))) for image in figure.layout.images]
    assert [round(np.asarray(panel).mean() / 15) for panel in panels] == [round(float(begin) * 8) for begin in begins]
