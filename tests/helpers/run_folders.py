"""Contents of run folders."""

from pathlib import Path


def files_of(folder: Path) -> dict[str, bytes]:
    """Bytes of all files by their path in a folder, without the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def shards_of(folder: Path) -> dict[str, bytes]:
    """Bytes of the shards of a run folder."""
    return {name: content for name, content in files_of(folder).items() if name.startswith("parts/")}
