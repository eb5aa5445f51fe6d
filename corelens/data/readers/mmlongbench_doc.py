"""MMLongBench-Doc: questions on long PDF documents (Ma et al., 2024; Hub: yubo2333/MMLongBench-Doc).

Not to be confused with MMLongBench, another benchmark.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from corelens.data.readers.base import (
    BadRow,
    ListOf,
    Row,
    Samples,
    Text,
    dataset_folder,
    find_files,
    read_field,
    read_rows,
    read_table,
    require_package,
)
from corelens.data.sample import Evidence, Sample
from corelens.data.scoring.documents import DOC_FORMATS
from corelens.errors import check_choice

Pages = Literal["all", "evidence"]


def mmlongbench_doc(
    source: str | PathLike[str] = "yubo2333/MMLongBench-Doc",
    pages: Pages = "all",
    dots_per_inch: int = 144,
) -> Samples:
    """Read one sample per question; whole pages are the evidence. Unanswerable questions have none.

    Pages count from one in the data set, and from zero in `about["pages"]`.

    Args:
        source: A folder with `samples.json` or `*.parquet`, and the PDFs in `documents/`; or a Hub id.
        pages: `all` shows the model the whole document (47 pages on average), `evidence` only the evidence pages.
        dots_per_inch: Resolution of the pages; the authors' 144 give pictures of 1224 x 1584 pixels for a letter.
    """
    check_choice("pages", pages, Pages)
    if dots_per_inch < 1:
        raise ValueError(f"dots_per_inch={dots_per_inch} is less than one.")
    folder = dataset_folder(source, ["data/*.parquet", "samples.json", "documents/*.pdf"])
    paths = find_files(folder, "samples.json", "*.parquet")
    rows = read_rows(paths[0]) if paths[0].suffix == ".json" else read_table(paths)
    documents = {path.name: path for path in folder.rglob("*.pdf")}
    return Samples("MMLongBench-Doc", partial(_rows, rows, documents, pages, dots_per_inch))


def _rows(rows: Any, documents: Mapping[str, Path], pages: str, dots_per_inch: int) -> Iterator[Row]:
    for index in range(len(rows)):
        row = f"{rows[index].get('doc_id', '')}-{index}"
        yield row, partial(_sample, row, rows[index], documents, pages, dots_per_inch)


def _sample(
    row: str, question: Mapping[str, Any], documents: Mapping[str, Path], pages: str, dots_per_inch: int
) -> Sample:
    document, answer_format = read_field(question, "doc_id", Text), read_field(question, "answer_format", Text)
    if answer_format not in DOC_FORMATS:
        raise BadRow(f"its 'answer_format' is {answer_format!r}, which is none of {', '.join(DOC_FORMATS)}")
    if document not in documents:
        raise BadRow(f"its document {document!r} does not exist")
    evidence_pages = sorted({page - 1 for page in read_field(question, "evidence_pages", ListOf[int])})
    n_pages = _n_pages(documents[document])
    if missing := [page + 1 for page in evidence_pages if not 0 <= page < n_pages]:
        raise BadRow(f"its document has no page {missing}; it has 1 to {n_pages}")
    if pages == "evidence" and not evidence_pages:
        raise BadRow("it names no evidence page to show")
    shown_pages = evidence_pages if pages == "evidence" else list(range(n_pages))
    return Sample(
        row,
        read_field(question, "question", Text),
        read_field(question, "answer", Text),
        tuple(PdfPage(documents[document], page, dots_per_inch) for page in shown_pages),
        tuple(Evidence(media=shown_pages.index(page)) for page in evidence_pages),
        scoring="mmlongbench-doc",
        about={
            "document": document,
            "domain": question.get("doc_type"),
            "kinds": read_field(question, "evidence_sources", ListOf[str]),
            "answer format": answer_format,
            "pages": shown_pages,
            "group": document,
        },
    )


@lru_cache
def _n_pages(path: Path) -> int:
    with _open_pdf(path) as document:
        return len(document)


def _open_pdf(path: Path) -> Any:
    pdfium = require_package("pypdfium2")
    try:
        return pdfium.PdfDocument(path)
    except pdfium.PdfiumError as cause:
        raise BadRow(f"its document {str(path)!r} cannot be read as a PDF: {cause}") from cause


@dataclass(frozen=True)
class PdfPage:
    """A page of a PDF, counted from zero, drawn on call."""

    path: Path
    page: int
    dots_per_inch: int

    def __call__(self) -> Image.Image:
        with _open_pdf(self.path) as document:
            return document[self.page].render(scale=self.dots_per_inch / 72).to_pil()
