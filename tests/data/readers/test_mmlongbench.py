"""The reader of MMLongBench, on tiny files of the published form with every kind of broken row."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from PIL import Image

from corelens.data import Evidence, Sample, mmlongbench, score
from corelens.data.readers.base import media_file
from tests.helpers.dataset_files import (
    mmlongbench_document_row,
    mmlongbench_needle_row,
    read_with_skips,
    write_json,
    write_lines,
)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    folder = tmp_path / "mmlb_image" / "mm-niah"
    folder.mkdir(parents=True)
    for name in ("a", "b", "needle", "c0", "c1", "page1", "page2", "a-1-1024", "a-2-1024"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    return tmp_path


def test_mmlongbench_puts_pictures_into_their_places_and_knows_image_needles(bench: Path):
    write_lines(bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K8_dep6.jsonl", [mmlongbench_needle_row()])
    write_lines(
        bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K16_dep6.jsonl",
        [mmlongbench_needle_row(), mmlongbench_needle_row()],
    )
    (sample,) = mmlongbench(bench, "retrieval-image", 8)
    assert [region.media for region in sample.evidence] == [1]
    assert [Path(image).name for image in sample.images] == ["a.png", "needle.png", "b.png", "c0.png", "c1.png"]
    assert [part for part in sample.prompt if isinstance(part, int)] == [0, 1, 2, 3, 4]
    assert sample.prompt[2] == "\n\nTwo "
    assert sample.prompt[-5].endswith("Question: Which of these is in the document?\nA. ")
    assert sample.prompt[-4:-1] == (3, "\nB. ", 4)
    assert_question_follows(sample, mmlongbench_needle_row())
    assert sample.choices == ("A", "B")
    assert (score(sample, "B"), score(sample, "(A)"), score(sample, "a dog")) == (1, 0, None)
    assert sample.about | {"id": "niah-0", "category": "NIAH", "length": 8} == sample.about
    assert len(list(mmlongbench(bench, "retrieval-image", 16))) == 2
    parts = sample.chat[0]["content"]
    assert [part["type"] for part in parts][:4] == ["text", "image", "text", "image"]


def test_mmlongbench_of_the_hub_is_unpacked_once(
    bench: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    write_lines(bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K8_dep6.jsonl", [mmlongbench_needle_row()])
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
        mmlongbench_needle_row(),
        mmlongbench_needle_row(answer=2),
        mmlongbench_needle_row(image_list=["mm-niah/absent.png", "mm-niah/needle.png", "mm-niah/b.png"]),
        mmlongbench_needle_row(ctxs=[{"text": "<image>"}]),
        mmlongbench_needle_row(positive_ctxs=[{"image": "other.png"}]),
        "{broken",
        mmlongbench_needle_row(question=""),
    ]
    write_lines(bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K8_dep6.jsonl", rows)
    samples, skipped = read_with_skips(mmlongbench(bench, "retrieval-image"))
    assert len(samples) == 1
    reasons = [
        "'answer' is 2, and it has 2 choices", "does not exist", "places for 3 pictures, and it has 5",
        "is a needle that", "not JSON", "'question' is '': String should have at least 1 character",
    ]  # fmt: skip
    assert len(skipped) == len(reasons)
    for message, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in message


def rows_of_other_tasks() -> Iterator[tuple[str, str, Any, str, int]]:
    """Task, file, row, a right answer, and how many pictures the sample has."""
    text = {"ctxs": [{"title": "T", "text": "a passage"}], "question": "Who?", "id": "1"}
    yield (
        "infoseek",
        "vrag/infoseek_K8.jsonl",
        text | {"image": "mm-niah/a.png", "answer": ["Ann", "Ann B"]},
        "It is ann b.",
        1,
    )
    haystack = {"ctxs": ["mm-niah/a.png", "mm-niah/b.png"], "question": "Is there a dog?", "answer": 1}
    yield "vh_single", "NIAH/vh_single_test_1000_K8_dep3.jsonl", haystack, "Yes, there is.", 2
    needle = mmlongbench_needle_row(answer="42", ctxs=[{"text": "a <image> b"}], image_list=["mm-niah/a.png"])
    yield "retrieval-text", "NIAH/retrieval-text_test_K8_dep6.jsonl", needle, "Answer: 42", 1
    counting = mmlongbench_needle_row(
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
    page = {"page_list": ["mm-niah/a-1-1024.png", "mm-niah/a-2-1024.png"], "doc_name": "a", "question": "How many?"}
    yield "slidevqa", "docqa/slidevqa_K8.jsonl", page | {"answer": "18", "answer_format": "Integer"}, "There are 18.", 2


def assert_question_follows(sample: Sample, row: Any) -> None:
    """The prompt holds the data set's question as it is, and the instruction after it."""
    assert sample.question == row["question"]
    texts = "".join("<image>" if isinstance(part, int) else part for part in sample.prompt)
    assert not texts or sample.question + sample.instruction in texts


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
    assert_question_follows(sample, row if "question" in row else {"question": "Now classify this image."})
    assert len(sample.images) == len(sample.pictures) == n
    assert score(sample, right) == 1
    assert score(sample, "no 7") in (0, None)
    assert bool(sample.evidence) == (task == "counting-image")
    # The picture or document that rows of a task may share.
    assert sample.group == {"infoseek": "mm-niah/a.png", "slidevqa": "a"}.get(task, sample.id)


