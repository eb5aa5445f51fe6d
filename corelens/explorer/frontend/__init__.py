"""The front end: plain JavaScript, one idea per file, concatenated into the one module that notebooks load."""

from pathlib import Path

FOLDER = Path(__file__).parent
PARTS = (
    "elements", "numbers", "help", "questions", "canvas", "interaction", "strip", "pictures", "wall", "heads",
    "answers", "figure", "files", "header", "explorer",
)  # fmt: skip
"""Files in order; all share one scope, and the last exports the function that notebooks call."""

MODULE = "\n".join((FOLDER / f"{part}.js").read_text(encoding="utf-8") for part in PARTS)
STYLE = (FOLDER / "explorer.css").read_text(encoding="utf-8")
