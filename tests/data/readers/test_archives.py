"""Archives that hold more than files, or less than they should."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from corelens.data.readers.archives import unpack_archives


def tar_with(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zip_with(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "text")
    return buffer.getvalue()


def link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "../../outside"
    return member


WHOLE = tar_with((tarfile.TarInfo("pictures/a.png"), bytes(range(256)) * 64))
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "above.tar.gz": (lambda: tar_with((tarfile.TarInfo("../outside"), b"x")), "'../outside', which is outside"),
    "absolute.tar.gz": (lambda: tar_with((tarfile.TarInfo("/outside"), b"x")), "'/outside', which is outside"),
    "symlink.tar.gz": (lambda: tar_with((link(tarfile.SYMTYPE), b"")), "'link', which is no regular file"),
    "hardlink.tar.gz": (lambda: tar_with((link(tarfile.LNKTYPE), b"")), "'link', which is no regular file"),
    "device.tar.gz": (lambda: tar_with((link(tarfile.CHRTYPE), b"")), "'link', which is no regular file"),
    "above.zip": (lambda: zip_with("../outside"), "'../outside', which is outside"),
    "cut.tar.gz": (lambda: WHOLE[: len(WHOLE) // 2], "cannot be unpacked: .* Download it again"),
    "text.tar.gz": (lambda: b"<html>", "cannot be unpacked: .* Download it again"),
    "text.zip": (lambda: b"<html>", "cannot be unpacked: .* Download it again"),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "a" / "cache"))
    (tmp_path / "downloaded").mkdir()
    return tmp_path / "a" / "cache" / "corelens" / "data"


def test_files_and_folders_are_unpacked(cache: Path, tmp_path: Path):
    (tmp_path / "downloaded" / "whole.tar.gz").write_bytes(WHOLE)
    (tmp_path / "downloaded" / "texts.zip").write_bytes(zip_with("texts/b.txt"))
    assert unpack_archives(tmp_path / "downloaded", "data") == cache
    assert (cache / "pictures" / "a.png").read_bytes() == bytes(range(256)) * 64
    assert (cache / "texts" / "b.txt").read_text() == "text"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_the_folder_is_refused_by_name(name: str, cache: Path, tmp_path: Path):
    content, message = REFUSED[name]
    (tmp_path / "downloaded" / name).write_bytes(content())
    with pytest.raises(ValueError, match=f"{name} .*{message}"):
        unpack_archives(tmp_path / "downloaded", "data")
    assert not [path for path in tmp_path.rglob("outside")]
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]  # so that it is tried again
