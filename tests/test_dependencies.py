"""Dependencies: what is imported is declared, and the core runs without the extras."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import corelens

ROOT = Path(corelens.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE = ("model", "metrics", "interventions", "causal", "sparse", "data", "experiments.scan")
"""Modules of corelens that import without any extra."""
NOT_IMPORTED = {
    "httpx2": "Starlette's test client imports it",
    "gguf": "transformers reads the language model of corelens/smol with it",
    "ipykernel": "Jupyter starts it",
    "ipywidgets": "tqdm's progress bars in notebooks",
    "nbformat": "plotly's figures in notebooks",
    "torchvision": "transformers' video processors",
    **dict.fromkeys(("beartype", "nbmake", "nbstripout", "pyright", "pytest-xdist", "ruff"), "tools"),
}
"""Declared packages that no Python file imports by name, and why; fonts are found by entry points."""


def required(lines: Iterable[str]) -> set[str]:
    """Canonical names of the distributions that requirement lines name, corelens itself excepted."""
    return {canonicalize_name(Requirement(line).name) for line in lines} - {"corelens"}


def with_requirements(names: Iterable[str]) -> set[str]:
    """Distributions and, transitively, those that they require without extras."""
    reached: set[str] = set()
    remaining = list(names)
    while remaining:
        name = remaining.pop()
        if name in reached:
            continue
        reached.add(name)
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform
            continue
        requirements = [Requirement(line) for line in lines]
        remaining += [
            canonicalize_name(one.name) for one in requirements if not one.marker or one.marker.evaluate({"extra": ""})
        ]
    return reached


def imported(*folders: str) -> Iterator[str]:
    """Canonical names of the distributions that the files of these folders import."""
    distributions = packages_distributions()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("require_path", "require_package")):
                modules = re.findall(r"'(\w+)'", ast.unparse(node))
            for module in modules:
                root = module.partition(".")[0]
                yield from (canonicalize_name(name) for name in distributions.get(root, ())[:1])


def test_corelens_imports_only_what_it_declares():
    declared = required(PROJECT["dependencies"]).union(*(required(EXTRAS[name]) for name in EXTRAS if name != "dev"))
    assert set(imported("corelens", "training")) - {"corelens"} <= declared


def test_tests_import_only_what_is_declared():
    declared = required(PROJECT["dependencies"]).union(*(required(lines) for lines in EXTRAS.values()))
    assert set(imported("tests", "benchmarks", "docs")) - {"corelens"} <= declared


def test_everything_declared_is_imported():
    declared = required(PROJECT["dependencies"]).union(*(required(lines) for lines in EXTRAS.values()))
    fonts = {name for name in declared if "font" in name}
    used = set(imported("corelens", "training", "tests", "benchmarks"))
    assert declared - used == NOT_IMPORTED.keys() | fonts


def test_the_core_imports_without_extras():
    """Modules of the extras are blocked in a new process, except those that core dependencies require themselves."""
    core = with_requirements(required(PROJECT["dependencies"]))
    optional = set[str]().union(*(required(EXTRAS[name]) for name in EXTRAS if name != "dev")) - core
    blocked = [
        module
        for module, names in packages_distributions().items()
        if {canonicalize_name(name) for name in names} <= optional
    ]
    assert {"plotly", "sklearn", "starlette", "uvicorn", "ray"} <= set(blocked)
    code = f"""
import sys
sys.modules |= dict.fromkeys({blocked})
import {", ".join(f"corelens.{name}" for name in CORE)}
import corelens
corelens.HookedMLLM, corelens.scan, corelens.ablate, corelens.toy
try:
    corelens.viz
except ModuleNotFoundError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "plotly is not installed: pip install 'corelens[app]'.\n"
