"""Files of results: whole or absent, and refused if a bit of them has changed.

A file of results holds the SHA-256 of its own bytes. Its writer puts `BLANK` where the format keeps text, such as the
last key of a JSON object or the metadata of Parquet and safetensors; `with_checksum` fills in the hash of the bytes as
they are with the blank, and `read_checked` does the same again and compares. For other programs it is text like other.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corelens.errors import docs_link

if TYPE_CHECKING:
    from torch import Tensor

UNFINISHED = ".unfinished"
"""Ending of a file that is being written, and gets its name when it is whole."""

BLANK = f"sha256:{'0' * 64}"
"""Place of a checksum."""


def write_file(path: str | PathLike[str], content: bytes | str) -> None:
    """Write a file through a temporary one, so that a killed process or a full disk leaves the whole file or none.

    Raises:
        OSError: If it cannot be written; what was there before is then as it was.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as cause:
        if unfinished.is_file():
            unfinished.unlink()
        if cause.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        failure = OSError(
            f"{path} could not be written: {cause.strerror}. Nothing half-written is left; make room, and run the same "
            f"again. {docs_link('disk-full')}"
        )
        failure.errno = cause.errno
        raise failure from cause


def with_checksum(content: bytes) -> bytes:
    """Fill in the last `BLANK` of a file."""
    before, blank, after = content.rpartition(BLANK.encode())
    if not blank:
        raise ValueError("the content has no place for its checksum.")
    return before + _checksum(content) + after


def read_checked(path: str | PathLike[str], way_out: str) -> bytes:
    """Read a file that holds its checksum.

    Args:
        path: The file.
        way_out: Advice for a file that is refused, as a sentence.

    Raises:
        ValueError: If it has no checksum, or its bytes are not those that it had when it was written.
        OSError: If it cannot be read.
    """
    content = Path(path).read_bytes()
    found = list(re.finditer(rb"sha256:[0-9a-f]{64}", content))
    if not found:
        raise ValueError(
            f"{path} has no checksum: an older corelens wrote it, or it is cut off. {way_out} {docs_link('damaged')}"
        )
    start, end = found[-1].span()
    if _checksum(content[:start] + BLANK.encode() + content[end:]) != found[-1][0]:
        raise ValueError(
            f"{path} has changed since it was written: its checksum is of other bytes. {way_out} {docs_link('damaged')}"
        )
    return content


def write_tensor(path: str | PathLike[str], values: "Tensor", about: Mapping[str, Any]) -> None:
    """Write a tensor and what it is about, ready for JSON, as a safetensors file with a checksum."""
    from safetensors.torch import save

    metadata = {"corelens": json.dumps({**about, "checksum": BLANK})}
    write_file(path, with_checksum(save({"values": values.contiguous()}, metadata)))


def read_tensor(path: str | PathLike[str]) -> "tuple[Tensor, dict[str, Any]]":
    """Read what `write_tensor` wrote.

    Raises:
        ValueError: If the file holds something else, or has changed since.
    """
    from safetensors import SafetensorError, safe_open

    read_checked(path, "Write it anew.")
    try:
        with safe_open(path, "pt") as file:  # pyright: ignore[reportAbstractUsage]
            about = parse_json((file.metadata() or {})["corelens"])
            del about["checksum"]
            return file.get_tensor("values"), about
    except (SafetensorError, KeyError, TypeError) as cause:
        raise ValueError(f"it is no safetensors file with values ({cause}).") from cause


def _checksum(content: bytes) -> bytes:
    return f"sha256:{hashlib.sha256(content).hexdigest()}".encode()


def parse_json(text: str | bytes, read_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON of other people.

    Args:
        text: The JSON.
        read_object: Makes a value of the keys and values of each object; a `dict` by default.

    Raises:
        ValueError: If it is not JSON, or nested more deeply than can be read.
    """
    try:
        return json.loads(text, object_pairs_hook=read_object)
    except RecursionError as cause:
        raise ValueError("it is nested too deeply") from cause
