"""What the tests showed of every architecture, for `corelens models`, and the tables of the docs.

    pytest --junitxml=results.xml && python -m tests.helpers.verified results.xml

writes corelens/hf/verified.json from any number of such files (a check passed if it passed in one of them and failed in
none), and the tables of docs/*.md. With --check it writes nothing, and says whether anything would change.
"""

import argparse
import ast
import inspect
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, fields
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from transformers import AutoModelForImageTextToText, InternVLConfig, LlavaOnevisionConfig, Qwen3VLConfig

from corelens.data import Sample
from corelens.hf.support import TestedType, tested_types
from corelens.inputs.token_geometry import SEGMENTS, VIDEO_SEGMENTS
from corelens.metrics import PRESETS
from corelens.scores import HeadScores
from corelens.sparse.cost_model import DENSE, DEVICES, Shares, cache_bytes, decode_seconds, dimensions, prefill_seconds
from corelens.study.budget import FULL, planned_work
from tests.helpers.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]
DATA = ROOT / "corelens" / "hf" / "verified.json"
PAGES = sorted(ROOT.glob("docs/*.md"))
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
    "test_text_attention_that_is_not_dispatched_is_refused_by_name[": "refused",
}


def outcomes(paths: list[Path]) -> Iterator[tuple[str, str, str, dict[str, str]]]:
    """The model type, test, outcome and records of every test of an architecture."""
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):
            test, _, parameters = str(case.get("name")).rstrip("]").partition("[")
            for padding in ("plain", "padded"):  # stands last in names, and belongs to the test here
                if parameters.endswith(f"-{padding}"):
                    test, parameters = f"{test}[{padding}", parameters.removesuffix(f"-{padding}")
            parameters = parameters.replace("_pan_and_scan", "")
            names = [name for name in ARCHITECTURES if parameters == name or parameters.startswith(f"{name}-")]
            if names:
                name = max(names, key=len)
                failed = case.find("failure") is not None or case.find("error") is not None
                outcome = "failed" if failed else "skipped" if case.find("skipped") is not None else "passed"
                records = {str(one.get("name")): str(one.get("value")) for one in case.iter("property")}
                yield ARCHITECTURES[name].model_type or name, test + "[" * ("[" not in test), outcome, records


def verified(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """By model type: the checks that passed, why others were not made, kinds of heads, and the vision tower."""
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"passed": [], "not made": {}})
    for model_type, test, outcome, records in outcomes(paths):
        if check := CHECKS.get(test):
            seen[model_type, check].add(outcome)
            if reason := records.pop("not made", None):
                found[model_type]["not made"][check] = reason
        found[model_type] |= records
    for model_type, check in sorted(seen, key=lambda one: list(CHECKS.values()).index(one[1])):
        of_type = found[model_type]
        if check not in of_type["not made"] and {"passed"} <= seen[model_type, check] <= {"passed", "skipped"}:
            of_type["passed"].append(check)
    return dict(sorted(found.items()))


