"""MMLongBench: five categories of long-context tasks at five lengths (Wang et al., 2025; Hub: ZhaoweiWang/MMLongBench).

Not to be confused with MMLongBench-Doc, another benchmark.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from corelens.data.readers.archives import unpack_archives
from corelens.data.readers.base import (
    BadRow,
    ListOf,
    Row,
    Samples,
    Text,
    dataset_folder,
    media_file,
    raise_error,
    read_field,
    read_json,
    read_line,
    read_lines,
)
from corelens.data.sample import Evidence, Sample
from corelens.errors import check_choice

LENGTHS = (8, 16, 32, 64, 128)
INTERLEAVED = (
    "You are given interleaved text and images. Please answer the question based on the given text and images.\n\n"
)
IMAGE = re.compile("<image>")
PAGE_FILE = re.compile(r"(?P<document>.*)(_page(?P<page>\d+)|-(?P<slide>\d+)-\d+)")
"""Name of a page's file: `{document}_page{number}`, counted from zero, or `{deck}-{number}-{width}`, from one."""


class Task(NamedTuple):
    """A task's category, and the function that makes samples of its rows."""

    category: str
    sample: Callable[[str, Mapping[str, Any], Path], Sample]


def mmlongbench(source: str | PathLike[str], task: str, length: int = 8, seed: int = 0) -> Samples:
    """Read one sample per row of one task at one length, with text and pictures interleaved.

    Two kinds of tasks have evidence: those of `NIAH` with needles among the pictures, all of the needle, and those of
    `DocVQA`, all of every page with the answer (`ans_page_list`), as in appendix C.3 of arXiv 2606.05843. The
    instructions are ours; they are shorter versions of the authors'. Where the data set has no question, ours is it.

    Args:
        source: The folder that holds `mmlb_data` and `mmlb_image`, the unpacked archives of the Hub's repository; or
            its id, `ZhaoweiWang/MMLongBench`: then they are downloaded and unpacked beside Hugging Face's cache.
        task: A name of `TASKS`, such as `retrieval-image`, `infoseek` or `slidevqa`.
        length: Thousands of tokens: 8, 16, 32, 64 or 128.
        seed: Chooses and orders the examples of many-shot tasks, as the authors' code does without one.
    """
    check_choice("task", task, TASKS)
    check_choice("length", length, LENGTHS)
    if seed < 0:
        raise ValueError(f"seed={seed} is negative.")
    folder = dataset_folder(source, ["*.tar.gz"])
    if not Path(source).expanduser().is_dir():
        folder = unpack_archives(folder, "MMLongBench")
    if not (folder / "mmlb_data").is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(folder / 'mmlb_data')!r}. MMLongBench comes in archives: pass the Hub id "
            f"ZhaoweiWang/MMLongBench, or `hf download ZhaoweiWang/MMLongBench --repo-type dataset --local-dir FOLDER` "
            f"and unpack every .tar.gz there."
        )
    endings = re.compile(rf"_K{length}(_.*)?\.jsonl?$")
    paths = [path for path in sorted((folder / "mmlb_data").rglob(f"{task}*")) if endings.search(path.name)]
    if not paths:
        raise FileNotFoundError(f"{str(folder / 'mmlb_data')!r} holds no file {task}*_K{length}*.jsonl.")
    rows = _examples if TASKS[task].category == "ICL" else _lines
    return Samples(f"MMLongBench {task}, {length}K", partial(_rows, rows, paths, folder, task, length, seed))


def _rows(
    rows: Callable[..., Any], paths: list[Path], folder: Path, task: str, length: int, seed: int
) -> Iterator[Row]:
    for path in paths:
        for name, make_row in rows(path, seed):
            yield name, partial(_sample, name, make_row, TASKS[task], folder / "mmlb_image", task, length)


