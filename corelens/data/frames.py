"""Frames of a video file by their numbers, decoded when they are asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from corelens.data.reading import needed


@dataclass
class FileFrames(Sequence[Image.Image]):
    """Frames `start` up to `end`, which is not one of them, of a video file.

    Frames are counted by decoding from the beginning, so their numbers are exact whatever the file says of its times;
    asked for in order, every frame is decoded once. Needs PyAV.
    """

    path: Path
    start: int
    end: int
    _decoding: Iterator[tuple[int, Any]] | None = field(default=None, repr=False)
    _next: int = field(default=0, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # A decoder cannot travel to another process; there, decoding begins anew.
        return FileFrames, (self.path, self.start, self.end)

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: int) -> Image.Image:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"there is no frame {index}: the clip has {len(self)}.")
        wanted = self.start + index
        if self._decoding is None or wanted < self._next:
            self._decoding, self._next = self._decode(), 0
        for number, frame in self._decoding:
            self._next = number + 1
            if number == wanted:
                return frame.to_image()
        self._decoding = None
        raise ValueError(f"{str(self.path)!r} has no frame {wanted}: it ends after {self._next}.")

    def _decode(self) -> Iterator[tuple[int, Any]]:
        av = needed("av")
        try:
            with av.open(str(self.path)) as container:
                yield from enumerate(container.decode(video=0))
        except (av.FFmpegError, IndexError) as cause:
            raise ValueError(f"{str(self.path)!r} cannot be decoded as a video: {cause}") from cause
