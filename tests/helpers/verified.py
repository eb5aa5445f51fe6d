"""Results of the tests for every architecture, for `corelens models`, and the tables of the docs.

    pytest --junitxml=results.xml && python -m tests.helpers.verified results.xml

writes corelens/hf/verified.json from any number of such files (a check passed if it passed in one of them and failed in
none), tests/attacks.json, and the tables of docs/*.md. With --check it writes nothing, and exits with 1 if one of the
two would change.
"""

import argparse
import ast
import difflib
import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, fields, replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from transformers import AutoModelForImageTextToText, InternVLConfig, LlavaOnevisionConfig, Qwen3VLConfig

from corelens.data import Sample
from corelens.experiments.ablation import PUBLISHED_DOSES, dose_conditions
from corelens.experiments.pass_sizes import pass_sizes
from corelens.experiments.throughput import MIN_DRAWS
from corelens.hf.support import TestedType, tested_types
from corelens.inputs.token_geometry import SEGMENTS, VIDEO_SEGMENTS
from corelens.metrics import PRESETS, Metric
from corelens.scores import HeadScores
from corelens.sparse.controls import plans_and_controls
from corelens.sparse.cost_model import (
    DENSE,
    DEVICES,
    Device,
    Shares,
    cache_bytes,
    decode_seconds,
    dimensions,
    prefill_seconds,
)
from corelens.sparse.rules import StreamingBlocks
from corelens.study.acceleration import PUBLISHED_COUNTS
from corelens.study.budget import FULL, planned_work
from tests.helpers import attacks, nnsight, transformerlens
from tests.helpers.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]
DATA = ROOT / "corelens" / "hf" / "verified.json"
COUNTS = ROOT / "tests" / "attacks.json"
PAGES = sorted(ROOT.glob("docs/*.md"))
KEPT = {
    "2B": (20, 30, 50, 100),
    "8B": (20, 30, 50, 100, 150, 200, 250),
    "32B": (50, 100, 150, 200, 250, 300),
}
"""Numbers of heads that attend to everything in docs/reproduce.md, by size."""

CHECKS = {
    "test_unhooked_logits_are_bit_identical[": "unhooked",
    "test_patterns_are_those_of_eager_attention[plain": "eager",
    "test_patterns_are_those_of_eager_attention[padded": "padded",
    "test_chosen_rows_are_rows_of_the_whole_pattern[": "rows",
    "test_cached_generation_shows_eager_rows[plain": "generation",
    "test_cached_generation_shows_eager_rows[padded": "padded generation",
    "test_edits_of_pattern_and_scores_act_in_every_layer[": "edits",
    "test_zeroing_a_head_is_zeroing_its_columns_of_w_o[": "weights",
    "test_the_vision_tower[": "tower",
    "test_changing_pixels_of_a_token_changes_its_feature_most[": "picture",
    "test_changing_pixels_of_a_token_changes_its_embedding_most[": "picture",
    "test_changing_pixels_of_a_token_in_its_frame_changes_its_feature_most[": "video",
    "test_architectures_that_cannot_be_hooked_are_refused_by_name[": "refused",
}


def outcomes(paths: list[Path]) -> Iterator[tuple[str, str, str, dict[str, str]]]:
    """Model type, test, outcome and records of every test of an architecture."""
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            test, _, parameters = str(case.get("name")).rstrip("]").partition("[")
            for padding in ("plain", "padded"):  # last in names; part of the test here
                if parameters.endswith(f"-{padding}"):
                    test, parameters = f"{test}[{padding}", parameters.removesuffix(f"-{padding}")
            parameters = parameters.replace("_pan_and_scan", "")
            names = [name for name in ARCHITECTURES if parameters == name or parameters.startswith(f"{name}-")]
            if names:
                name = max(names, key=len)
                failed = case.find("failure") is not None or case.find("error") is not None
                outcome = "failed" if failed else "skipped" if case.find("skipped") is not None else "passed"
                records = {str(entry.get("name")): str(entry.get("value")) for entry in case.iter("property")}
                yield ARCHITECTURES[name].model_type or name, test + "[" * ("[" not in test), outcome, records


