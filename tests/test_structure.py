"""Structure: which package imports which, what names and files look like, and what importing costs."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import corelens

PACKAGE = Path(corelens.__file__).parent
TESTS = Path(__file__).parent
ORDER = [
    "errors",
    "progress",
    "files",
    "metrics",
    "heads",
    "scores",
    "head_formats",
    "box_rules",
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
    "smol",
    "shipped",
    "viz",
    "explorer",
    "study",
    "reports",
    "demo",
    "cli",
    "__main__",
]
"""Top to bottom: a module imports only from those before it."""
ARCHITECTURE = {"hf/architecture.py", "hf/parts.py", "inputs/token_geometry.py"}
"""The modules that know how Hugging Face's models differ."""
SUBMODULES = {
    *("self_attn", "self_attention", "input_layernorm", "post_attention_layernorm"),
    *("q_proj", "k_proj", "v_proj", "qkv", "qkv_proj", "query_key_value", "wqkv", "c_attn", "in_proj"),
    *("o_proj", "out_proj", "c_proj", "wo", "dense"),
}
"""Names of the parts of decoder layers and attention modules in transformers."""
MAX_LINES = {"model.py": 430}
"""Modules that may be longer than 350 lines: HookedMLLM is one class."""
IN_SEVERAL_MODULES = {
    "pictures": "those of the toys' worlds, in toy, and of the English ones, in smol",
    "SAMPLES": "the same",
    "page": "the page of each kind of run, in its module of reports; the explorer's, in its server",
    "CLAIM": "the claim of a module of the study",
    "RULE": "the rule of each claim, in its module of the study",
    "WORLD": "each world of the toys",
    "draw": "draws a sample of that world",
    "SHARD_SIZE": "samples of a finished part, in each experiment",
    "COLOURS": "the colours of each drawn data set",
    "SIZE": "the picture size of each drawn data set",
    "TASKS": "the tasks of each published data set",
    "haystacks": "a drawn data set for large models, and one for the toys",
    "ITEMS": "words of drawn documents, and of the toys' pages",
    "COLUMNS": "headers of their tables",
    "Pages": "the choice of pages of each reader of documents",
    "N_ROWS": "rows of the table of heads in each report",
    "mmlongbench_doc": "a data set's reader, and its rule of scoring",
}
"""Public names that more than one module defines, and why; and every command is named like what it runs."""
WITHOUT_MODULE = {
    "hf/test_smol_weights.py": "the weights that ship",
    "test_benchmarks.py": "benchmarks/",
    "test_dependencies.py": "pyproject.toml",
    "test_devices.py": "every public operation on a simulated device",
    "test_docs.py": "docs/",
    "test_golden.py": "drawn samples",
    "test_nnsight.py": "docs/nnsight.md",
    "test_structure.py": "the tree of modules",
    "test_transformerlens.py": "docs/transformerlens.md",
    "test_transformerlens_first_calls.py": "the calls that TransformerLens's users make first",
    "test_transformerlens_hooks.py": "what hooks and caches of TransformerLens do",
    "test_transformerlens_passes.py": "attention, ablations and patches, against TransformerLens's own models",
    "test_transformerlens_table.py": "every row of its table",
    "test_transformerlens_values.py": "values of its table, against TransformerLens's own models",
    "study/test_verdict_rates.py": "all rules, by benchmarks/verdict_rates.py",
    "cli/test_reproduce.py": "docs/reproduce.md",
    "toy/test_weights.py": "the shipped models",
    "inputs/test_learned_queries.py": "token_geometry, of visual tokens without rectangles",
    "inputs/test_token_geometry_decoder.py": "token_geometry, seen by the decoder",
    "inputs/test_video.py": "videos through media, processor, token_geometry and prepare",
}
"""Test files that test no single module, and what they test."""


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


