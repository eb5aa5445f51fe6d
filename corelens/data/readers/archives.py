"""Archives of downloads, unpacked once: the regular files inside of their folder, and nothing else."""

import gzip
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from corelens.data.readers.base import require_package


def unpack_archives(archives: Path, name: str) -> Path:
    """Unpack the .tar.gz and .zip archives of a download once, beside Hugging Face's cache; return the folder.

    Raises:
        ValueError: If an archive is damaged, or holds a link or a file outside of the folder.
    """
    folder = Path(require_package("huggingface_hub").constants.HF_HOME) / "corelens" / name
    folder.mkdir(parents=True, exist_ok=True)
    for archive in sorted([*archives.rglob("*.tar.gz"), *archives.rglob("*.zip")]):
        # The size distinguishes newer archives of the same name. The marker comes last: interrupted work is repeated.
        marker = folder / f".{archive.name}-{archive.stat().st_size}"
        if not marker.exists():
            try:
                _unpack(archive, folder)
            except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as cause:
                reason = str(cause).splitlines()[0].rstrip(".:")
                raise ValueError(f"{archive} cannot be unpacked: {reason}. Download it again.") from cause
            marker.touch()
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    # By hand: tarfile's own check of members is missing in Pythons before 3.11.4, and has had holes since.
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as members:
            for entry in members.infolist():
                if not entry.is_dir():
                    with members.open(entry) as content:
                        _write(content, folder, entry.filename, archive)
    else:
        with tarfile.open(archive) as members:
            for member in members:
                content = members.extractfile(member) if member.isfile() else None
                if content is not None:
                    _write(content, folder, member.name, archive)
                elif not member.isdir():
                    raise ValueError(f"{archive} holds {member.name!r}, which is no regular file. It is not unpacked.")


def _write(content: Any, folder: Path, name: str, archive: Path) -> None:
    # Any: what the two modules return has no common type but that it can be read.
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{archive} holds {name!r}, which is outside of its folder. It is not unpacked.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)
