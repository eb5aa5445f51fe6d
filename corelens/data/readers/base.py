"""What all readers share: finding files, checking rows, and reporting those that are skipped."""

import ast
import json
import math
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from corelens.data.sample import Sample
from corelens.tokens import Box


class BadRow(ValueError):
    """A row of a data set that cannot become a sample, and why."""


class Skipped(NamedTuple):
    """A row that was left out."""

    id: str
    reason: str


Row = tuple[str, Callable[[], Sample]]
"""The id of a row, and what makes a sample of it or raises `BadRow`."""


@dataclass
class Samples:
    """The samples of a data set, read while you iterate, as often as you like.

    A row that cannot become a sample is left out, listed in `skipped`, and counted in a warning at the end.
    """

    name: str
    """The data set and the part of it, as it appears in results."""

    rows: Callable[[], Iterator[Row]]
    skipped: list[Skipped] = field(default_factory=list)
    """What the last iteration left out."""

    def __iter__(self) -> Iterator[Sample]:
        self.skipped, n_rows = [], 0
        for row, make in self.rows():
            n_rows += 1
            try:
                sample = make()
            except BadRow as cause:
                self.skipped.append(Skipped(row, str(cause)))
            else:
                yield sample
        if self.skipped:
            first = self.skipped[0]
            warnings.warn(
                f"{len(self.skipped)} of {n_rows} rows of {self.name} were skipped, the first of them {first.id}: "
                f"{first.reason}; see .skipped.",
                stacklevel=2,
            )

    def with_evidence(self) -> "Samples":
        """Only samples that say where their evidence is; the others count as skipped."""

        def checked(make: Callable[[], Sample]) -> Sample:
            sample = make()
            if not sample.evidence:
                raise BadRow("it does not say where its evidence is")
            return sample

        def rows() -> Iterator[Row]:
            for row, make in self.rows():
                yield row, partial(checked, make)

        return Samples(self.name, rows)


# --- files -----------------------------------------------------------------------------------------------------------


def require_path(package: str) -> Any:
    """A package of the extra `data`."""
    try:
        return import_module(package)
    except ImportError as cause:
        raise ImportError(
            f"this data set needs {package}, which is not installed: pip install 'corelens[data]'."
        ) from cause


def folder_of(source: str | PathLike[str], patterns: Sequence[str], access: str = "") -> Path:
    """A local folder, or the folder to which a data set of the Hub was downloaded.

    Args:
        source: The folder, or `owner/name`.
        patterns: Which files of the Hub's repository to download.
        access: What to do if the repository is gated.
    """
    if (folder := Path(source).expanduser()).is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)):
        raise FileNotFoundError(f"there is no folder {str(source)!r}, and it is no Hub id, which reads owner/name.")
    hub = require_path("huggingface_hub")
    try:
        return Path(hub.snapshot_download(str(source), repo_type="dataset", allow_patterns=list(patterns)))
    except hub.errors.GatedRepoError as cause:
        raise PermissionError(
            f"{source} is gated. {access or 'Ask for access on its page'}: https://huggingface.co/datasets/{source}, "
            f"then log in with `hf auth login`."
        ) from cause
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError) as cause:
        reason = str(cause).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{str(source)!r} is no local folder, and could not be downloaded from the Hub: {reason}"
        ) from cause


def unpack_archives(archives: Path, name: str) -> Path:
    """What the .tar.gz archives of a downloaded folder hold, unpacked once, beside Hugging Face's cache."""
    folder = Path(require_path("huggingface_hub").constants.HF_HOME) / "corelens" / name
    folder.mkdir(parents=True, exist_ok=True)
    for archive in sorted(archives.rglob("*.tar.gz")):
        # Its size tells a newer archive of the same name apart. The mark is made last: what was interrupted is redone.
        mark = folder / f".{archive.name}-{archive.stat().st_size}"
        if not mark.exists():
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")  # nothing outside the folder, no devices
            mark.touch()
    return folder


def files_in(folder: Path, *patterns: str) -> list[Path]:
    """The files of the first pattern that matches any, at any depth, in order of their names."""
    for pattern in patterns:
        if found := sorted(folder.rglob(pattern)):
            return found
    raise FileNotFoundError(f"{str(folder)!r} holds no {' and no '.join(patterns)}.")


