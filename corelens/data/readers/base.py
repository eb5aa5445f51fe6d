"""The parts that all readers share: finding files, validating rows, and reporting the rows that are skipped."""

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError
from pydantic import BeforeValidator, Field, FiniteFloat, StringConstraints, TypeAdapter, ValidationError

from corelens.data.sample import Sample
from corelens.errors import docs_link
from corelens.files import parse_json
from corelens.inputs.media import ORIENTATION, QUARTER_TURNS, upright_box
from corelens.tokens import Box


class BadRow(ValueError):
    """The reason why a row of a data set cannot become a sample."""


class Skipped(NamedTuple):
    """A row that was left out."""

    id: str
    reason: str


OF_A_ROW = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, RecursionError)
"""Errors of a row that its reader did not foresee; the rows after it are read."""

Regions = Literal["annotated", "published"]
"""Evidence of a reader: as the data set annotates it, or as arXiv 2606.05843 takes it (appendix C)."""

Row = tuple[str, Callable[[], Sample]]
"""The id of a row, and the function that makes a sample of it or raises `BadRow`."""


@dataclass
class Samples:
    """The samples of a data set, read while you iterate, as often as you like.

    A row that cannot become a sample is left out, listed in `skipped`, and counted in a warning at the end.
    """

    name: str
    """Name of the data set and its part, as it appears in results."""

    rows: Callable[[], Iterator[Row]]
    """Reads them; no closure, so that data sets can be pickled for other processes."""

    skipped: list[Skipped] = field(default_factory=list)
    """The rows that the last iteration left out."""

    def __iter__(self) -> Iterator[Sample]:
        self.skipped, n_rows = [], 0
        for row, make in self.rows():
            n_rows += 1
            try:
                sample = make()
            except BadRow as cause:
                self.skipped.append(Skipped(row, str(cause)))
            except OF_A_ROW as cause:
                self.skipped.append(Skipped(row, f"{type(cause).__name__}: {cause}"))
            else:
                yield sample
        if self.skipped:
            first = self.skipped[0]
            warnings.warn(
                f"{len(self.skipped)} of {n_rows} rows of {self.name} were skipped, the first of them {first.id}: "
                f"{first.reason}; .skipped has all. {docs_link('refused-rows')}",
                stacklevel=2,
            )

    def with_evidence(self) -> "Samples":
        """Return only the samples with evidence; the others count as skipped."""
        return self._map(self.name, _with_evidence)

    def options_in_question(self) -> "Samples":
        """Return the samples with answer options and format instructions as part of their questions.

        Without it, only the data set's own text of a question is the question, from whose tokens attention is measured.
        What a sample's `prompt` has around its question never counts.
        """
        return self._map(f"{self.name}, options in the question", _with_options)

    def _map(self, name: str, change: Callable[[Sample], Sample]) -> "Samples":
        """Samples of the same rows, each changed, or skipped by `BadRow`."""
        return Samples(name, partial(_changed, self.rows, change))


def _with_evidence(sample: Sample) -> Sample:
    if not sample.evidence:
        raise BadRow("it has no evidence")
    return sample


def _with_options(sample: Sample) -> Sample:
    return replace(sample, question=sample.question + sample.instruction, instruction="")


def _changed(rows: Callable[[], Iterator[Row]], change: Callable[[Sample], Sample]) -> Iterator[Row]:
    for row, make in rows():
        yield row, lambda make=make: change(make())


def require_package(name: str) -> Any:
    """Import a package of the extra `data`."""
    try:
        return import_module(name)
    except ImportError as cause:
        raise ImportError(
            f"this data set needs {name}, which is not installed: pip install 'corelens[data]'."
        ) from cause


def dataset_folder(source: str | PathLike[str], patterns: Sequence[str], access: str = "") -> Path:
    """Return a local folder, or the folder to which a data set of the Hub was downloaded.

    Args:
        source: The folder, or `owner/name`.
        patterns: Patterns of the files to download from the Hub's repository.
        access: Way to get access if the repository is gated, for the error.
    """
    if (folder := Path(source).expanduser()).is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)):
        raise FileNotFoundError(f"there is no folder {str(source)!r}, and it is no Hub id, which reads owner/name.")
    hub = require_package("huggingface_hub")
    try:
        return Path(hub.snapshot_download(str(source), repo_type="dataset", allow_patterns=list(patterns)))
    except hub.errors.GatedRepoError as cause:
        raise PermissionError(
            f"{source} is gated. {access or 'Request access on its page'}: https://huggingface.co/datasets/{source}, "
            f"then log in with `hf auth login`."
        ) from cause
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError) as cause:
        reason = str(cause).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{str(source)!r} is no local folder, and could not be downloaded from the Hub: {reason}"
        ) from cause


def find_files(folder: Path, *patterns: str) -> list[Path]:
    """Files, at any depth, that match the first pattern with a match, in order of their names."""
    for pattern in patterns:
        if paths := sorted(folder.rglob(pattern)):
            return paths
    raise FileNotFoundError(f"{str(folder)!r} holds no {' and no '.join(patterns)}.")


def raise_error(error: BadRow) -> Sample:
    """Raise the error of a row that turned out to be broken before its sample was requested."""
    raise error