def docstrings(node: ast.AST, public: bool = False) -> Iterator[ast.Constant]:
    """Docstrings of a module, its classes and functions, and of attributes; or only of those that are public."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Expr(ast.Constant(str()) as text):
                yield text
            case ast.FunctionDef(name) | ast.ClassDef(name) if public and name.startswith("_"):
                continue
        yield from docstrings(child, public)


def test_only_three_modules_know_the_names_of_hugging_face():
    model_types = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert {"llava", "qwen3_vl", "gemma3"} <= model_types
    users: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        texts = {id(text) for text in docstrings(tree)}
        names = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and id(node) not in texts and isinstance(node.value, str)
        }
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if known := names & model_types | (names | attributes) & SUBMODULES:
            users[str(path.relative_to(PACKAGE))] = known
    assert users.keys() == ARCHITECTURE, users


def test_modules_are_short():
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        assert len(path.read_text().splitlines()) <= MAX_LINES.get(name, 350), f"{name} is too long"


def test_a_public_name_is_defined_once():
    modules: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.FunctionDef() | ast.ClassDef():
                    defined = [node.name]
                case ast.Assign():
                    defined = [target.id for target in node.targets if isinstance(target, ast.Name)]
                case ast.AnnAssign(ast.Name(target)):
                    defined = [target]
                case _:
                    defined = []
            for one in defined:
                if not one.startswith("_") and name != f"cli/{one}.py":
                    modules[one].add(name)
    twice = {name: sorted(where) for name, where in modules.items() if len(where) > 1}
    assert not {name: where for name, where in twice.items() if name not in IN_SEVERAL_MODULES}
    assert IN_SEVERAL_MODULES.keys() <= twice.keys(), "names that are allowed twice stand in one module"


def test_docstrings_begin_with_a_verb_or_a_noun():
    riddle = re.compile(r"(What|Whether|Which|Of|How|Where)\b")
    wrong = [
        f"{path.relative_to(PACKAGE)}:{text.lineno}: {text.value.splitlines()[0]}"
        for path in PACKAGE.rglob("*.py")
        for text in docstrings(ast.parse(path.read_text()), public=True)
        if riddle.match(text.value.strip())
    ]
    assert not wrong, "\n".join(wrong)


def test_every_test_file_is_named_after_a_module():
    modules = {path.relative_to(root) for root in (PACKAGE, PACKAGE.parent / "training") for path in root.rglob("*.py")}
    modules |= {Path("training", path) for path in modules}
    files = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    homeless = {str(file) for file in files if not modules_of(file) & modules}
    assert homeless == WITHOUT_MODULE.keys()


def modules_of(file: Path) -> set[Path]:
    """Modules after which a test file may be named: `data/test_scoring.py` tests `data/scoring/__init__.py` too."""
    module = file.with_name(file.name.removeprefix("test_"))
    packages = {module.with_suffix("") / "__init__.py"}
    if module.parent.name == module.stem:
        packages.add(module.parent / "__init__.py")
    return {module, *packages}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_loads_nothing_heavy_and_every_public_name_exists():
    heavy = "('transformers', 'transformer_lens', 'plotly', 'sklearn', 'torch')"
    assert run(f"import sys, corelens; print([name for name in {heavy} if name in sys.modules])") == "[]"
    assert run("import corelens; print(all(hasattr(corelens, name) for name in dir(corelens)))") == "True"


def test_the_first_model_loads_no_more_than_transformers_and_transformerlens():
    """Neither figures, servers and statistics, nor TransformerLens's own models: benchmarks/import_cost.py measures."""
    both = "import sys, transformer_lens; from transformers import AutoProcessor, GenerationMixin, PreTrainedModel"
    extra = run(f"{both}; n = set(sys.modules); from corelens import HookedMLLM; print(*(set(sys.modules) - n))")
    packages = {name.partition(".")[0] for name in extra.split()} - sys.stdlib_module_names
    assert packages <= {"corelens", "transformers", "lazy_loader"}


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
