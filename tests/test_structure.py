"""The house: what may import what, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import corelens

PACKAGE = Path(corelens.__file__).parent
ORDER = [
    "errors",
    "progress",
    "metrics",
    "heads",
    "scores",
    "head_formats",
    "tokens",
    "inputs",
    "hf",
    "hooks",
    "model",
    "sparse",
    "data",
    "interventions",
    "causal",
    "experiments",
    "toy",
    "viz",
    "explorer",
    "study",
    "reports",
    "demo",
    "cli",
    "__main__",
]
"""Top to bottom: a module imports only from those before it."""


def imported_siblings(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("corelens.")}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_has_its_place():
    assert {room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(ORDER)


def test_imports_point_upwards():
    for path in PACKAGE.rglob("*.py"):
        if room(path) != "__init__":
            above = set(ORDER[: ORDER.index(room(path)) + 1])
            wrong = imported_siblings(path) - above
            assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}, which come after it"


def test_metrics_import_nothing_from_corelens():
    for path in (PACKAGE / "metrics").glob("*.py"):
        assert imported_siblings(path) <= {"metrics"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_loads_nothing_heavy_and_every_public_name_exists():
    heavy = "('transformers', 'transformer_lens', 'plotly', 'sklearn', 'torch')"
    assert run(f"import sys, corelens; print([name for name in {heavy} if name in sys.modules])") == "[]"
    assert run("import corelens; print(all(hasattr(corelens, name) for name in dir(corelens)))") == "True"


def test_using_the_scan_module_does_not_hide_the_scan_function():
    assert run("import corelens.experiments.scan, corelens; print(callable(corelens.scan))") == "True"


def test_benchmarks_find_what_they_import():
    """In a process of their own, as they are run."""
    scripts = sorted(str(path) for path in (PACKAGE.parent / "benchmarks").glob("*.py"))
    run_all = "import runpy, sys; [runpy.run_path(script, run_name='imported') for script in sys.argv[1:]]"
    folder = PACKAGE.parent / "benchmarks"
    ran = subprocess.run([sys.executable, "-c", run_all, *scripts], cwd=folder, capture_output=True, text=True)
    assert len(scripts) > 5
    assert ran.returncode == 0, ran.stderr
