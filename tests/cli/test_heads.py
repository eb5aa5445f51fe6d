"""The command heads: it writes pages, and says what is missing before the model is loaded."""

from pathlib import Path

import pytest

import corelens as cl
from corelens import toy
from corelens.cli import options
from tests.helpers.cli import invoke, text_of


@pytest.fixture(scope="module")
def scanned(toy_model: "cl.HookedMLLM", tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "scan"
    cl.scan(toy_model, {"scenes": list(toy.scenes(3, 0))}, out=folder)
    return folder


def test_the_command_writes_pages_with_pictures(scanned: Path, tmp_path: Path):
    result = invoke("heads", scanned, "--data", "scenes=3", "--heads", "L3H14", "--out", tmp_path / "pages")
    assert result.exit_code == 0, result.output
    assert "Loading corelens/toy, for its heads' attention over the pictures." in result.stderr
    assert "".join(result.stdout.split()) == f"Pages:{tmp_path / 'pages' / 'index.html'}"
    assert (tmp_path / "pages" / "L3H14.html").read_text().count(r"image\u002fwebp") == 6, "three samples at either end"


def test_without_data_no_model_is_loaded(scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options, "loaded", _loaded)
    result = invoke("heads", scanned, "--top", 2, "--out", tmp_path / "pages")
    assert result.exit_code == 0, result.output
    assert "Without --data, pages have names and scores of samples, and no pictures." in result.stderr
    assert len(list((tmp_path / "pages").glob("L*.html"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heads", "L3H14", "--top", "2"), "--heads, --top: they choose the same: give one."),
        (("--heads", "L9H1"), "L9H1 has no score in 6 layers of 16 heads"),
        (("--heads", "first"), "'first' is not a head"),
        (("--heads", ""), "there is no head"),
        (("--top", "97"), "n=97 means 97 of 96 heads"),
        (("--metric", "ram_last"), "has no scores by 'ram_last'; it has ram."),
        (("--data", "scenes=4"), "the data are other samples than the 3 of"),
    ],
)
def test_mistakes_are_named_before_the_model_is_loaded(
    arguments: tuple[str, ...], message: str, scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(options, "loaded", _loaded)
    result = invoke("heads", scanned, *arguments, "--out", tmp_path / "pages")
    assert result.exit_code == 2
    assert message in text_of(result)
    assert not (tmp_path / "pages").exists()


def _loaded(*_: str) -> None:
    raise AssertionError("the model was loaded")
