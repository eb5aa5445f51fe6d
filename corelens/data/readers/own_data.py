"""Data of one's own: JSON Lines, Parquet, a folder of pictures with its metadata, or annotations in COCO's form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from corelens.data.readers.base import (
    BadRow,
    Row,
    Samples,
    StoredPicture,
    raise_error,
    read_line,
    read_lines,
    read_table,
    require_package,
)
from corelens.data.readers.coco import coco
from corelens.data.readers.own_row import ROW_FIELDS, SINGULAR, plural_fields, row_sample, unknown_field, validated_row
from corelens.errors import docs_link

METADATA = ("metadata.jsonl", "metadata.parquet")
"""Files that a folder of pictures may have, as in Hugging Face's ImageFolder."""


def own_data(source: str | PathLike[str], name: str = "", images: str | PathLike[str] | None = None) -> Samples:
    """Read data of one's own: one sample per row, or per picture and category of annotations in COCO's form.

    Rows that cannot become samples are skipped, with their line and the reason.

    Args:
        source: A file of JSON Lines (`.jsonl`) or Parquet (`.parquet`); a folder with `metadata.jsonl`; or annotations
            in COCO's form (`.json`).
        name: Name of the data set in results; that of the file or folder by default.
        images: Folder in which the pictures lie, if it is not that of the file.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is of none of these forms, or its first line has defaults that no row can have.
    """
    path = Path(source).expanduser()
    stem = path.resolve().stem
    name = name or stem
    if path.is_dir():
        path = next((path / file for file in METADATA if (path / file).is_file()), path)
    if path.is_dir():
        raise FileNotFoundError(
            f"{str(source)!r} holds no {' and no '.join(METADATA)}, which say what its pictures show. "
            f"{docs_link('own-file')}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file or folder {str(source)!r}.")
    folder = path.parent if images is None else Path(images).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r} of pictures. {docs_link('own-file')}")
    if path.suffix == ".json":
        return coco(path, folder, name)
    if path.suffix == ".jsonl":
        return Samples(name, partial(_rows, _JsonLines(path, _defaults(path)), stem, folder))
    if path.suffix == ".parquet":
        return Samples(name, partial(_rows, _Table(_undecoded(read_table([path]))), stem, folder))
    raise ValueError(
        f"{path.name} ends in {path.suffix or 'nothing'!r}: data of your own are .jsonl, .parquet, a folder with "
        f"metadata.jsonl, or .json in COCO's form. {docs_link('own-file')}"
    )


@dataclass(frozen=True)
class _JsonLines:
    path: Path
    defaults: Mapping[str, Any]
    """Fields of every row that does not have them itself."""

    def __iter__(self) -> Iterator[tuple[str, int, Any]]:
        """Label, number and fields of each row, or the reason why it has none."""
        for number, line in read_lines(self.path):
            try:
                row: Any = {**self.defaults, **plural_fields(read_line(line))}
            except BadRow as cause:
                row = cause
            if not (number == 1 and self.defaults):
                yield f"line {number}", number, row


@dataclass(frozen=True)
class _Table:
    rows: Any

    def __iter__(self) -> Iterator[tuple[str, int, Any]]:
        """The same of a table; rows are counted from zero, and pictures stay where they are."""
        value = require_package("datasets").Value
        names = [name for name in self.rows.column_names if SINGULAR.get(name, name) == "images"]
        stored = [name for name in names if not _is_text(self.rows.features[name], value)]
        for number, fields in enumerate(self.rows.remove_columns(stored)):
            for name in stored:
                fields |= {name: self._pictures(number, name)}
            try:
                yield f"row {number}", number, plural_fields(fields)
            except BadRow as cause:
                yield f"row {number}", number, cause

    def _pictures(self, row: int, column: str) -> Any:
        value = self.rows[row][column]
        if isinstance(value, list):
            return [
                _path(picture) or _ListedPicture(self.rows, row, column, number) for number, picture in enumerate(value)
            ]
        return value and (_path(value) or StoredPicture(self.rows, row, column))


@dataclass(frozen=True)
class _ListedPicture(StoredPicture):
    """One of several pictures in a cell of a table."""

    number: int

    def encoded(self) -> bytes:
        value = self.rows[self.row][self.column][self.number]
        if not (encoded := value["bytes"] if isinstance(value, dict) else value):
            raise BadRow(f"row {self.row} holds no picture {self.number} in {self.column!r}")
        return encoded


def _path(picture: Any) -> str | None:
    """Path of a picture of Hugging Face that is not stored in the table."""
    return picture["path"] if isinstance(picture, dict) and not picture["bytes"] else None


def _undecoded(rows: Any) -> Any:
    """The same table with pictures in lists encoded; `read_table` leaves the others so."""
    datasets = require_package("datasets")
    for name, feature in rows.features.items():
        if isinstance(getattr(feature, "feature", None), datasets.Image):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return rows


def _is_text(feature: Any, value: type) -> bool:
    """True if a column holds texts, or lists of them."""
    feature = getattr(feature, "feature", feature)
    return isinstance(feature, value) and "string" in getattr(feature, "dtype", "")


def _defaults(path: Path) -> dict[str, Any]:
    """Fields that the first line gives to every row, if it is `{"defaults": {...}}`."""
    try:
        _, first = next(read_lines(path), (0, b"{}"))
        defaults = read_line(first).get("defaults", {})
        row = plural_fields(defaults) if isinstance(defaults, dict) else {}
    except BadRow:
        return {}
    if unknown := [name for name in row if name not in ROW_FIELDS]:
        raise ValueError(
            f"the defaults in the first line of {path.name} have {unknown_field(unknown[0])}. {docs_link('own-file')}"
        )
    return row


def _rows(source: _JsonLines | _Table, stem: str, folder: Path) -> Iterator[Row]:
    label_of_id: dict[str, str] = {}
    for label, number, fields in source:
        try:
            row = validated_row(fields)
            row_id = row.id or f"{stem}-{number}"
            if (first := label_of_id.setdefault(row_id, label)) != label:
                raise BadRow(f"its id {row_id!r} is that of {first}, too")
        except BadRow as cause:
            yield label, partial(raise_error, cause)
        else:
            yield label, partial(row_sample, row, row_id, folder)
