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
import verified

PAGES = [path for path in (verified.ROOT / "README.md", *verified.PAGES) if "```python" in path.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_a_page_runs_in_order(page: Path, monkeypatch: pytest.MonkeyPatch):
    from corelens import grids

    monkeypatch.setattr(grids, "SEGMENTS", dict(grids.SEGMENTS))  # a page adds a family
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
        assert path.read_text() == text, f"{path} is not up to date; see tests/verified.py"


def test_the_gallery_shows_every_figure_and_stays_small():
    from corelens import viz

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


def messages() -> Iterator[str]:
    """Every text in the source of corelens, with … for what is put into it."""
    for path in (verified.ROOT / "corelens").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def test_every_refusal_that_the_docs_quote_is_in_the_source():
    page = (verified.ROOT / "docs/errors.md").read_text()
    quoted = re.findall(r"```text\n(.*?)\n```", page)
    assert len(quoted) >= page.count("\n### ") >= 15
    found = list(messages())
    for said in quoted:
        assert any(said in message for message in found), f"corelens never says {said!r}"


def test_every_benchmark_is_explained():
    said = re.findall(r"^### (\w+) ", (verified.ROOT / "docs/benchmarks.md").read_text(), re.MULTILINE)
    assert sorted(said) == sorted(path.stem for path in (verified.ROOT / "benchmarks").glob("*.py"))


def test_the_citation_is_of_this_version():
    cited = (verified.ROOT / "docs/CITATION.cff").read_text()
    project = tomllib.loads((verified.ROOT / "pyproject.toml").read_text())["project"]
    for field in ("version", "license", "description"):
        assert project[field] in cited