def read_json(path: Path) -> Any:
    """Contents of a JSON file."""
    try:
        return parse_json(path.read_bytes())
    except ValueError as cause:
        raise ValueError(f"{str(path)!r} is not JSON: {cause}") from cause


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON file, which must be a list of objects."""
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{str(path)!r} is not a list of rows.")
    return rows


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-empty lines of a JSON Lines file, with their numbers from one; bytes, since one may be no UTF-8."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def read_line(line: bytes) -> dict[str, Any]:
    """Object in a line of a JSON Lines file."""
    try:
        row = parse_json(line)
    except ValueError as cause:
        raise BadRow(f"the line is not JSON: {cause}") from cause
    if not isinstance(row, dict):
        raise BadRow(f"the line holds {type(row).__name__}, not an object")
    return row


def read_table(paths: Sequence[Path]) -> Any:
    """Open Parquet files as one table whose rows are read from disk one by one; pictures stay encoded.

    The `datasets` library writes them to its cache in Arrow form on first use, since a row of Parquet cannot be read
    alone.
    """
    datasets = require_package("datasets")
    rows = datasets.Dataset.from_parquet([str(path) for path in paths])
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""Not empty, without the space around it."""
Number = int | FiniteFloat
Corners = Annotated[list[Number], Field(min_length=4, max_length=4)]


def _parse_list(value: Any) -> Any:
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, MemoryError, RecursionError) as cause:
        raise ValueError("it cannot be read as a list") from cause


Item = TypeVar("Item")
ListOf = Annotated[list[Item], BeforeValidator(_parse_list)]
"""A list that may be written as a string, such as `"['Chart']"` or `"[5]"`."""

_adapter = cache(TypeAdapter)


def read_field(row: Any, name: str, kind: Any) -> Any:
    """A field of a row, or of an object in a row, validated by pydantic in strict mode.

    Args:
        row: The row.
        name: Name of the field.
        kind: Its type, such as `Text`, `int | float` or `ListOf[int]`.

    Raises:
        BadRow: If there is no such field, or its value is not of this type; names the field and its value.
    """
    if not isinstance(row, Mapping):
        raise BadRow(f"{row!r:.80} is not an object with a field {name!r}")
    if name not in row:
        raise BadRow(f"it has no field {name!r}")
    try:
        return _adapter(kind).validate_python(row[name], strict=True)
    except ValidationError as cause:
        # Pydantic puts "Value error, " before the messages of validators of our own.
        reasons = "; ".join(dict.fromkeys(error["msg"].removeprefix("Value error, ") for error in cause.errors()))
        raise BadRow(f"its {name!r} is {row[name]!r:.80}: {reasons}") from cause


def pixel_box(
    corners: Sequence[float | int],
    size: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
    orientation: int = 1,
) -> Box:
    """Scale left, top, right and bottom to a box in pixels of a picture, and turn it with the picture.

    Annotations may extend up to a pixel beyond the border; this pixel is cut off.

    Args:
        corners: In pixels of the picture as it is stored, but for the scale.
        size: Width and height of the picture as it is stored.
        scale: Pixels in a unit of the corners, across and down.
        orientation: EXIF orientation of the picture.
    """
    left, top, right, bottom = (corner * scale[axis % 2] for axis, corner in enumerate(corners))
    width, height = size
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        raise BadRow(f"its box {list(corners)} leaves the picture, which is {width} x {height} pixels")
    box = Box(max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
    if box.left >= box.right or box.top >= box.bottom:
        raise BadRow(f"its box {list(corners)} is empty")
    return Box(*upright_box(box, size, orientation))


@dataclass(frozen=True)
class StoredPicture:
    """A picture in a column of a table, read on call."""

    rows: Any
    row: int
    column: str

    def encoded(self) -> bytes:
        """The bytes of its file."""
        value = self.rows[self.row][self.column]
        encoded = value["bytes"] if isinstance(value, dict) else value
        if not encoded:
            raise BadRow(f"row {self.row} holds no picture in {self.column!r}")
        return encoded

    def __call__(self) -> Image.Image:
        try:
            return Image.open(BytesIO(self.encoded()))
        except UnidentifiedImageError as cause:
            raise BadRow(f"row {self.row} holds no picture in {self.column!r} that Pillow can read") from cause


def media_file(folder: Path, name: str, kind: Literal["picture", "video", "document"] = "picture") -> str:
    """Return the path of a file that a row names, which must exist in the folder of the data set.

    Rows of others could name any file of this machine, by absolute paths, by `..` or by links.
    """
    path, home = folder / name, folder.resolve()
    # Hugging Face's cache links from the folder of a revision to one beside all of them.
    blobs = [above.parent / "blobs" for above in home.parents if above.name == "snapshots"]
    if not any(path.resolve().is_relative_to(allowed) for allowed in (home, *blobs)):
        raise BadRow(f"its {kind} {name!r} lies outside of {str(folder)!r}, the folder of the data set")
    if not path.is_file():
        raise BadRow(f"its {kind} {str(path)!r} does not exist")
    return str(path)


class Stored(NamedTuple):
    """The form in which a picture is stored, and in which annotations count its pixels."""

    size: tuple[int, int]
    """Width and height."""

    orientation: int
    """EXIF orientation, by which it is turned before anyone sees it."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the picture that is seen."""
        width, height = self.size
        return (height, width) if self.orientation in QUARTER_TURNS else (width, height)


def stored_form(picture: Callable[[], Image.Image]) -> Stored:
    """Stored form of a picture, read without decoding it."""
    try:
        with picture() as image:
            stored = Stored(image.size, image.getexif().get(ORIENTATION, 1))
            # Of TIFF, Pillow gives the upright size.
            return stored._replace(size=stored.upright_size) if image.format == "TIFF" else stored
    except OSError as cause:
        raise BadRow(f"its picture cannot be read: {cause}") from cause