def _lines(path: Path, seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    for number, line in read_lines(path):
        yield f"{path.stem}-{number}", partial(read_line, line)


def _examples(path: Path, seed: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Questions of a many-shot task, each with its own order of examples."""
    domains = read_json(path)
    if not isinstance(domains, dict):
        raise ValueError(f"{str(path)!r} does not contain examples by domain.")
    for domain, content in domains.items():
        try:
            sets, questions = read_field(content, "exemplar_list", list), read_field(content, "test_example", list)
        except BadRow as cause:
            yield f"{path.stem}-{domain}", partial(raise_error, cause)
            continue
        for number, question in enumerate(questions):
            yield f"{path.stem}-{domain}-{number}", partial(_with_examples, sets, question, [seed, number])


def _with_examples(sets: list[Any], question: Any, seed: list[int]) -> dict[str, Any]:
    """Question with one of several sets of examples, which come in rounds and are shuffled within each round."""
    if not isinstance(question, dict) or not sets:
        raise BadRow("its question is not an object, or there are no examples")
    rng = np.random.default_rng(seed)
    rounds = sets[rng.integers(len(sets))]
    if not isinstance(rounds, list) or not all(isinstance(part, list) for part in rounds):
        raise BadRow("its examples do not come in rounds")
    return {**question, "examples": [part[index] for part in rounds for index in rng.permutation(len(part))]}


def _sample(name: str, make_row: Callable[[], Any], task: Task, folder: Path, task_name: str, length: int) -> Sample:
    row = make_row()
    sample = task.sample(name, row, folder)
    about = {"category": task.category, "task": task_name, "length": length, "id": row.get("id")}
    return replace(sample, about={**about, **sample.about})


def _interleave(marked: str, n_pictures: int) -> tuple[str | int, ...]:
    """Split a text with `<image>` at the places of pictures into texts and picture numbers."""
    texts = IMAGE.split(marked)
    if len(texts) - 1 != n_pictures:
        raise BadRow(f"its text has places for {len(texts) - 1} pictures, and it has {n_pictures}")
    parts: list[str | int] = [texts[0]]
    for number, text in enumerate(texts[1:]):
        parts += [number, text]
    return tuple(part for part in parts if part != "")


def _pictures(row: Mapping[str, Any], names: list[str], folder: Path) -> tuple[str, ...]:
    paths = [path for name in names for path in read_field(row, name, ListOf[str])]
    return tuple(media_file(folder, path) for path in paths)


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Accepted answers; the field holds one or several."""
    value = read_field(row, "answer", str | list | int)
    answers = tuple(str(answer).strip() for answer in (value if isinstance(value, list) else [value]))
    if not answers or not all(answers):
        raise BadRow("its 'answer' is empty")
    return answers


def _context(row: Mapping[str, Any]) -> str:
    return "\n\n".join(read_field(part, "text", Text) for part in read_field(row, "ctxs", list))


def _needles(row: Mapping[str, Any]) -> tuple[Evidence, ...]:
    """Evidence for the pictures of the haystack that are needles."""
    needles = [part["image"] for part in row.get("positive_ctxs") or () if isinstance(part, dict) and part.get("image")]
    # Needles are named without the folder of their task.
    media = [
        index
        for index, path in enumerate(row["image_list"])
        if any(path == needle or path.endswith(f"/{needle}") for needle in needles)
    ]
    if not media:
        raise BadRow("none of its pictures is a needle that 'positive_ctxs' names")
    return tuple(Evidence(media=index) for index in media)


def _retrieval_augmented(name: str, row: Mapping[str, Any], folder: Path) -> Sample:
    passages = [
        f"Document (Title: {read_field(part, 'title', Text)}): {read_field(part, 'text', Text)}"
        for part in read_field(row, "ctxs", list)
    ]
    question, (answer, *others) = read_field(row, "question", Text), _answers(row)
    instruction = "Use the given documents to answer the question about the entity shown in the image.\n\n"
    picture = read_field(row, "image", Text)
    return Sample(
        name,
        question,
        answer,
        (media_file(folder, picture),),
        prompt=(instruction + "\n\n".join(passages) + "\n\n", 0, f"Question: {question}"),
        also_accepted=tuple(others),
        scoring="contains",
        about={"group": picture},
    )


def _visual_haystack(name: str, row: Mapping[str, Any], folder: Path) -> Sample:
    answer = {"0": "No", "1": "Yes"}.get(_answers(row)[0], _answers(row)[0])
    question, pictures = read_field(row, "question", Text), _pictures(row, ["ctxs"], folder)
    return Sample(name, question, answer, pictures, instruction=" Answer Yes or No.", scoring="yes-no")


def _text_needle(name: str, row: Mapping[str, Any], folder: Path) -> Sample:
    pictures, question = _pictures(row, ["image_list"], folder), read_field(row, "question", Text)
    answer, *others = _answers(row)
    return Sample(
        name,
        question,
        answer,
        pictures,
        prompt=_interleave(f"{INTERLEAVED}{_context(row)}\n\nQuestion: {question}", len(pictures)),
        also_accepted=tuple(others),
        scoring="contains",
    )


def _counting(name: str, row: Mapping[str, Any], folder: Path) -> Sample:
    """Sample that asks for a count; the answer is a list of numbers, which is scored by its sum."""
    images = ["image_list", "needle_image_list"] if "needle_image_list" in row else ["image_list"]
    pictures, question = _pictures(row, images, folder), read_field(row, "question", Text)
    return Sample(
        name,
        question,
        str(read_field(row, "answer", list)),
        pictures,
        _needles(row) if "needle_image_list" in row else (),
        prompt=_interleave(f"{INTERLEAVED}{_context(row)}\n\nQuestion: {question}", len(pictures)),
        scoring="count",
    )


def _image_needle(name: str, row: Mapping[str, Any], folder: Path) -> Sample:
    """Sample that asks which of several pictures occurs in the document."""
    pictures, question = _pictures(row, ["image_list", "choices_image"], folder), read_field(row, "question", Text)
    letters = [chr(ord("A") + index) for index in range(len(row["choices_image"]))]
    if not 0 <= (correct := read_field(row, "answer", int)) < len(letters):
        raise BadRow(f"its 'answer' is {correct}, and it has {len(letters)} choices")
    options = "".join(f"\n{letter}. <image>" for letter in letters)
    instruction = f"{options}\nAnswer with the option's letter."
    return Sample(
        name,
        question,
        letters[correct],
        pictures,
        _needles(row),
        prompt=_interleave(f"{INTERLEAVED}{_context(row)}\n\nQuestion: {question}{instruction}", len(pictures)),
        instruction=instruction,
        choices=tuple(letters),
        scoring="choice",
    )


def _many_shot(name: str, row: Mapping[str, Any], folder: Path) -> Sample:
    examples = read_field(row, "examples", list)
    pictures = tuple(media_file(folder, read_field(part, "image", Text)) for part in [*examples, row])
    labels = "\n\n".join(f"<image>\nlabel: {read_field(part, 'id', int | str)}" for part in examples)
    question, instruction = "Now classify this image.", ' Only output "label: {label}".'
    return Sample(
        name,
        question,
        _answers(row)[0],
        pictures,
        prompt=_interleave(f"Training examples:\n{labels}\n\n{question}{instruction} <image>", len(pictures)),
        instruction=instruction,
        scoring="label",
    )


def _pages(row: Mapping[str, Any], name: str) -> str:
    """Pages, each under the document name and page number in its path: `.../{document}/page{n}.png`."""
    paths = [Path(path) for path in read_field(row, name, ListOf[str])]
    return "\n\n".join(
        f"Document {path.parent.name[:15]} (page {path.stem.split('page')[-1]}): <image>" for path in paths
    )


def _answer_pages(row: Mapping[str, Any], document: str) -> tuple[Evidence, ...]:
    """Evidence for the shown pages with the answer; pages of other documents may be among those shown.

    The authors number pages with answers from zero, and files as `PAGE_FILE` says (README of their code, "DocVQA page
    indices").
    """
    if not row.get("ans_page_list"):
        return ()
    numbers, media = read_field(row, "ans_page_list", ListOf[int]), []
    for index, path in enumerate(read_field(row, "page_list", ListOf[str])):
        match = PAGE_FILE.fullmatch(Path(path).stem)
        if match is None:
            raise BadRow(f"its page {path!r} has no page number")
        number = int(match["page"]) if match["page"] else int(match["slide"]) - 1
        if document in (match["document"], Path(path).parent.name) and number in numbers:
            media.append(index)
    return tuple(Evidence(media=index) for index in media)


def _summary(name: str, row: Mapping[str, Any], folder: Path) -> Sample:
    summary, pictures = read_field(row, "summary", str | list), _pictures(row, ["image_list"], folder)
    if isinstance(summary, list):
        summary = "\n\n".join(
            f"{read_field(part, 'section_title', Text)}:\n" + "\n".join(read_field(part, "paragraphs", list))
            for part in summary
        )
    question = "Summarize these documents."
    prompt = _interleave(f"{_pages(row, 'image_list')}\n\n{question}", len(pictures))
    return Sample(name, question, summary, pictures, prompt=prompt, scoring="judge")


def _document(name: str, row: Mapping[str, Any], folder: Path) -> Sample:
    pictures = _pictures(row, ["page_list"], folder)
    question, document = read_field(row, "question", Text), read_field(row, "doc_name", Text)
    instruction = (
        f"Based on Document {document[:15]}, answer the following question as concisely as you can, or write 'Not "
        f"answerable'. {question}"
    )
    return Sample(
        name,
        question,
        str(read_field(row, "answer", str | int | float)),
        pictures,
        _answer_pages(row, document),
        prompt=_interleave(f"{_pages(row, 'page_list')}\n\n{instruction}", len(pictures)),
        scoring="mmlongbench-docqa",
        about={"document": document, "group": document, "answer format": read_field(row, "answer_format", Text)},
    )


TASKS: dict[str, Task] = {
    **dict.fromkeys(("infoseek", "viquae"), Task("VRAG", _retrieval_augmented)),
    **dict.fromkeys(("vh_single", "vh_multi"), Task("NIAH", _visual_haystack)),
    **dict.fromkeys(("retrieval-text", "reasoning-text"), Task("NIAH", _text_needle)),
    **dict.fromkeys(("counting-text", "counting-image"), Task("NIAH", _counting)),
    **dict.fromkeys(
        ("retrieval-image", "reasoning-image", "text-haystack_retrieval-image"), Task("NIAH", _image_needle)
    ),
    **dict.fromkeys(("cars196", "food101", "inat2021", "sun397"), Task("ICL", _many_shot)),
    **dict.fromkeys(("gov-report", "lexsum", "multi-lexsum"), Task("summarisation", _summary)),
    **dict.fromkeys(("longdocurl", "mmlongdoc", "slidevqa"), Task("DocVQA", _document)),
}
"""Every task, by the prefix of its file names."""
