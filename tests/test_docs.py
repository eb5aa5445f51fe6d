"""The docs say what is true: their code runs, and their tables are what the tests and the code show."""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from corelens import viz
from corelens.errors import PAGE, docs_link
from corelens.inputs import token_geometry
from tests.helpers import verified

PAGES = [path for path in (verified.ROOT / "README.md", *verified.PAGES) if "```python" in path.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_a_page_runs_in_order(page: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_geometry, "SEGMENTS", dict(token_geometry.SEGMENTS))  # a page adds a family
    namespace: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(code, str(page), "exec"), namespace)


def test_the_api_reference_lists_every_public_name():
    package = verified.ROOT / "corelens"
    modules = ["causal", "data", "data/scoring", "interventions", "metrics", "sparse"]
    public = [package / "__init__.pyi", *(package / module / "__init__.py" for module in modules)]
    names = {name for path in public for name in re.findall(r"import \w+ as (\w+)", path.read_text())}
    said = re.findall(r"^::: (corelens\.[\w.]+)\.(\w+)$", (verified.ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    for module, name in said:
        assert hasattr(import_module(module), name), f"docs/api.md lists {module}.{name}, which does not exist"
    assert names - {*modules, "viz"} <= {name for _, name in said}


def test_tables_of_the_docs_are_what_the_tests_showed():
    pages = verified.pages()
    assert sum(text.count("<!-- table: ") for text in pages.values()) == len(verified.tables())
    for path, text in pages.items():
        assert path.read_text() == text, f"{path} is not up to date; see tests/helpers/verified.py"


def test_the_gallery_shows_every_figure_and_stays_small():
    page = (verified.ROOT / "docs/gallery.md").read_text()
    figures = [
        name
        for name, one in vars(viz).items()
        if inspect.isfunction(one) and one.__module__.startswith("corelens.viz") and name != "explore"
    ]
    assert len(figures) >= 12
    for name in figures:
        assert f"figure = viz.{name}(" in page, f"the gallery does not show {name}"
    shown = re.findall(r"\(gallery/(\S+)\)", page)
    assert set(shown) == {path.name for path in (verified.ROOT / "docs/gallery").iterdir()}
    assert sum(path.stat().st_size for path in (verified.ROOT / "docs/gallery").iterdir()) < 1_500_000


def test_functions_of_families_stay_small():
    (_, *rows) = verified.tables()["costs"]
    assert all(lines <= 16 for _, lines, _ in rows)


def written(node: ast.AST) -> str:
    """What a piece of source says, with … for what is known only when it runs."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(map(written, node.values))
        case ast.FormattedValue():
            return written(node.value)
        case ast.Call(ast.Name("see"), [ast.Constant(anchor)]):
            return docs_link(anchor)
    return "…"


def messages() -> Iterator[str]:
    """Every whole text in the source of corelens."""
    for path in (verified.ROOT / "corelens").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        pieces = {piece for node in nodes if isinstance(node, ast.JoinedStr) for piece in node.values}
        yield from (written(node) for node in nodes if node not in pieces)


def test_refusals_and_their_sections_in_the_docs_point_at_each_other():
    page = (verified.ROOT / "docs/errors.md").read_text()
    assert docs_link("no-pictures") in page
    sections = dict(re.findall(r"^### [^\n]+ \{ #(\S+) \}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert len(sections) == page.count("\n### ") >= 15
    found = list(messages())
    for anchor, section in sections.items():
        quoted = re.findall(r"```text\n(.*?)\n```", section)
        assert quoted, f"#{anchor} shows no message"
        for said in quoted:
            saying = [message for message in found if said in message]
            assert saying, f"corelens never says {said!r}"
            assert all(message.endswith(docs_link(anchor)) for message in saying), f"{said!r} does not end in #{anchor}"
    pointers = {anchor for message in found for anchor in re.findall(rf"\({re.escape(PAGE)}#(.*?)\)", message)}
    assert pointers == sections.keys()


def test_every_benchmark_is_explained():
    said = re.findall(r"^### (\w+) ", (verified.ROOT / "docs/benchmarks.md").read_text(), re.MULTILINE)
    assert sorted(said) == sorted(path.stem for path in (verified.ROOT / "benchmarks").glob("*.py"))


def test_the_citation_is_of_this_version():
    cited = (verified.ROOT / "CITATION.cff").read_text()
    project = tomllib.loads((verified.ROOT / "pyproject.toml").read_text())["project"]
    for field in ("version", "license", "description"):
        assert project[field] in cited
