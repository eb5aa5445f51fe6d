"""Draws the figures of gallery.md: runs its code and keeps each `figure` as the picture that is shown below it.

    python docs/gallery.py

Needs kaleido, and a Chrome or Chromium that it finds (or that the environment variable BROWSER_PATH names).
"""

import re
from pathlib import Path
from typing import Any

import plotly.io

PAGE = Path(__file__).parent / "gallery.md"
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n!\[[^]]*\]\((gallery/\w+\.webp)\))?", re.DOTALL)


def main() -> None:
    namespace: dict[str, Any] = {}
    figures, files = [], []
    for code, file in BLOCK.findall(PAGE.read_text()):
        exec(compile(code, str(PAGE), "exec"), namespace)
        if file:
            figures.append(namespace["figure"])
            files.append(PAGE.parent / file)
    files[0].parent.mkdir(exist_ok=True)
    heights = [figure.layout.height or 380 for figure in figures]
    plotly.io.write_images(figures, files, width=860, height=heights, scale=2)


if __name__ == "__main__":
    main()
