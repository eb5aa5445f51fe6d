"""The docs: their code runs, and their tables are those of the tests and the code."""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from corelens import viz
from corelens.cli.explain import error_sections
from corelens.errors import EXPLAIN, docs_link
from corelens.inputs import token_geometry
from tests.helpers import attacks, verified

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
    packages = {*modules, "smol", "toy", "viz"}
    public = [package / "__init__.pyi", *(package / module / "__init__.py" for module in modules)]
    names = {name for path in public for name in re.findall(r"import \w+ as (\w+)", path.read_text())}
    page = (verified.ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^::: (corelens\.[\w.]+)\.(\w+)$", page, re.MULTILINE)
    for module, name in listed:
        assert hasattr(import_module(module), name), f"docs/api.md lists {module}.{name}, which does not exist"
    assert names - packages <= {name for _, name in listed}


@pytest.mark.parametrize(
    "path", [path for path in verified.PAGES if path.stem != "changelog"], ids=lambda path: path.stem
)
def test_every_page_says_for_whom_it_is(path: Path):
    assert re.search(r"^# .+\n\n\*?For [^\n]+\n\n", path.read_text())


def test_results_are_the_same_whichever_test_ended_first(tmp_path: Path):
    cases = [
        '<testcase name="test_the_vision_tower[llava]"><properties><property name="tower" value="yes"/></properties>',
        '<testcase name="test_heads_are_those_that_exist[llava]"><properties><property name="heads" value="own"/>'
        "</properties>",
    ]
    texts = []
    for order in (cases, cases[::-1]):
        (tmp_path / "results.xml").write_text(f"<suite>{'</testcase>'.join(order)}</testcase></suite>")
        texts.append(verified.serialized(verified.verified([tmp_path / "results.xml"])))
    assert texts[0] == texts[1]
    assert '"heads": "own"' in texts[0]


def test_attacks_are_tests_that_exist_and_each_that_passed_counts_once(tmp_path: Path):
    tests = "".join(path.read_text() for path in (verified.ROOT / "tests").rglob("test_*.py"))
    for attack in attacks.ATTACKS:
        assert all(f"def {name}(" in tests for name in attack.tests)
    flips, killed = attacks.ATTACKS[0].tests[0], attacks.ATTACKS[4].tests[0]
    tries = '<properties><property name="tries" value="316"/></properties>'
    results = tmp_path / "results.xml"
    results.write_text(
        f'<suite><testcase classname="a" name="{flips}[a part]">{tries}</testcase>'
        f'<testcase classname="a" name="{flips}[scores]">{tries}<failure/></testcase>'
        f'<testcase classname="a" name="{killed}"/><testcase classname="a" name="another"/></suite>'
    )
    made = list(attacks.counts([results, results]).values())
    assert made == [316, 0, 0, 0, 1, *[0] * (len(attacks.ATTACKS) - 5)]


def test_tables_of_the_docs_are_what_the_tests_showed():
    pages = verified.pages()
    assert sum(text.count("<!-- table: ") for text in pages.values()) == len(verified.tables())
    for path, text in pages.items():
        assert path.read_text() == text, f"{path} is not up to date; see tests/helpers/verified.py"


def test_the_gallery_shows_every_figure_and_stays_small():
    page = (verified.ROOT / "docs/gallery.md").read_text()
    figures = [
        name
        for name, value in vars(viz).items()
        if inspect.isfunction(value) and inspect.signature(value).return_annotation is go.Figure
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


def text_of(node: ast.AST) -> str:
    """Text of an expression, with … for values that are known only when it runs."""
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(map(text_of, node.values))
        case ast.FormattedValue():
            return text_of(node.value)
        case ast.Call(ast.Name("docs_link"), [ast.Constant(anchor)]):
            return docs_link(anchor)
    return "…"


def messages() -> Iterator[str]:
    """Every complete text in the source of corelens."""
    for path in (verified.ROOT / "corelens").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        pieces = {piece for node in nodes if isinstance(node, ast.JoinedStr) for piece in node.values}
        yield from (text_of(node) for node in nodes if node not in pieces)


def test_errors_and_their_sections_in_the_docs_link_to_each_other():
    page = (verified.ROOT / "docs/errors.md").read_text()
    assert docs_link("no-pictures") in page
    sections = {name: text for name, (_, text) in error_sections().items()}
    assert len(sections) == page.count("\n### ") >= 15
    texts = list(messages())
    for anchor, section in sections.items():
        quoted = re.findall(r"```text\n(.*?)\n```", section)
        assert quoted, f"#{anchor} shows no message"
        for quote in quoted:
            quoting = [text for text in texts if quote in text]
            assert quoting, f"corelens never raises {quote!r}"
            assert all(text.endswith(docs_link(anchor)) for text in quoting), f"{quote!r} does not end in #{anchor}"
    links = {anchor for text in texts for anchor in re.findall(rf"\({EXPLAIN} ([\w-]+)\)", text)}
    assert links == sections.keys()


def test_every_benchmark_is_explained():
    explained = re.findall(r"^### (\w+) ", (verified.ROOT / "docs/benchmarks.md").read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(path.stem for path in (verified.ROOT / "benchmarks").glob("*.py"))


def test_the_citation_is_of_this_version():
    citation = (verified.ROOT / "CITATION.cff").read_text()
    project = tomllib.loads((verified.ROOT / "pyproject.toml").read_text())["project"]
    for field in ("version", "license", "description"):
        assert project[field] in citation


def test_the_readme_is_short():
    assert len((verified.ROOT / "README.md").read_text().split()) <= 900