def written(found: dict[str, dict[str, Any]]) -> str:
    """JSON, one line per model type."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(of_type)}" for name, of_type in found.items()) + "\n}\n"


@cache
def tables() -> dict[str, list[list[Any]]]:
    """The tables of the docs by name, header first."""
    known, titles = tested_types(), [field.name.replace("_", " ") for field in fields(TestedType)]
    functions = sorted({*SEGMENTS.values(), *VIDEO_SEGMENTS.values()}, key=lambda function: function.__name__)
    users = [
        [name for table in (SEGMENTS, VIDEO_SEGMENTS) for name, used in table.items() if used is function]
        for function in functions
    ]
    return {
        "models": [titles[:-1], *(list(astuple(one)[:-1]) for one in known)],
        "caveats": [["model type", "caveat"], *([one.model_type, one.caveat] for one in known if one.caveat)],
        "scores": [
            ["name", "query tokens", "summed over the evidence", "reduction", "compared with"],
            *([f"`{name}`", m.queries, *_axes(m)] for name, m in PRESETS.items()),
        ],
        "sources": [["name", "source"], *([f"`{name}`", m.source] for name, m in PRESETS.items())],
        "costs": [
            ["function", "lines of code", "model types"],
            *([f"`{f.__name__}`", code_lines(f), ", ".join(of)] for f, of in zip(functions, users, strict=True)),
        ],
        "computed": list(_computed()),
        "reproduction": list(_reproduction()),
        "claims": [["claim", "rule"], *([one["claim"], one["rule"]] for one in studies()[0]["findings"])],
        "verdicts": list(_verdicts()),
        "effects": list(_effects()),
    }


def studies() -> list[dict[str, Any]]:
    """What `corelens study` wrote of the small models."""
    paths = sorted(ROOT.glob("docs/studies/*.json"), key=lambda path: path.stem)
    return [json.loads(path.read_text()) for path in paths]


def _verdicts() -> Iterator[list[str]]:
    """The verdict of every study on every claim."""
    yield ["model", "data", *(one["claim"].partition(":")[0] for one in studies()[0]["findings"])]
    for study in studies():
        words = {"supported": "**yes**", "not supported": "no", "inconclusive": "open"}
        said = [words[one["verdict"]] for one in study["findings"]]
        data = study["choices"]["data"].replace(",", ", ") + study["choices"]["quick"] * ", `--quick`"
        yield [f"`{study['model']}`", data, *said]


def _effects() -> Iterator[list[str]]:
    """The numbers that the verdicts follow from, with their intervals."""
    yield ["needed of", "number", *(f"`{study['model'].removeprefix('corelens/')}`" for study in studies())]
    for claims in zip(*(study["findings"] for study in studies()), strict=True):
        names = dict.fromkeys(one["name"] for finding in claims for one in finding["effects"] if one["needed"])
        for name in names:
            of = [[one for one in finding["effects"] if one["name"] == name] for finding in claims]
            needed = next(one["needed"] for found in of for one in found)
            yield [claims[0]["claim"].partition(":")[0], f"{name}, {needed}", *(_measured(found) for found in of)]


def _measured(found: list[dict[str, Any]]) -> str:
    return "".join(f"**{one['said']}**" if one["met"] else one["said"] for one in found)


def _computed() -> Iterator[list[str]]:
    """What the cost model says of one plan for three models."""
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
            held = f"{dense:.2f} to {sparse:.2f} GB"
            yield [
                name,
                f"{n:,}",
                share,
                *(f"{gain:.2f}x" for gain in gains),
                held,
            ]


@cache
def qwen3_vl() -> dict[str, Any]:
    """Sizes of three models."""
    return {name: dimensions(config) for name, config in qwen3_vl_configs().items()}


def qwen3_vl_configs() -> dict[str, Any]:
    """Transformers' defaults, and what the published configurations say otherwise."""
    small_tower = dict(depth=24, hidden_size=1024, intermediate_size=4096)
    sizes = {
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
    """What the commands of docs/reproduce.md take, by the cost model."""
    yield ["model", "command", "passes", "answers", "memory", "H100s a model", "time on these", "on eight"]
    h100, short, long = DEVICES["H100"], (400, 3600, 3000), {"all": (90_000, 32_000), "evidence": (3_000, 32_000)}
    any_scores = HeadScores(torch.rand(1, 8, 8), "ram", ("a",))
    n_ablated = 1 + sum(map(len, any_scores.controls(0.05).values()))
    hundred = [Sample("", "", "")] * 100
    study = planned_work(dict.fromkeys("abc", hundred), {"text": hundred[:20]}, FULL).values()
    each = [sum(work.total for work in study if work.answers is answers) / 3 for answers in (False, True)]
    seen_by_study = sum(work.samples for work in study) / 3
    for name, pages, config, options in configs():
        model, weights = dimensions(config, **options), 2 * parameters(config)
        # By command: prompts, passes, answers and runs of the vision tower of each, and how often the weights are held.
        steps = {
            "scan": (short, 200, 0, 200, 1),
            "ablate": (long[pages], 0, 200 * n_ablated, 200, 1),
            "accelerate": (long[pages], 0, 100 * 26, 100, 1),
            "study": (short, *each, seen_by_study, 2),
        }
        for command, (prompts, passes, answers, seen, copies) in steps.items():
            held = copies * weights + cache_bytes(model, DENSE, max(prompts))
            gpus = -(-held // 64e9)
            hours = 0.0
            for n in prompts:
                read = prefill_seconds(model, DENSE, n, h100)
                tower = prefill_seconds(model, DENSE, n, h100, visual=0.9) - read
                said = 32 * decode_seconds(model, DENSE, n, h100)
                hours += (seen * tower + (passes + answers) * read + answers * said) / 3600
            eight = _took(hours / (8 // gpus)) if command == "scan" else "the same"
            counts = [f"{len(prompts) * n:,.0f}" for n in (passes, answers)]
            yield [name, command, *counts, f"{held / 1e9:.0f} GB", f"{gpus:.0f}", _took(hours), eight]


def _took(hours: float) -> str:
    return f"{hours:.2g} h" if hours >= 1 else f"{60 * hours:.2g} min" if hours >= 1 / 60 else f"{3600 * hours:.2g} s"


def configs() -> Iterator[tuple[str, str, Any, dict[str, int]]]:
    """Models of docs/reproduce.md: name, pages of documents, configuration, and how vision towers cut pictures."""
    for size, config in qwen3_vl_configs().items():
        yield f"Qwen3-VL-{size}", "all", config, {}
    qwen2 = dict(
        model_type="qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152128,
    )  # fmt: skip
    qwen3 = dict(
        model_type="qwen3", hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=False,
    )  # fmt: skip
    of_llava: dict[str, int] = dict(patches_per_token=1, patches_per_picture=729)
    of_internvl: dict[str, int] = dict(patches_per_token=4, patches_per_picture=1025)
    yield "LLaVA-OneVision-7B", "evidence", LlavaOnevisionConfig(text_config=qwen2), of_llava
    yield "InternVL3.5-8B", "evidence", InternVLConfig(text_config=qwen3, tie_word_embeddings=False), of_internvl


def parameters(config: Any) -> int:
    """How many parameters a model has."""
    with torch.device("meta"):
        return sum(one.numel() for one in AutoModelForImageTextToText.from_config(config).parameters())


def _axes(metric: Any) -> tuple[str, str, str]:
    """Contribution, reduction, and normalisation or baseline of a head score, in words."""
    compared = [axis for axis in (metric.normalisation, metric.baseline) if axis != "none"]
    return metric.contribution.replace("_", " "), metric.reduction, " ".join(compared).replace("_", " ") or "nothing"


def code_lines(function: Any) -> int:
    """Lines of a function's body, without its docstring, comments and blank lines."""
    (tree,) = ast.parse(inspect.getsource(function)).body
    body = tree.body[1:]  # pyright: ignore[reportAttributeAccessIssue]
    return len({line for part in body for node in ast.walk(part) if isinstance(node, ast.stmt | ast.expr)
                for line in (node.lineno, node.end_lineno)})  # fmt: skip


def pages() -> dict[Path, str]:
    """Every page with its tables as they should be: between `<!-- table: NAME -->` and `<!-- end -->`."""
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
    text = written(verified(arguments.results))
    if arguments.check:
        sys.exit("the tests show something else than corelens/hf/verified.json" if text != DATA.read_text() else None)
    DATA.write_text(text)
    for path, page in pages().items():
        path.write_text(page)


if __name__ == "__main__":
    main()
