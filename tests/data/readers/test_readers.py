"""Readers of data sets, on tiny files of exactly their forms, and every way in which rows are broken."""

import importlib
import json
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from corelens.data import Samples, load, mlvu, mmdocir, mmlongbench, mmlongbench_doc, refcocog, score, vidstg
from corelens.data.readers.vidstg import FileFrames
from corelens.tokens import Box


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(size: tuple[int, int], colour: tuple[int, int, int] = (10, 20, 30), kind: str = "JPEG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")


def read(samples: Samples) -> tuple[list[Any], dict[str, str]]:
    """What could be read, and the reasons for what was skipped by row; that rows were skipped is said aloud."""
    with pytest.warns(UserWarning, match="rows of .* were skipped, the first of them"):
        found = list(samples)
    return found, dict(samples.skipped)


# --- RefCOCOg --------------------------------------------------------------------------------------------------------


def reference(**changes: Any) -> dict[str, Any]:
    return {
        "question_id": "17",
        "image": {"bytes": encoded((100, 80)), "path": "a.jpg"},
        "question": "Please describe the region.",
        "answer": ["the red cup", "cup on the left"],
        "segmentation": [1.0, 2.0, 3.0],
        "bbox": [10.0, 20.0, 30.0, 40.0],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000380440_491042.jpg",
    } | changes


def test_refcocog_has_one_sample_per_expression_and_its_box_is_left_top_width_height(tmp_path: Path):
    write_table(tmp_path / "data" / "val-00000-of-00002.parquet", [reference()])
    write_table(tmp_path / "data" / "val-00001-of-00002.parquet", [reference(question_id="18", answer=["a cat"])])
    samples = list(refcocog(tmp_path, "val"))
    assert [sample.id for sample in samples] == ["17-0", "17-1", "18-0"]
    assert [sample.question.split(": ")[1] for sample in samples] == ["the red cup", "cup on the left", "a cat"]
    assert samples[0].evidence[0].box == Box(10, 20, 40, 60)
    assert samples[0].pictures[0].size == (100, 80)
    assert score(samples[0], "[10, 20, 40, 60]", box_unit="pixels") == 1
    assert score(samples[0], "[100, 250, 400, 750]", box_unit="thousandths") == 1
    assert score(samples[0], "somewhere", box_unit="pixels") is None
    with pytest.raises(ValueError, match="say in which unit"):
        score(samples[0], "[10, 20, 40, 60]")


def test_refcocog_skips_what_is_broken(tmp_path: Path):
    rows = [
        reference(),
        reference(question_id="empty", answer=[]),
        reference(question_id="blank", answer=["  "]),
        reference(question_id="outside", bbox=[10.0, 20.0, 200.0, 40.0], answer=["a"]),
        reference(question_id="flat", bbox=[10.0, 20.0, 0.0, 40.0], answer=["a"]),
        reference(question_id="short", bbox=[10.0, 20.0], answer=["a"]),
        reference(question_id="missing", image={"bytes": None, "path": None}, answer=["a"]),
        reference(question_id="noise", image={"bytes": b"no picture", "path": None}, answer=["a"]),
    ]
    write_table(tmp_path / "test-0.parquet", rows)
    found, skipped = read(refcocog(tmp_path, "test"))
    assert [sample.id for sample in found] == ["17-0", "17-1"]
    reasons = {
        "empty-0": "no referring expression",
        "blank-0": "no referring expression",
        "outside-0": "leaves the picture, which is 100 x 80 pixels",
        "flat-0": "is empty",
        "short-0": "not 4 numbers",
        "missing-0": "holds no picture",
        "noise-0": "that Pillow can read",
    }
    assert skipped.keys() == reasons.keys()
    for row, reason in reasons.items():
        assert reason in skipped[row]


def test_annotations_a_pixel_outside_are_cut_off(tmp_path: Path):
    write_table(tmp_path / "val-0.parquet", [reference(bbox=[-0.4, 20.0, 100.9, 60.0], answer=["a"])])
    (sample,) = refcocog(tmp_path)
    assert sample.evidence[0].box == Box(0, 20, 100, 80)