def verified(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Results by model type: the checks that passed, reasons why others were not made, kinds of heads, vision tower."""
    check_outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)
    results: dict[str, dict[str, Any]] = defaultdict(lambda: {"passed": [], "not made": {}})
    for model_type, test, outcome, records in outcomes(paths):
        if check := CHECKS.get(test):
            check_outcomes[model_type, check].add(outcome)
            if reason := records.pop("not made", None):
                results[model_type]["not made"][check] = reason
        results[model_type] |= records
    for model_type, check in sorted(check_outcomes, key=lambda key: list(CHECKS.values()).index(key[1])):
        result = results[model_type]
        if check not in result["not made"] and {"passed"} <= check_outcomes[model_type, check] <= {"passed", "skipped"}:
            result["passed"].append(check)
    return dict(sorted(results.items()))


def serialized(results: dict[str, dict[str, Any]]) -> str:
    """JSON with one line per model type. Keys are sorted, since tests end in another order in every run."""
    lines = [
        f"{json.dumps(model_type)}: {json.dumps(result, sort_keys=True)}" for model_type, result in results.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


@cache
def tables() -> dict[str, list[list[Any]]]:
    """Tables of the docs by name, header first."""
    made: dict[str, int] = json.loads(COUNTS.read_text())
    known, titles = tested_types(), [field.name.replace("_", " ") for field in fields(TestedType)]
    functions = sorted({*SEGMENTS.values(), *VIDEO_SEGMENTS.values()}, key=lambda function: function.__name__)
    users = [
        [name for table in (SEGMENTS, VIDEO_SEGMENTS) for name, other in table.items() if other is function]
        for function in functions
    ]
    return {
        "models": [titles[:-1], *(list(astuple(model_type)[:-1]) for model_type in known)],
        "caveats": [
            ["model type", "caveat"],
            *([model_type.model_type, model_type.caveat] for model_type in known if model_type.caveat),
        ],
        "scores": [
            ["name", "query tokens", "summed over the evidence", "reduction", "compared with"],
            *([f"`{name}`", m.queries, *_axes(m)] for name, m in PRESETS.items()),
        ],
        "sources": [["name", "source"], *([f"`{name}`", m.source] for name, m in PRESETS.items())],
        "costs": [
            ["function", "lines of code", "model types"],
            *(
                [f"`{function.__name__}`", code_lines(function), ", ".join(model_types)]
                for function, model_types in zip(functions, users, strict=True)
            ),
        ],
        "computed": list(_computed()),
        "published": list(_published()),
        "reproduction": list(_reproduction()),
        "full-size": list(_full_size()),
        "attacks": [
            ["what was tried", "times", "what comes of it"],
            *([attack.tried, f"{made[attack.tried]:,}", attack.outcome] for attack in attacks.ATTACKS),
        ],
        "claims": [["claim", "rule"], *([finding["claim"], finding["rule"]] for finding in studies()[0]["findings"])],
        "verdicts": list(_verdicts()),
        "effects": list(_measurements()),
        "tasks": list(_tasks()),
        "transformerlens-states": transformerlens.counts(),
        "transformerlens": transformerlens.table(),
        "nnsight": nnsight.table(),
    }


def studies() -> list[dict[str, Any]]:
    """Summaries that `corelens study` wrote for the small models."""
    paths = sorted(ROOT.glob("docs/studies/*.json"), key=lambda path: path.stem)
    return [json.loads(path.read_text()) for path in paths]


def _verdicts() -> Iterator[list[str]]:
    """Verdict of every study on every claim."""
    yield ["model", "data", *(finding["claim"].partition(":")[0] for finding in studies()[0]["findings"])]
    for study in studies():
        words = {"supported": "**yes**", "not supported": "no", "inconclusive": "open", "cannot be tested": "-"}
        verdicts = [words[finding["verdict"]] for finding in study["findings"]]
        data = study["choices"]["data"].replace(",", ", ") + study["choices"]["quick"] * ", `--quick`"
        yield [f"`{study['model']}`", data, *verdicts]


def _measurements() -> Iterator[list[str]]:
    """Numbers that the verdicts follow from, with their intervals."""
    yield ["needed of", "number", *(f"`{study['model'].removeprefix('corelens/')}`" for study in studies())]
    for findings in zip(*(study["findings"] for study in studies()), strict=True):
        claim = findings[0]["claim"].partition(":")[0]
        needed = [
            measurement for finding in findings for measurement in finding["measurements"] if measurement["needed"]
        ]
        for name in dict.fromkeys(measurement["name"] for measurement in needed):
            need = next(measurement["needed"] for measurement in needed if measurement["name"] == name)
            yield [claim, f"{name}, {need}", *(_measurement(finding, name) for finding in findings)]


def _tasks() -> Iterator[list[str]]:
    """Points of accuracy that the heads of each task, ranked by the last token, cost in each task of a model."""
    (study,) = (study for study in studies() if study["model"] == "corelens/toy-worlds")
    costs = study["tasks"]["ram_last"]
    yield ["heads found by", *costs]
    for heads, by_task in costs.items():
        yield [heads, *(f"{100 * cost + 0.0:.0f}" for cost in by_task.values())]


def _measurement(finding: dict[str, Any], name: str) -> str:
    """Value and interval, bold if the need is met; empty if the finding lacks it."""
    measurements = [measurement for measurement in finding["measurements"] if measurement["name"] == name]
    return "".join(
        f"**{measurement['text']}**" if measurement["met"] else measurement["text"] for measurement in measurements
    )


def _computed() -> Iterator[list[str]]:
    """Predictions of the cost model for one plan and three models."""
    yield [
        "Qwen3-VL", "tokens", "attention's share of the FLOPs", "prefill: attention", "decoder", "with vision tower",
        "decoding: attention", "token, batch 1", "batch 8", "cache of a sequence",
    ]  # fmt: skip
    shares, device = Shares(full_heads=1 / 8, full_kv_heads=1 / 8, sink=64, window=512), DEVICES["H200"]
    for name, model in qwen3_vl().items():
        for n in (8192, 32768, 131072):
            attention, linear = model.attention_flops(n), 2 * n * model.linear_parameters
            prefill = [
                prefill_seconds(model, DENSE, n, device, visual=visual)
                / prefill_seconds(model, shares, n, device, visual=visual)
                for visual in (0.0, 0.9)
            ]
            decode = [
                decode_seconds(model, DENSE, n, device, batch=batch)
                / decode_seconds(model, shares, n, device, batch=batch)
                for batch in (1, 8)
            ]
            gains = [1 / shares.prefill_share(n), *prefill, 1 / shares.decode_share(n), *decode]
            dense, sparse = (cache_bytes(model, plan, n) / 1e9 for plan in (DENSE, shares))
            share = f"{attention / (attention + linear):.0%}"
            cache = f"{dense:.2f} to {sparse:.2f} GB"
            yield [name, f"{n:,}", share, *(f"{gain:.2f}x" for gain in gains), cache]


def _published() -> Iterator[list[str]]:
    """Limits of the published plan's prefill: few and many of the kept heads of the paper's table 2."""
    lengths = (8192, 16384, 32768, 65536, 131072)
    yield ["model", "kept heads", "share", *(f"{n:,}" for n in lengths)]
    kept = {"LLaVA-OneVision-7B": (20, 150), "Qwen3-VL-8B": (20, 250), "Qwen3-VL-32B": (50, 300)}
    rule, rates = StreamingBlocks().in_tokens, Device(1.0, 1.0, 1.0)
    for name, _, config, options in configs():
        model = dimensions(config, **options)
        for n_kept in kept.get(name, ()):
            share = n_kept / (model.layers * model.heads)
            plan = Shares(share, 1.0, rule.sink, rule.window)
            gains = [prefill_seconds(model, DENSE, n, rates) / prefill_seconds(model, plan, n, rates) for n in lengths]
            yield [name, str(n_kept), f"{share:.1%}", *(f"{gain:.2f}x" for gain in gains)]


@cache
def qwen3_vl() -> dict[str, Any]:
    """Sizes of the three larger models."""
    return {name: dimensions(config) for name, config in qwen3_vl_configs().items() if name != "2B"}


def qwen3_vl_configs() -> dict[str, Any]:
    """Transformers' defaults, changed to the published configurations."""
    small_tower = dict(depth=24, hidden_size=1024, intermediate_size=4096)
    sizes = {
        "2B": (2048, 6144, 28, 16, True, small_tower),
        "4B": (2560, 9728, 36, 32, True, small_tower),
        "8B": (4096, 12288, 36, 32, False, {}),
        "32B": (5120, 25600, 64, 64, False, {}),
    }
    return {
        name: Qwen3VLConfig(
            text_config=dict(
                hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=8, head_dim=128, tie_word_embeddings=tied,
            ),
            vision_config=tower | dict(out_hidden_size=width),
            tie_word_embeddings=tied,
        )
        for name, (width, mlp, layers, heads, tied, tower) in sizes.items()
    }  # fmt: skip


def _reproduction() -> Iterator[list[str]]:
    """Costs of the commands of docs/reproduce.md, by the cost model."""
    yield ["model", "`scan`", "`ablate`", "`accelerate`", "`study`", "memory", "memory of the study"]
    h100, samples = DEVICES["H100"], [Sample(str(number), "", "") for number in range(100)]
    for name, (pages, length, counts), config, options in configs():
        model, weights, text = dimensions(config, **options), 2 * parameters(config), config.get_text_config()
        shape, generator = (1, text.num_hidden_layers, text.num_attention_heads), torch.Generator().manual_seed(0)
        scores = HeadScores(torch.rand(shape, generator=generator), "ram", ("a",))
        conditions = dose_conditions(scores, PUBLISHED_DOSES)
        n_sets = sum(map(len, conditions.values())) + MIN_DRAWS * sum(name.startswith("top ") for name in conditions)
        plans = plans_and_controls(
            scores, text.num_attention_heads // text.num_key_value_heads, StreamingBlocks(), counts
        )
        n_plans = 1 + sum(map(len, plans.values())) + len(counts)
        # Draws of write-matched heads take more than a minute each, so that there are as few as can be.
        budget = replace(FULL, n_matched=MIN_DRAWS)
        study = planned_work(dict.fromkeys("abcd", samples), {"text": samples[:20]}, budget, scores.n_heads)
        study_samples = sum(work.samples for work in study.values()) / 4 + 50
        n_effects = study.pop("effects").total / 4
        study_passes, study_answers = (
            sum(work.total for work in study.values() if work.answers is answers) / 4 for answers in (False, True)
        )
        study_answers += 50 * (1 + (1 + FULL.n_seeds) * sum(2 * n <= scores.n_heads for n in PUBLISHED_COUNTS))
        # By command: prompts; passes, passes from the question on, answers and runs of the vision tower for each; and
        # copies of the weights.
        steps = {
            "scan": ((400, 3600, pages, length), 200, 0, 0, 200, 1),
            "ablate": ((length,), 0, 0, 100 * (1 + n_sets), 100, 1),
            "accelerate": ((32_000,), 0, 0, 600 * n_plans, 600, 1),
            "study": ((400, 3600, 3000, 8000), study_passes, n_effects, study_answers, study_samples, 2),
        }
        times, memories = [], []
        for prompts, passes, parts, answers, tower_runs, copies in steps.values():
            memories.append(copies * weights + cache_bytes(model, DENSE, max(prompts)))
            hours = 0.0
            for n in prompts:
                prefill = prefill_seconds(model, DENSE, n, h100)
                tower = prefill_seconds(model, DENSE, n, h100, visual=0.9) - prefill
                token = decode_seconds(model, DENSE, n, h100)
                hours += (tower_runs * tower + (passes + answers) * prefill + (parts + 32 * answers) * token) / 3600
            times.append(_duration(hours))
        needed = [
            f"{memory / 1e9:.0f} GB, {-(-memory // 64e9):.0f} H100" for memory in (max(memories[:-1]), memories[-1])
        ]
        yield [name, *times, *needed]


def _full_size() -> Iterator[list[str]]:
    """Sizes of passes over 128K tokens by the paper's models."""
    yield ["model", "activations of the plain pass", "of a scan", "of an ablation", "of the plan", "largest tensor"]
    for name, _, config, _ in configs():
        sizes = pass_sizes(config, 131_072)
        plain = sizes["plain"].peak_bytes
        ratios = [f"{sizes[work].peak_bytes / plain:.2f}x" for work in ("scan", "ablate", "plan")]
        largest = max((size.largest for size in sizes.values()), key=lambda shape: torch.Size(shape).numel())
        yield [name, f"{plain / 1e9:.1f} GB", *ratios, " x ".join(f"{length:,}" for length in largest)]


def _duration(hours: float) -> str:
    return f"{hours:.2g} h" if hours >= 1 else f"{60 * hours:.2g} min" if hours >= 1 / 60 else f"{3600 * hours:.2g} s"


def configs() -> Iterator[tuple[str, tuple[int, int, tuple[int, ...]], Any, dict[str, int]]]:
    """Models of docs/reproduce.md: name, settings, configuration, and numbers of patches.

    Settings: positions of a document's pages and of a prompt of MMLongBench, and the numbers of heads that are kept.
    """
    for size, config in qwen3_vl_configs().items():
        yield f"Qwen3-VL-{size}", (90_000, 128_000, KEPT.get(size, KEPT["8B"])), config, {}
    qwen2 = dict(
        model_type="qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152128,
    )  # fmt: skip
    qwen3 = dict(
        model_type="qwen3", hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=False,
    )  # fmt: skip
    llava_patches: dict[str, int] = dict(patches_per_token=1, patches_per_picture=729)
    internvl_patches: dict[str, int] = dict(patches_per_token=4, patches_per_picture=1025)
    internvl = InternVLConfig(text_config=qwen3, tie_word_embeddings=False)
    llava_counts = (20, 30, 50, 100, 150, 200)
    yield "LLaVA-OneVision-7B", (3_000, 8_000, llava_counts), LlavaOnevisionConfig(text_config=qwen2), llava_patches
    yield "InternVL3.5-8B", (3_000, 8_000, KEPT["8B"]), internvl, internvl_patches


def parameters(config: Any) -> int:
    """Number of parameters of a model."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _axes(metric: Metric) -> tuple[str, str, str]:
    """Contribution, reduction, and normalisation or baseline of a head score, in words."""
    compared = [axis for axis in (metric.normalisation, metric.baseline) if axis != "none"]
    return metric.contribution.replace("_", " "), metric.reduction, " ".join(compared).replace("_", " ") or "nothing"


def code_lines(function: Any) -> int:
    """Number of lines of a function's body, without its docstring, comments and blank lines."""
    (tree,) = ast.parse(inspect.getsource(function)).body
    body = tree.body[1:]  # pyright: ignore[reportAttributeAccessIssue]
    return len({line for part in body for node in ast.walk(part) if isinstance(node, ast.stmt | ast.expr)
                for line in (node.lineno, node.end_lineno)})  # fmt: skip


def pages() -> dict[Path, str]:
    """Pages with up-to-date tables, which stand between `<!-- table: NAME -->` and `<!-- end -->`."""
    texts = {path: path.read_text() for path in PAGES}
    for name, (header, *rows) in tables().items():
        lines = [header, ["---"] * len(header), *rows]
        table = "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
        for path, text in texts.items():
            before, mark, after = text.partition(f"<!-- table: {name} -->\n")
            if mark:
                texts[path] = f"{before}{mark}\n{table}\n\n<!-- end -->" + after.partition("<!-- end -->")[2]
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    shown = {
        DATA: serialized(verified(arguments.results)),
        COUNTS: json.dumps(attacks.counts(arguments.results), indent=1) + "\n",
    }
    if arguments.check:
        changes = [
            line
            for path, text in shown.items()
            for line in difflib.unified_diff(path.read_text().splitlines(), text.splitlines(), path.name, "shown", n=0)
        ]
        sys.exit("\n".join(["what is stated is not what the tests show", *changes]) if changes else None)
    for path, text in shown.items():
        path.write_text(text)
    for path, page in pages().items():
        path.write_text(page)


if __name__ == "__main__":
    main()
