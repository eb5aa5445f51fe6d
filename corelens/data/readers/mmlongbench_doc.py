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
    Row,
    Samples,
    files_in,
    folder_of,
    list_field,
    read_rows,
    read_table,
    require_path,
    text_field,
)
from corelens.data.sample import Evidence, Sample

FORMATS = ("Str", "Int", "Float", "List", "None")


def mmlongbench_doc(
    source: str | PathLike[str] = "yubo2333/MMLongBench-Doc",
    pages: Literal["all", "evidence"] = "all",
    dots_per_inch: int = 144,
) -> Samples:
    """One sample per question; the evidence are whole pages. Questions that cannot be answered have none.

    Pages count from one in the data set, and from zero in `about["pages"]`.

    Args:
        source: A folder with `samples.json` or `*.parquet`, and the PDFs in `documents/`; or a Hub id.
        pages: `all` shows the model the whole document (47 pages on average), `evidence` only the pages that hold the
            evidence.
        dots_per_inch: How finely pages are drawn; the authors' 144 give pictures of 1224 x 1584 pixels for a letter.
    """
    if pages not in ("all", "evidence"):
        raise ValueError(f"pages={pages!r} is not known; pages are all or evidence.")
    if dots_per_inch < 1:
        raise ValueError(f"dots_per_inch={dots_per_inch} is less than one.")
    folder = folder_of(source, ["data/*.parquet", "samples.json", "documents/*.pdf"])
    found = files_in(folder, "samples.json", "*.parquet")
    rows = read_rows(found[0]) if found[0].suffix == ".json" else read_table(found)
    documents = {path.name: path for path in folder.rglob("*.pdf")}

    def read() -> Iterator[Row]:
        for index in range(len(rows)):
            row = f"{rows[index].get('doc_id', '')}-{index}"
            yield row, partial(_sample, row, rows[index], documents, pages, dots_per_inch)

    return Samples("MMLongBench-Doc", read)


def _sample(
    row: str, asked: Mapping[str, Any], documents: Mapping[str, Path], pages: str, dots_per_inch: int
) -> Sample:
    document, answer_format = text_field(asked, "doc_id"), text_field(asked, "answer_format")
    if answer_format not in FORMATS:
        raise BadRow(f"its 'answer_format' is {answer_format!r}, which is none of {', '.join(FORMATS)}")
    if document not in documents:
        raise BadRow(f"its document {document!r} is not there")
    holding = sorted({page - 1 for page in list_field(asked, "evidence_pages", int)})
    n_pages = _n_pages(documents[document])
    if wrong := [page + 1 for page in holding if not 0 <= page < n_pages]:
        raise BadRow(f"its document has no page {wrong}; it has 1 to {n_pages}")
    if pages == "evidence" and not holding:
        raise BadRow("it names no evidence page to show")
    shown = holding if pages == "evidence" else list(range(n_pages))
    return Sample(
        row,
        text_field(asked, "question"),
        text_field(asked, "answer"),
        tuple(PdfPage(documents[document], page, dots_per_inch) for page in shown),
        tuple(Evidence(media=shown.index(page)) for page in holding),
        scoring="mmlongbench-doc",
        about={
            "document": document,
            "domain": asked.get("doc_type"),
            "kinds": list_field(asked, "evidence_sources", str),
            "answer format": answer_format,
            "pages": shown,
        },
    )


@lru_cache
def _n_pages(path: Path) -> int:
    with _opened(path) as document:
        return len(document)


def _opened(path: Path) -> Any:
    pdfium = require_path("pypdfium2")
    try:
        return pdfium.PdfDocument(path)
    except pdfium.PdfiumError as cause:
        raise BadRow(f"its document {str(path)!r} cannot be read as a PDF: {cause}") from cause


@dataclass(frozen=True)
class PdfPage:
    """A page of a PDF, counted from zero, drawn when it is called."""

    path: Path
    page: int
    dots_per_inch: int

    def __call__(self) -> Image.Image:
        with _opened(self.path) as document:
            return document[self.page].render(scale=self.dots_per_inch / 72).to_pil()