@pytest.mark.parametrize(
    ("task", "pages", "expected"),
    [
        # Names count from zero, as answers do; pages of other documents pad the context.
        (
            "mmlongdoc",
            ["report/report_page0", "report/report_page1", "41/41_page1", "report/report_page12"],
            [1, 3],
        ),
        ("longdocurl", ["41/41_page4", "report/report_page1"], [1]),
        # Names of slides count from one.
        ("slidevqa", ["report/deck-a-1-1024", "report/deck-a-2-1024", "x/report-2-1024", "x/deck-2-1024"], [1, 2]),
    ],
)
def test_evidence_of_documents_is_the_pages_with_the_answer(
    tmp_path: Path, task: str, pages: list[str], expected: list[int]
):
    paths = [f"{page}.jpg" for page in pages]
    for path in (*paths, "report/cover.jpg"):
        (tmp_path / "mmlb_image" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "mmlb_image" / path)
    row = mmlongbench_document_row(page_list=paths, ans_page_list=[1, 12])
    rows = [
        row,
        row | {"ans_page_list": [7]},
        row | {"ans_page_list": []},
        row | {"page_list": [*paths, "report/cover.jpg"]},
    ]
    write_lines(tmp_path / "mmlb_data" / "documentQA" / f"{task}_K8.jsonl", rows)
    samples, skipped = read_with_skips(mmlongbench(tmp_path, task))
    assert samples[0].evidence == tuple(Evidence(media=index) for index in expected)
    assert samples[1].evidence == samples[2].evidence == ()
    assert "has no page number" in skipped[f"{task}_K8-4"]
    assert samples[0].question == "How many?"
    assert samples[0].prompt[-1].endswith("or write 'Not answerable'. How many?")


def test_mmlongbench_summaries_are_left_to_a_judge(bench: Path):
    row = {"id": 1, "image_list": ["mm-niah/page1.png"], "summary": [{"section_title": "A", "paragraphs": ["b", "c"]}]}
    write_lines(bench / "mmlb_data" / "summ" / "gov-report_K8.jsonl", [row])
    (sample,) = mmlongbench(bench, "gov-report")
    assert sample.answer == "A:\nb\nc"
    with pytest.raises(ValueError, match="is scored by 'judge'; the rules of corelens are exact"):
        score(sample, "b")


def test_mmlongbench_skips_broken_examples(bench: Path):
    example = {"image": "mm-niah/a.png", "id": 3}
    question = {"image": "mm-niah/c0.png", "answer": 3}
    domains = {
        "right": {"exemplar_list": [[[example]]], "test_example": [question]},
        "none": {"exemplar_list": [], "test_example": [question]},
        "flat": {"exemplar_list": [[example]], "test_example": [question]},
        "bare": {"exemplar_list": [[[{"image": "mm-niah/a.png"}]]], "test_example": [question]},
        "absent": {"test_example": [question]},
    }
    write_json(bench / "mmlb_data" / "food101_K8.json", domains)
    samples, skipped = read_with_skips(mmlongbench(bench, "food101"))
    assert [sample.id for sample in samples] == ["food101_K8-right-0"]
    reasons = ["no examples", "do not come in rounds", "no field 'id'", "no field 'exemplar_list'"]
    for message, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in message


def test_mmlongbench_says_how_to_unpack_it_and_which_tasks_there_are(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"hf download ZhaoweiWang/MMLongBench.*unpack every \.tar\.gz"):
        mmlongbench(tmp_path, "infoseek")
    with pytest.raises(ValueError, match="task='NIAH' is not known; it is one of infoseek"):
        mmlongbench(tmp_path, "NIAH")
    with pytest.raises(ValueError, match="length=9 is not known"):
        mmlongbench(tmp_path, "infoseek", 9)
    (tmp_path / "mmlb_data").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no file infoseek"):
        mmlongbench(tmp_path, "infoseek")


OUTSIDE = {
    "an absolute path": lambda private: str(private),
    "the folder above": lambda private: "../../private.png",
    "a link": lambda private: "link.png",
}
"""Ways to name a picture that is none of the data set."""


@pytest.mark.parametrize("way", OUTSIDE)
def test_rows_name_no_picture_outside_of_the_data_set(way: str, bench: Path):
    private = bench.parent / "private.png"
    Image.new("RGB", (30, 30)).save(private)
    (bench / "mmlb_image" / "link.png").symlink_to(private)
    row = {"id": "1", "question": "q ?", "answer": ["a"], "ctxs": [{"title": "t", "text": "x"}]}
    rows = [row | {"image": OUTSIDE[way](private)}, row | {"image": "mm-niah/a.png"}]
    write_lines(bench / "mmlb_data" / "VRAG" / "infoseek_K8.jsonl", rows)
    samples, skipped = read_with_skips(mmlongbench(bench, "infoseek", 8))
    assert [Path(sample.images[0]).name for sample in samples] == ["a.png"]
    assert ["lies outside of" in reason for reason in skipped.values()] == [True]


def test_a_picture_that_the_cache_of_hugging_face_links_to_is_within(tmp_path: Path):
    blobs, revision = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    revision.mkdir(parents=True)
    (blobs / "0123").write_bytes(b"x")
    (revision / "a.png").symlink_to(blobs / "0123")
    assert media_file(revision, "a.png") == str(revision / "a.png")


def test_no_line_ends_the_reader(bench: Path):
    (bench / "mmlb_data" / "NIAH").mkdir(parents=True)
    lines = [b'{"a": 1}', b"[" * 100_000, b"\xff\xfe", b'{"image_list": 1e400}', b"9" * 5000, b'{"b": 1}']
    (bench / "mmlb_data" / "NIAH" / "retrieval-image_K8.jsonl").write_bytes(b"\n".join(lines))
    samples, skipped = read_with_skips(mmlongbench(bench, "retrieval-image", 8))
    assert (samples, len(skipped)) == ([], len(lines))
