"""MMDocIR: questions on long documents with the layouts that answer them (Dong et al., 2025).

Hub: MMDocIR/MMDocIR_Evaluation_Dataset.
"""

from collections.abc import Iterator
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from corelens.data.readers.base import (
    BadRow,
    Corners,
    ListOf,
    Number,
    Regions,
    Row,
    Samples,
    StoredPicture,
    Text,
    dataset_folder,
    find_files,
    pixel_box,
    raise_error,
    read_field,
    read_line,
    read_lines,
    read_table,
    stored_form,
)
from corelens.data.sample import Evidence, Sample
from corelens.errors import check_choice

Pages = Literal["all", "evidence"]
PageSize = Annotated[list[Number], Field(min_length=2, max_length=2)]


def mmdocir(
    source: str | PathLike[str] = "MMDocIR/MMDocIR_Evaluation_Dataset",
    pages: Pages = "all",
    evidence: Regions = "annotated",
) -> Samples:
    """Read one sample per question; the layouts or pages with the answer are its evidence.

    Pages count from zero. Boxes of layouts are in units of `page_size` and become pixels of the page's picture.
    Answers are scored by ANLS; this is ours, since the authors measure retrieval alone.

    Args:
        source: A folder with `*annotations.jsonl` and `*pages.parquet`, or a Hub id.
        pages: `all` shows the model the whole document (65 pages on average), `evidence` only the evidence pages.
        evidence: `annotated`: the layouts, or the whole page where a page has no layout. `published`: whole pages; in
            appendix C.2 of arXiv 2606.05843 the whole picture is the evidence, and here the pictures are pages.
    """
    check_choice("pages", pages, Pages)
    check_choice("evidence", evidence, Regions)
    folder = dataset_folder(source, ["*annotations.jsonl", "*pages.parquet"])
    annotations = find_files(folder, "*annotations.jsonl")[0]
    table = read_table(find_files(folder, "*pages.parquet"))
    rows_of_pages: dict[str, dict[int, int]] = {}
    for row, (document, page) in enumerate(zip(table["doc_name"], table["passage_id"], strict=True)):
        if not str(page).isdigit():
            raise ValueError(f"row {row} of the pages has the passage_id {page!r}, which is not a page number.")
        rows_of_pages.setdefault(_name(document), {})[int(page)] = row
    return Samples(
        "MMDocIR, whole pages" if evidence == "published" else "MMDocIR",
        partial(_rows, annotations, rows_of_pages, table, pages, evidence),
    )


def _rows(
    annotations: Path, rows_of_pages: dict[str, dict[int, int]], table: Any, pages: str, evidence: Regions
) -> Iterator[Row]:
    for number, line in read_lines(annotations):
        try:
            document = read_line(line)
            name, questions = read_field(document, "doc_name", Text), read_field(document, "questions", list)
        except BadRow as cause:
            yield f"line {number}", partial(raise_error, cause)
            continue
        for index, question in enumerate(questions):
            row = f"{_name(name)}-{index}"
            yield row, partial(_sample, row, question, document, rows_of_pages, table, pages, evidence)


def _name(document: str) -> str:
    """Name of a document without its ending, which some files leave out."""
    return document.removesuffix(".pdf")


def _sample(
    row: str,
    question: Any,
    document: Any,
    rows_of_pages: dict[str, dict[int, int]],
    table: Any,
    pages: str,
    kind_of_evidence: Regions,
) -> Sample:
    row_of_page = rows_of_pages.get(_name(document["doc_name"]))
    if row_of_page is None:
        raise BadRow(f"there are no pages of its document {document['doc_name']!r}")
    evidence_pages = sorted({*read_field(question, "page_id", ListOf[int])})
    if not evidence_pages:
        raise BadRow("its 'page_id' is empty")
    if missing := [page for page in evidence_pages if page not in row_of_page]:
        raise BadRow(
            f"its document has no page {missing}; it has {min(row_of_page)} to {max(row_of_page)}, counted from zero"
        )
    shown_pages = evidence_pages if pages == "evidence" else sorted(row_of_page)
    pictures = {page: StoredPicture(table, row_of_page[page], "image_binary") for page in shown_pages}
    evidence = []
    for layout in read_field(question, "layout_mapping", list) if kind_of_evidence == "annotated" else ():
        page = read_field(layout, "page", int)
        if page not in evidence_pages:
            raise BadRow(f"a layout is on page {page}, which is not among its evidence pages {evidence_pages}")
        size, orientation = stored_form(pictures[page])
        width, height = read_field(layout, "page_size", PageSize)
        if min(width, height) <= 0:
            raise BadRow(f"its 'page_size' is {width} x {height}")
        box = pixel_box(read_field(layout, "bbox", Corners), size, (size[0] / width, size[1] / height), orientation)
        evidence.append(Evidence(box, shown_pages.index(page)))
    with_layout = {region.media for region in evidence}
    media = [shown_pages.index(page) for page in evidence_pages]
    evidence += [Evidence(media=number) for number in media if number not in with_layout]
    name = _name(document["doc_name"])
    return Sample(
        row,
        read_field(question, "Q", Text),
        read_field(question, "A", Text),
        tuple(pictures.values()),
        tuple(evidence),
        scoring="anls",
        about={
            "document": name,
            "domain": document.get("domain"),
            "kinds": read_field(question, "type", ListOf[str]),
            "pages": shown_pages,
            "group": name,
        },
    )