def test_a_place_that_holds_no_data_set_is_refused_before_anything_is_read(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no val-\*\.parquet"):
        refcocog(tmp_path)
    with pytest.raises(FileNotFoundError, match="no Hub id, which reads owner/name"):
        refcocog(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no place for the sentence"):
        refcocog(tmp_path, question="Where?")


# --- MMDocIR ---------------------------------------------------------------------------------------------------------


def asked(**changes: Any) -> dict[str, Any]:
    return {
        "Q": "How many?",
        "A": "18.29%",
        "page_id": [1],
        "type": "['Chart', 'Table']",
        "layout_mapping": [{"page": 1, "page_size": [612.0, 792.0], "bbox": [61.2, 79.2, 306, 396]}],
    } | changes


def document_folder(folder: Path, questions: list[Any], name: str = "report.pdf") -> Path:
    write_lines(
        folder / "MMDocIR_annotations.jsonl",
        [
            {
                "doc_name": name,
                "domain": "Brochure",
                "page_indices": [0, 2],
                "layout_indices": [0, 1],
                "questions": questions,
            }
        ],
    )
    pages = [
        {
            "doc_name": "report",
            "domain": "Brochure",
            "passage_id": str(page),
            "image_path": f"page_images/report_{page}.jpg",
            "image_binary": encoded((1224, 1584), (100 * page, 0, 0)),
            "ocr_text": "",
            "vlm_text": "",
        }
        for page in range(3)
    ]
    write_table(folder / "MMDocIR_pages.parquet", pages)
    return folder


def test_mmdocir_scales_layouts_from_page_units_to_pixels_and_pages_count_from_zero(tmp_path: Path):
    questions = [asked(), asked(page_id=[0, 1])]
    one, both = mmdocir(document_folder(tmp_path, questions))
    assert one.id == "report-0"
    assert [picture.size for picture in one.pictures] == [(1224, 1584)] * 3
    assert [np.asarray(picture)[0, 0, 0] // 90 for picture in one.pictures] == [0, 1, 2]
    (evidence,) = one.evidence
    assert evidence.media == 1
    assert evidence.box == pytest.approx(Box(122.4, 158.4, 612, 792))
    assert one.about["kinds"] == ["Chart", "Table"]
    # A page without a layout is evidence as a whole.
    assert [(region.media, region.box is None) for region in both.evidence] == [(1, False), (0, True)]
    only = list(mmdocir(tmp_path, pages="evidence"))
    assert [len(sample.images) for sample in only] == [1, 2]
    assert only[0].evidence[0].media == 0
    assert only[0].about["pages"] == [1]


def test_mmdocir_skips_what_is_broken(tmp_path: Path):
    layout = asked()["layout_mapping"][0]
    questions = [
        asked(),
        asked(page_id=[7]),
        asked(page_id=[]),
        asked(type="['Chart'"),
        asked(type="{1: 2}"),
        asked(A=" "),
        asked(layout_mapping=[layout | {"bbox": [0, 0, 700, 5]}]),
        asked(layout_mapping=[layout | {"page": 2}]),
        asked(layout_mapping=[layout | {"page_size": [0, 792]}]),
        {"Q": "What?"},
        "no object",
    ]
    document_folder(tmp_path, questions)
    with (tmp_path / "MMDocIR_annotations.jsonl").open("a") as file:
        file.write('{"doc_name": "other.pdf", "questions": [' + json.dumps(asked()) + "]}\n{broken\n")
    found, skipped = read(mmdocir(tmp_path))
    assert [sample.id for sample in found] == ["report-0"]
    reasons = {
        "report-1": "no page [7]; it has 0 to 2, counted from zero",
        "report-2": "'page_id' is empty",
        "report-3": "does not read as a list",
        "report-4": "is no list of str",
        "report-5": "'A' is empty",
        "report-6": "leaves the picture",
        "report-7": "a layout is on page 2, which is not among its evidence pages [1]",
        "report-8": "'page_size' is 0 x 792",
        "report-9": "no field 'page_id'",
        "report-10": "is no object with a",
        "other-0": "there are no pages of its document 'other.pdf'",
        "line 3": "not JSON",
    }
    assert skipped.keys() == reasons.keys()
    for row, reason in reasons.items():
        assert reason in skipped[row], row


# --- MMLongBench-Doc -------------------------------------------------------------------------------------------------


def question_on_document(**changes: Any) -> dict[str, Any]:
    return {
        "doc_id": "report.pdf",
        "doc_type": "Brochure",
        "question": "How many?",
        "answer": "8",
        "evidence_pages": "[2, 3]",
        "evidence_sources": "['Table']",
        "answer_format": "Int",
    } | changes


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "documents").mkdir()
    pages = [Image.new("RGB", (72, 144), (60 * page, 0, 0)) for page in range(3)]
    pages[0].save(tmp_path / "documents" / "report.pdf", save_all=True, append_images=pages[1:], resolution=72)
    (tmp_path / "documents" / "broken.pdf").write_bytes(b"no document")
    return tmp_path


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_mmlongbench_doc_draws_pages_and_counts_them_from_one(documents: Path, form: str):
    rows = [
        question_on_document(),
        question_on_document(evidence_pages="[]", answer="Not answerable", answer_format="None"),
    ]
    if form == "json":
        write_json(documents / "samples.json", rows)
    else:
        write_table(documents / "data" / "train-00000-of-00001.parquet", rows)
    answerable, not_answerable = mmlongbench_doc(documents)
    assert [picture.size for picture in answerable.pictures] == [(144, 288)] * 3
    assert [np.asarray(picture)[100, 70, 0] // 50 for picture in answerable.pictures] == [0, 1, 2]
    assert [(region.media, region.box) for region in answerable.evidence] == [(1, None), (2, None)]
    assert not_answerable.evidence == ()
    assert score(answerable, "8") == score(not_answerable, "Not answerable") == 1
    with pytest.warns(UserWarning, match="1 of 2 rows .*does not say where its evidence is"):
        assert [sample.id for sample in mmlongbench_doc(documents).with_evidence()] == ["report.pdf-0"]
    with pytest.warns(UserWarning, match="names no evidence page to show"):
        (shown,) = mmlongbench_doc(documents, pages="evidence", dots_per_inch=72)
    assert [picture.size for picture in shown.pictures] == [(72, 144)] * 2
    assert shown.about["pages"] == [1, 2]


def test_mmlongbench_doc_skips_what_is_broken(documents: Path):
    rows = [
        question_on_document(),
        question_on_document(evidence_pages="[4]"),
        question_on_document(evidence_pages="[0]"),
        question_on_document(evidence_pages="two"),
        question_on_document(evidence_pages="['2']"),
        question_on_document(evidence_sources="__import__('os')"),
        question_on_document(answer=""),
        question_on_document(answer_format="Date"),
        question_on_document(doc_id="absent.pdf"),
        question_on_document(doc_id="broken.pdf"),
    ]
    write_json(documents / "samples.json", rows)
    found, skipped = read(mmlongbench_doc(documents))
    assert [sample.id for sample in found] == ["report.pdf-0"]
    reasons = [
        "no page [4]; it has 1 to 3", "no page [0]", "does not read as a list", "no list of int",
        "does not read as a list", "'answer' is empty", "none of Str, Int", "'absent.pdf' is not there",
        "cannot be read as a PDF",
    ]  # fmt: skip
    assert len(skipped) == len(reasons)
    for said, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in said


def test_a_file_that_is_no_list_of_rows_is_refused(documents: Path):
    write_json(documents / "samples.json", {"rows": []})
    with pytest.raises(ValueError, match=r"samples\.json' is not a list of rows"):
        mmlongbench_doc(documents)
    (documents / "samples.json").write_text("[")
    with pytest.raises(ValueError, match=r"samples\.json' is not JSON"):
        mmlongbench_doc(documents)


# --- VidSTG ----------------------------------------------------------------------------------------------------------

FPS, N_FRAMES = 10, 20


def write_video(path: Path, n_frames: int = N_FRAMES) -> None:
    """Frame n is of grey 10 n."""
    av = importlib.import_module("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in range(n_frames):
            picture = Image.new("RGB", (64, 48), (10 * frame,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def sentence(**changes: Any) -> dict[str, Any]:
    return {
        "vid": "2401075277",
        "frame_count": N_FRAMES,
        "fps": 10.0,
        "width": 64,
        "height": 48,
        "subject/objects": [{"tid": 0, "category": "adult"}, {"tid": 1, "category": "dog"}],
        "used_segment": {"begin_fid": 4, "end_fid": 16},
        "used_relation": {"subject_tid": 0, "object_tid": 1, "predicate": "hold", "begin_fid": 6, "end_fid": 9},
        "temporal_gt": {"begin_fid": 6, "end_fid": 9},
        "captions": [{"description": "an adult holds a dog", "type": "subject", "target_id": 0}],
        "questions": [{"description": "who holds a dog?", "type": "subject", "target_id": 0}],
    } | changes


@pytest.fixture
def vidor(tmp_path: Path) -> Path:
    def thing(tid: int, left: int) -> dict[str, Any]:
        edges = {"xmin": left, "ymin": 5, "xmax": left + 10, "ymax": 25}
        return {"tid": tid, "bbox": edges, "generated": 0, "tracker": "none"}

    trajectories = [[thing(0, frame), *([thing(1, 60)] if frame < 6 else [])] for frame in range(N_FRAMES)]
    annotation = {"video_id": "2401075277", "video_path": "0000/2401075277.mp4", "trajectories": trajectories}
    write_json(tmp_path / "vidor" / "annotation" / "validation" / "0000" / "2401075277.json", annotation)
    write_json(tmp_path / "vidor" / "annotation" / "validation" / "0000" / "77.json", {"trajectories": 5})
    for name in ("2401075277", "77", "88"):
        write_video(tmp_path / "vidor" / "video" / "0000" / f"{name}.mp4")
    return tmp_path / "vidor"


def test_vidstg_gives_the_used_segment_and_the_box_of_every_frame(vidor: Path, tmp_path: Path):
    write_json(tmp_path / "test_annotations.json", [sentence()])
    (sample,) = vidstg(tmp_path, vidor)
    assert (sample.question, sample.answer) == ("who holds a dog?", "adult")
    assert [region.box for region in sample.evidence] == [Box(frame, 5, frame + 10, 25) for frame in (6, 7, 8)]
    # Seconds count from the beginning of the segment, which is frame 4.
    assert [region.seconds for region in sample.evidence] == [(0.2, 0.3), (0.3, 0.4), (0.4, 0.5)]
    (video,) = sample.videos
    assert (len(video.frames), video.fps) == (12, 10)
    greys = [round(float(np.asarray(video.frames[index]).mean()) / 10) for index in (0, 3, 11, 1)]
    assert greys == [4, 7, 15, 5]
    (caption,) = vidstg(tmp_path, vidor, sentences="captions")
    assert caption.question == "an adult holds a dog"


def test_vidstg_skips_what_is_broken(vidor: Path, tmp_path: Path):
    question = sentence()["questions"][0]
    rows = [
        sentence(),
        sentence(vid="1"),
        sentence(vid="77"),
        sentence(vid="88"),
        sentence(used_segment={"begin_fid": 4, "end_fid": 99}),
        sentence(temporal_gt={"begin_fid": 2, "end_fid": 9}),
        sentence(temporal_gt={"begin_fid": 9}),
        sentence(questions=[]),
        sentence(fps=0),
        sentence(questions=[question | {"target_id": 5}]),
        sentence(questions=[question | {"target_id": 1}]),
        sentence(questions=[question | {"description": ""}]),
        sentence(questions=[question | {"target_id": 1}], temporal_gt={"begin_fid": 5, "end_fid": 9}),
    ]
    write_json(tmp_path / "test_annotations.json", rows)
    found, skipped = read(vidstg(tmp_path, vidor))
    assert len(found) == 1
    reasons = [
        "no trajectory file 1.json", "is not an annotation file of VidOR", "no trajectory file 88.json",
        "4 to 99 is no part of its 20 frames", "time 2 to 9 is no part of the used segment 4 to 16",
        "no field 'end_fid'", "'questions' are empty", "'fps' is 0",
        "target 5 is none of its objects [0, 1]", "target 1 has no box in VidOR between frames 6 and 9",
        "'description' is empty", "leaves the picture, which is 64 x 48",
    ]  # fmt: skip
    assert len(skipped) == len(reasons)
    for said, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in said
    (vidor / "video" / "0000" / "2401075277.mp4").unlink()
    write_json(tmp_path / "test_annotations.json", [sentence()])
    assert "there is no video file 2401075277.mp4" in read(vidstg(tmp_path, vidor))[1]["2401075277-0-0"]


def test_frames_that_a_file_does_not_have_are_an_error(tmp_path: Path):
    write_video(tmp_path / "short.mp4", 5)
    frames = FileFrames(tmp_path / "short.mp4", 2, 9)
    assert len(frames) == 7
    with pytest.raises(ValueError, match="has no frame 8: it ends after 5"):
        frames[6]
    with pytest.raises(IndexError, match="there is no frame 7: the clip has 7"):
        frames[7]
    (tmp_path / "noise.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="cannot be decoded as a video"):
        FileFrames(tmp_path / "noise.mp4", 0, 1)[0]


# --- MMLongBench -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    folder = tmp_path / "mmlb_image" / "mm-niah"
    folder.mkdir(parents=True)
    for name in ("a", "b", "needle", "c0", "c1", "page1", "page2"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    return tmp_path


def niah(**changes: Any) -> dict[str, Any]:
    return {
        "id": "niah-0",
        "question": "Which of these is in the document?",
        "answer": 1,
        "ctxs": [{"type": "text", "text": "One."}, {"text": "<image>"}, {"text": "Two <image> and <image>."}],
        "positive_ctxs": [{"type": "image", "image": "needle.png", "text": "<image>"}],
        "image_list": ["mm-niah/a.png", "mm-niah/needle.png", "mm-niah/b.png"],
        "choices_image": ["mm-niah/c0.png", "mm-niah/c1.png"],
    } | changes


def test_mmlongbench_puts_pictures_into_their_places_and_knows_image_needles(bench: Path):
    write_lines(bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K8_dep6.jsonl", [niah()])
    write_lines(bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K16_dep6.jsonl", [niah(), niah()])
    (sample,) = mmlongbench(bench, "retrieval-image", 8)
    assert [region.media for region in sample.evidence] == [1]
    assert [Path(image).name for image in sample.images] == ["a.png", "needle.png", "b.png", "c0.png", "c1.png"]
    assert [part for part in sample.prompt if isinstance(part, int)] == [0, 1, 2, 3, 4]
    assert sample.prompt[2] == "\n\nTwo "
    assert sample.prompt[-5].endswith("Question: Which of these is in the document?\nA. ")
    assert sample.prompt[-4:-1] == (3, "\nB. ", 4)
    assert sample.choices == ("A", "B")
    assert (score(sample, "B"), score(sample, "(A)"), score(sample, "a dog")) == (1, 0, None)
    assert sample.about | {"id": "niah-0", "category": "NIAH", "length": 8} == sample.about
    assert len(list(mmlongbench(bench, "retrieval-image", 16))) == 2
    parts = sample.chat[0]["content"]
    assert [part["type"] for part in parts][:4] == ["text", "image", "text", "image"]


def test_mmlongbench_of_the_hub_is_unpacked_once(
    bench: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub

    write_lines(bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K8_dep6.jsonl", [niah()])
    downloaded, home = tmp_path_factory.mktemp("downloaded"), tmp_path_factory.mktemp("home")
    for part in ("mmlb_data", "mmlb_image"):
        with tarfile.open(downloaded / f"{part}.tar.gz", "w:gz") as archive:
            archive.add(bench / part, part)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(downloaded))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(home))
    (sample,) = mmlongbench("ZhaoweiWang/MMLongBench", "retrieval-image")
    assert [image.size for image in sample.pictures] == [(8, 8)] * 5
    assert (home / "corelens" / "MMLongBench" / "mmlb_image" / "mm-niah" / "a.png").exists()
    monkeypatch.setattr(tarfile, "open", None)  # not a second time
    assert len(list(mmlongbench("ZhaoweiWang/MMLongBench", "retrieval-image"))) == 1


def test_mmlongbench_skips_what_is_broken(bench: Path):
    rows = [
        niah(),
        niah(answer=2),
        niah(image_list=["mm-niah/absent.png", "mm-niah/needle.png", "mm-niah/b.png"]),
        niah(ctxs=[{"text": "<image>"}]),
        niah(positive_ctxs=[{"image": "other.png"}]),
        "{broken",
        niah(question=""),
    ]
    write_lines(bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K8_dep6.jsonl", rows)
    found, skipped = read(mmlongbench(bench, "retrieval-image"))
    assert len(found) == 1
    reasons = [
        "'answer' is 2, and it has 2 choices", "does not exist", "places for 3 pictures, and it has 5",
        "is a needle that", "not JSON", "'question' is empty",
    ]  # fmt: skip
    assert len(skipped) == len(reasons)
    for said, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in said


def rows_of_other_tasks() -> Iterator[tuple[str, str, Any, str, int]]:
    """Task, file, row, a right answer, and how many pictures the sample has."""
    text = {"ctxs": [{"title": "T", "text": "said"}], "question": "Who?", "id": "1"}
    yield (
        "infoseek",
        "vrag/infoseek_K8.jsonl",
        text | {"image": "mm-niah/a.png", "answer": ["Ann", "Ann B"]},
        "It is ann b.",
        1,
    )
    haystack = {"ctxs": ["mm-niah/a.png", "mm-niah/b.png"], "question": "Is there a dog?", "answer": 1}
    yield "vh_single", "NIAH/vh_single_test_1000_K8_dep3.jsonl", haystack, "Yes, there is.", 2
    needle = niah(answer="42", ctxs=[{"text": "a <image> b"}], image_list=["mm-niah/a.png"])
    yield "retrieval-text", "NIAH/retrieval-text_test_K8_dep6.jsonl", needle, "Answer: 42", 1
    counting = niah(
        question="How often is <image> there?", answer=[1, 2], needle_image_list=["mm-niah/c0.png"],
        ctxs=[{"text": "<image><image>"}], image_list=["mm-niah/a.png", "mm-niah/needle.png"],
    )  # fmt: skip
    yield "counting-image", "NIAH/counting-image_test_K8_dep6.jsonl", counting, "[2, 1]", 3
    shots = {
        "cars": {
            "exemplar_list": [[[{"image": "mm-niah/a.png", "id": 3}, {"image": "mm-niah/b.png", "id": 4}]]],
            "test_example": [{"image": "mm-niah/c0.png", "answer": 4}],
        }
    }
    yield "cars196", "ICL/cars196_test_K8.json", shots, "label: 4", 3
    page = {"page_list": ["mm-niah/page1.png", "mm-niah/page2.png"], "doc_name": "mm-niah", "question": "How many?"}
    yield "slidevqa", "docqa/slidevqa_K8.jsonl", page | {"answer": "18", "answer_format": "Integer"}, "There are 18.", 2


@pytest.mark.parametrize(
    ("task", "file", "row", "right", "n"),
    list(rows_of_other_tasks()),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mmlongbench_reads_its_other_tasks(bench: Path, task: str, file: str, row: Any, right: str, n: int):
    path = bench / "mmlb_data" / file
    if path.suffix == ".json":
        write_json(path, row)
    else:
        write_lines(path, [row])
    (sample,) = mmlongbench(bench, task)
    assert len(sample.images) == len(sample.pictures) == n
    assert score(sample, right) == 1
    assert score(sample, "no 7") in (0, None)
    assert bool(sample.evidence) == (task == "counting-image")


def test_mmlongbench_summaries_are_left_to_a_judge(bench: Path):
    row = {"id": 1, "image_list": ["mm-niah/page1.png"], "summary": [{"section_title": "A", "paragraphs": ["b", "c"]}]}
    write_lines(bench / "mmlb_data" / "summ" / "gov-report_K8.jsonl", [row])
    (sample,) = mmlongbench(bench, "gov-report")
    assert sample.answer == "A:\nb\nc"
    with pytest.raises(ValueError, match="is scored by 'judge'; the rules that corelens has are exact"):
        score(sample, "b")


def test_mmlongbench_skips_broken_examples(bench: Path):
    example = {"image": "mm-niah/a.png", "id": 3}
    asked = {"image": "mm-niah/c0.png", "answer": 3}
    domains = {
        "right": {"exemplar_list": [[[example]]], "test_example": [asked]},
        "none": {"exemplar_list": [], "test_example": [asked]},
        "flat": {"exemplar_list": [[example]], "test_example": [asked]},
        "bare": {"exemplar_list": [[[{"image": "mm-niah/a.png"}]]], "test_example": [asked]},
        "absent": {"test_example": [asked]},
    }
    write_json(bench / "mmlb_data" / "food101_K8.json", domains)
    found, skipped = read(mmlongbench(bench, "food101"))
    assert [sample.id for sample in found] == ["food101_K8-right-0"]
    reasons = ["no examples", "do not come in rounds", "no field 'id'", "no field 'exemplar_list'"]
    for said, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in said


def test_mmlongbench_says_how_to_unpack_it_and_which_tasks_there_are(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"hf download ZhaoweiWang/MMLongBench.*unpack every \.tar\.gz"):
        mmlongbench(tmp_path, "infoseek")
    with pytest.raises(ValueError, match="'NIAH' is not known; the tasks of MMLongBench are infoseek"):
        mmlongbench(tmp_path, "NIAH")
    with pytest.raises(ValueError, match="length=9 is not known"):
        mmlongbench(tmp_path, "infoseek", 9)
    (tmp_path / "mmlb_data").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no file infoseek"):
        mmlongbench(tmp_path, "infoseek")


# --- MLVU ------------------------------------------------------------------------------------------------------------


def long_video(**changes: Any) -> dict[str, Any]:
    return {
        "video": "needle_32.mp4",
        "duration": 480.0,
        "question": "What does the hand hold?",
        "candidates": ["A cup", "A pen", "A fish", "A key"],
        "answer": "A pen",
        "question_type": "findNeedle",
    } | changes


def test_mlvu_lists_the_options_and_videos_are_paths(tmp_path: Path):
    write_json(tmp_path / "MLVU" / "json" / "2_needle.json", [long_video()])
    write_json(tmp_path / "MLVU" / "json" / "9_summary.json", [long_video(candidates=None, answer="A long day.")])
    for folder in ("2_needle", "9_summary"):
        (tmp_path / "MLVU" / "video" / folder).mkdir(parents=True)
        (tmp_path / "MLVU" / "video" / folder / "needle_32.mp4").touch()
    (sample,) = load("mlvu", tmp_path)
    assert "(B) A pen\n(C) A fish" in sample.question
    assert Path(sample.videos[0]).name == "needle_32.mp4"
    assert (score(sample, "(B)"), score(sample, "B. A pen"), score(sample, "a key"), score(sample, "?")) == (
        1,
        1,
        0,
        None,
    )
    (summary,) = mlvu(tmp_path, "summary")
    assert (summary.choices, summary.scoring) == ((), "judge")


def test_mlvu_skips_what_is_broken(tmp_path: Path):
    rows = [long_video(), long_video(video="absent.mp4"), long_video(answer="A dog"), long_video(question=" ")]
    write_json(tmp_path / "json" / "2_needle.json", [*rows, {"video": "needle_32.mp4"}])
    (tmp_path / "video" / "2_needle").mkdir(parents=True)
    (tmp_path / "video" / "2_needle" / "needle_32.mp4").touch()
    found, skipped = read(mlvu(tmp_path))
    assert len(found) == 1
    reasons = ["absent.mp4' does not exist", "'A dog' is none of its candidates", "is empty", "no field 'question'"]
    for said, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in said
    with pytest.raises(ValueError, match="the tasks of MLVU are plotQA, needle"):
        mlvu(tmp_path, "findNeedle")
    with pytest.raises(FileNotFoundError, match=r"holds no json/\*_ego\.json"):
        mlvu(tmp_path, "ego")


def test_a_gated_repository_says_how_to_get_access(monkeypatch: pytest.MonkeyPatch):
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))

    def refuse(*_: Any, **__: Any) -> None:
        raise GatedRepoError("gated", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(PermissionError, match=r"MLVU/MVLU is gated\..*accept its terms.*hf auth login"):
        mlvu()


def test_only_what_is_needed_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub

    asked_for = {}

    def download(name: str, **settings: Any) -> str:
        asked_for[name] = settings
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    write_table(tmp_path / "data" / "val-0.parquet", [reference()])
    assert len(list(load("refcocog"))) == 2
    assert asked_for == {
        "lmms-lab/RefCOCOg": {"repo_type": "dataset", "allow_patterns": ["data/val-*.parquet"]},
    }


def test_a_data_set_that_cannot_be_downloaded_is_named():
    """The Hub is offline in tests."""
    with pytest.raises(FileNotFoundError, match="'lmms-lab/RefCOCOg' is no local folder, and could not be downloaded"):
        refcocog()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    write_table(tmp_path / "val-0.parquet", [reference()])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs datasets, which is not installed: pip install 'corelens\[data\]'"):
        refcocog(tmp_path)


def test_a_data_set_without_bad_rows_skips_nothing_and_can_be_read_again(tmp_path: Path):
    write_table(tmp_path / "val-0.parquet", [reference()])
    samples = refcocog(tmp_path)
    assert len(list(samples)) == len(list(samples)) == 2
    assert samples.skipped == []
