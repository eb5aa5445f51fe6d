"""Data sets in miniature: tiny files of exactly the published forms."""

import importlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from corelens.data import Sample, Samples

FPS, N_FRAMES = 10, 20
"""Frames per second, and number of frames, of every video that `write_video` writes."""


def message_text(sample: Sample) -> str:
    """All text of a sample's message."""
    if isinstance(sample.chat, str):
        return sample.chat
    return "".join(part["text"] for message in sample.chat for part in message["content"] if part["type"] == "text")


def encoded_picture(size: tuple[int, int], colour: tuple[int, int, int] = (10, 20, 30), kind: str = "JPEG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")


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


def read_with_skips(dataset: Samples) -> tuple[list[Sample], dict[str, str]]:
    """Samples of a data set with broken rows, and the reason of every skipped row by its id; expects the warning."""
    with pytest.warns(UserWarning, match="rows of .* were skipped, the first of them"):
        samples = list(dataset)
    return samples, dict(dataset.skipped)


def refcocog_row(**changes: Any) -> dict[str, Any]:
    return {
        "question_id": "17",
        "image": {"bytes": encoded_picture((100, 80)), "path": "a.jpg"},
        "question": "Please describe the region.",
        "answer": ["the red cup", "cup on the left"],
        "segmentation": [1.0, 2.0, 3.0],
        "bbox": [10.0, 20.0, 30.0, 40.0],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000380440_491042.jpg",
    } | changes


def mmdocir_question(**changes: Any) -> dict[str, Any]:
    return {
        "Q": "How many?",
        "A": "18.29%",
        "page_id": [1],
        "type": "['Chart', 'Table']",
        "layout_mapping": [{"page": 1, "page_size": [612.0, 792.0], "bbox": [61.2, 79.2, 306, 396]}],
    } | changes


def mmdocir_folder(folder: Path, questions: list[Any], name: str = "report.pdf") -> Path:
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
            "image_binary": encoded_picture((1224, 1584), (100 * page, 0, 0)),
            "ocr_text": "",
            "vlm_text": "",
        }
        for page in range(3)
    ]
    write_table(folder / "MMDocIR_pages.parquet", pages)
    return folder


def mmlongbench_doc_row(**changes: Any) -> dict[str, Any]:
    return {
        "doc_id": "report.pdf",
        "doc_type": "Brochure",
        "question": "How many?",
        "answer": "8",
        "evidence_pages": "[2, 3]",
        "evidence_sources": "['Table']",
        "answer_format": "Int",
    } | changes


def vidstg_row(**changes: Any) -> dict[str, Any]:
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


def mmlongbench_needle_row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "niah-0",
        "question": "Which of these is in the document?",
        "answer": 1,
        "ctxs": [{"type": "text", "text": "One."}, {"text": "<image>"}, {"text": "Two <image> and <image>."}],
        "positive_ctxs": [{"type": "image", "image": "needle.png", "text": "<image>"}],
        "image_list": ["mm-niah/a.png", "mm-niah/needle.png", "mm-niah/b.png"],
        "choices_image": ["mm-niah/c0.png", "mm-niah/c1.png"],
    } | changes


def mmlongbench_document_row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "mmlongdoc_0",
        "doc_name": "report",
        "question": "How many?",
        "answer": "18",
        "ans_page_list": [1],
        "answer_sources": ["Chart"],
        "answer_format": "Int",
        "page_list": [f"mmlongbench-doc/report/report_page{page}.jpg" for page in range(3)],
        "length": 8000,
    } | changes


def videomme_row(**changes: Any) -> dict[str, Any]:
    return {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Humanity & History",
        "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
        "videoID": "fFjv93ACGo8",
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "Which of these decorations is the most numerous?",
        "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. All are equally many."],
        "answer": "C",
    } | changes


def mlvu_row(**changes: Any) -> dict[str, Any]:
    return {
        "video": "needle_32.mp4",
        "duration": 480.0,
        "question": "What does the hand hold?",
        "candidates": ["A cup", "A pen", "A fish", "A key"],
        "answer": "A pen",
        "question_type": "findNeedle",
    } | changes