def refuse(cause: BadRow) -> Sample:
    """Makes no sample, of a row that was found to be broken before its turn."""
    raise cause


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise ValueError(f"{str(path)!r} is not JSON: {cause}") from cause


def read_rows(path: Path) -> list[dict[str, Any]]:
    """A JSON file that is a list of objects."""
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{str(path)!r} is not a list of rows.")
    return rows


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a JSON Lines file that hold something, and their numbers from one."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def read_line(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as cause:
        raise BadRow(f"the line is not JSON: {cause}") from cause
    if not isinstance(row, dict):
        raise BadRow(f"the line holds {type(row).__name__}, not an object")
    return row


def read_table(paths: Sequence[Path]) -> Any:
    """Parquet files as one table whose rows are read from disk one by one; pictures stay encoded.

    The `datasets` library writes them to its cache in Arrow form on first use, since a row of Parquet cannot be read
    alone.
    """
    datasets = require_path("datasets")
    rows = datasets.Dataset.from_parquet([str(path) for path in paths])
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


# --- rows ------------------------------------------------------------------------------------------------------------


def get_field(row: Any, name: str, *kinds: type) -> Any:
    """A field of a row, or of an object in a row, of one of some types."""
    if not isinstance(row, Mapping):
        raise BadRow(f"{row!r:.80} is no object with a {name!r}")
    if name not in row:
        raise BadRow(f"it has no field {name!r}")
    if not isinstance(row[name], kinds):
        raise BadRow(f"its {name!r} is {row[name]!r:.80}, not {' or '.join(kind.__name__ for kind in kinds)}")
    return row[name]


def text_field(row: Any, name: str) -> str:
    """A text of a row, which must not be empty."""
    if not (found := get_field(row, name, str).strip()):
        raise BadRow(f"its {name!r} is empty")
    return found


def list_field(row: Any, name: str, kind: type) -> list[Any]:
    """A list of a row that may be written as a string, such as `"['Chart']"` or `"[5]"`."""
    found = get_field(row, name, list, str)
    if isinstance(found, str):
        try:
            found = ast.literal_eval(found)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as cause:
            raise BadRow(f"its {name!r} is {found!r:.80}, which does not read as a list") from cause
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise BadRow(f"its {name!r} is {found!r:.80}, which is no list of {kind.__name__}")
    return found


def number_list(row: Any, name: str, n: int) -> list[float | int]:
    """So many numbers of a row."""
    found = get_field(row, name, list)
    if len(found) != n or not all(isinstance(number, int | float) and math.isfinite(number) for number in found):
        raise BadRow(f"its {name!r} is {found!r:.80}, not {n} numbers")
    return found


def box_in(corners: Sequence[float | int], size: tuple[int, int], scale: tuple[float, float] = (1.0, 1.0)) -> Box:
    """Left, top, right, bottom as a box of a picture of some size, after scaling.

    Annotations may pass the border by up to a pixel, which is cut off.
    """
    left, top, right, bottom = (corner * scale[axis % 2] for axis, corner in enumerate(corners))
    width, height = size
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        raise BadRow(f"its box {list(corners)} leaves the picture, which is {width} x {height} pixels")
    box = Box(max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
    if box.left >= box.right or box.top >= box.bottom:
        raise BadRow(f"its box {list(corners)} is empty")
    return box


@dataclass(frozen=True)
class StoredPicture:
    """A picture in a column of a table, read when it is called."""

    rows: Any
    row: int
    column: str

    def __call__(self) -> Image.Image:
        stored = self.rows[self.row][self.column]
        encoded = stored["bytes"] if isinstance(stored, dict) else stored
        if not encoded:
            raise BadRow(f"row {self.row} holds no picture in {self.column!r}")
        try:
            return Image.open(BytesIO(encoded))
        except UnidentifiedImageError as cause:
            raise BadRow(f"row {self.row} holds no picture in {self.column!r} that Pillow can read") from cause


def picture_file(path: Path) -> str:
    """The path of a picture, which must exist."""
    if not path.is_file():
        raise BadRow(f"its picture {str(path)!r} does not exist")
    return str(path)


def picture_size(picture: Callable[[], Image.Image]) -> tuple[int, int]:
    """Width and height of a picture, without decoding it."""
    with picture() as opened:
        return opened.size
