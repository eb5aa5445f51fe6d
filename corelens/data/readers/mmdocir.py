"""MMDocIR: questions on long documents with the layouts that answer them (Dong et al., 2025).

Hub: MMDocIR/MMDocIR_Evaluation_Dataset.
"""

from collections.abc import Iterator
from functools import partial
from os import PathLike
from typing import Any, Literal

from corelens.data.readers.base import (
    BadRow,
    Row,
    Samples,
    StoredPicture,
    box_in,
    files_in,
    folder_of,
    get_field,
    list_field,
    number_list,
    picture_size,
    read_line,
    read_lines,
    read_table,
    refuse,
    text_field,
)
from corelens.data.sample import Evidence, Sample


def mmdocir(
    source: str | PathLike[str] = "MMDocIR/MMDocIR_Evaluation_Dataset", pages: Literal["all", "evidence"] = "all"
) -> Samples:
    """One sample per question; the evidence are its layouts, or whole pages where a page has no layout.

    Pages count from zero. Boxes of layouts are in units of `page_size` and become pixels of the page's picture.
    Answers are scored by ANLS; this is ours, since the authors measure retrieval alone.

    Args:
        source: A folder with `*annotations.jsonl` and `*pages.parquet`, or a Hub id.
        pages: `all` shows the model the whole document (65 pages on average), `evidence` only the pages that hold the
            evidence.
    """
    if pages not in ("all", "evidence"):
        raise ValueError(f"pages={pages!r} is not known; pages are all or evidence.")
    folder = folder_of(source, ["*annotations.jsonl", "*pages.parquet"])
    annotations = files_in(folder, "*annotations.jsonl")[0]
    stored = read_table(files_in(folder, "*pages.parquet"))
    where: dict[str, dict[int, int]] = {}
    for row, (document, page) in enumerate(zip(stored["doc_name"], stored["passage_id"], strict=True)):
        if not str(page).isdigit():
            raise ValueError(f"row {row} of the pages has the passage_id {page!r}, which is no number of a page.")
        where.setdefault(_name(document), {})[int(page)] = row

    def read() -> Iterator[Row]:
        for number, line in read_lines(annotations):
            try:
                document = read_line(line)
                name, questions = text_field(document, "doc_name"), get_field(document, "questions", list)
            except BadRow as cause:
                yield f"line {number}", partial(refuse, cause)
                continue
            for index, asked in enumerate(questions):
                row = f"{_name(name)}-{index}"
                yield row, partial(_sample, row, asked, document, where, stored, pages)

    return Samples("MMDocIR", read)


def _name(document: str) -> str:
    """Names come with and without their ending."""
    return document.removesuffix(".pdf")


def _sample(row: str, asked: Any, document: Any, where: Any, stored: Any, pages: str) -> Sample:
    found = where.get(_name(document["doc_name"]))
    if found is None:
        raise BadRow(f"there are no pages of its document {document['doc_name']!r}")
    holding = sorted({*list_field(asked, "page_id", int)})
    if not holding:
        raise BadRow("its 'page_id' is empty")
    if missing := [page for page in holding if page not in found]:
        raise BadRow(f"its document has no page {missing}; it has {min(found)} to {max(found)}, counted from zero")
    shown = holding if pages == "evidence" else sorted(found)
    pictures = {page: StoredPicture(stored, found[page], "image_binary") for page in shown}
    evidence = []
    for layout in get_field(asked, "layout_mapping", list):
        page = get_field(layout, "page", int)
        if page not in holding:
            raise BadRow(f"a layout is on page {page}, which is not among its evidence pages {holding}")
        size = picture_size(pictures[page])
        width, height = number_list(layout, "page_size", 2)
        if min(width, height) <= 0:
            raise BadRow(f"its 'page_size' is {width} x {height}")
        box = box_in(number_list(layout, "bbox", 4), size, (size[0] / width, size[1] / height))
        evidence.append(Evidence(box, shown.index(page)))
    covered = {region.media for region in evidence}
    whole = [Evidence(media=shown.index(page)) for page in holding if shown.index(page) not in covered]
    return Sample(
        row,
        text_field(asked, "Q"),
        text_field(asked, "A"),
        tuple(pictures.values()),
        (*evidence, *whole),
        scoring="anls",
        about={
            "document": _name(document["doc_name"]),
            "domain": document.get("domain"),
            "kinds": list_field(asked, "type", str),
            "pages": shown,
        },
    )
