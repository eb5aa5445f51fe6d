"""Every command of docs/reproduce.md, read from the page and run on tiny models and data of the same forms.

Videos need torchvision.
"""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from corelens.cli import app
from corelens.data import registry
from corelens.data.published import published_model, published_numbers
from corelens.data.readers.mlvu import PUBLISHED_TASKS
from corelens.study import StudyBudget
from tests.helpers import dataset_files as files
from tests.helpers import processors, tiny, verified, video_processors

PAGE = (verified.ROOT / "docs" / "reproduce.md").read_text()
SETTINGS = ("MODEL", "RUN", "BOX", "PAGES", "LENGTH", "KEPT")
ROWS = re.findall(r"^\| `(\S+/\S+)`" + r" \| `(.+?)`" * 5 + r" \|$", PAGE, re.MULTILINE)
"""Rows of the table of models."""

TINY = {"Qwen": "qwen3_vl", "llava-hf": "llava_onevision", "OpenGVLab": "internvl"}
"""Tiny models of the same classes, by owner of the models on the Hub."""

SHOWN = 1
"""Index of the row that the page's own lines name."""

REPORTS = tuple(f"report{number}" for number in range(4))
"""Names of documents: a study needs samples of four or more."""

BENCHMARK = "benchmarks/prefill_latency.py"
PRINTED = {
    "heads": ("spearman", "stable_heads", "depth"),
    "ablation": ("ablation",),
    "mlvu": ("mlvu",),
    "videomme": ("videomme",),
    "key-tokens": ("key_token_ratio",),
}
"""Tables of the paper's numbers by the name of a run's folder."""

TORCHVISION = importlib.util.find_spec("torchvision") is not None
needs_torchvision = pytest.mark.skipif(
    not TORCHVISION, reason="transformers' video processors need torchvision: pip install 'corelens[video]'"
)


@cache
def commands(row: tuple[str, ...], folder: Path) -> list[list[str]]:
    """The arguments of every `corelens` and `python` of the page, for a row of its table, as a shell expands them."""
    heard = folder / "heard"
    for shim in (folder / "corelens", folder / "python"):
        shim.write_text(f'#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >> {heard}\nprintf "\\n" >> {heard}\n')
        shim.chmod(0o755)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    script = "\n".join(blocks)
    for name, value in zip(SETTINGS, row, strict=False):
        script, n = re.subn(rf"^{name}=.*$", f'{name}="{value}"', script, flags=re.MULTILINE)
        assert n == 1
    subprocess.run(["bash", "-euc", script], check=True, cwd=folder, env={"PATH": f"{folder}:/usr/bin:/bin"})
    return [line.split("\0")[:-1] for line in heard.read_text().split("\n")[:-1]]


def test_the_page_has_commands_for_every_model_and_data_set_of_the_paper(tmp_path: Path):
    assert {published_model(row[0]) for row in ROWS} == {*published_numbers()["models"]}
    shown = re.findall(rf"^({'|'.join(SETTINGS)})=\"?(.*?)\"?$", PAGE, re.MULTILINE)
    assert tuple(value for _, value in shown) == ROWS[SHOWN]
    found = commands(ROWS[SHOWN], tmp_path)
    assert {words[0] for words in found} == {"scan", "ablate", "accelerate", "study", "compare", BENCHMARK}
    models = {words[words.index("--model") + 1] for words in found if "--model" in words and words[0] != BENCHMARK}
    assert models == {ROWS[0][0], ROWS[1][0], ROWS[3][0]}
    readers = {word.partition("=")[0] for words in found for word in words if "=" in word}
    assert readers == {*registry.READERS} - {"mmlongbench-doc"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_page_keeps_the_numbers_of_heads_of_the_tables(row: tuple[str, ...]):
    model, kept = published_model(row[0]), {int(n) for n in row[SETTINGS.index("KEPT")].split()}
    tables = [published_numbers()["tables"][table]["models"].get(model, []) for table in ("mlvu", "videomme")]
    printed = {line["full_heads"] for lines in tables for line in lines[1:]}
    assert kept == (printed or kept)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four rows of every data set, of as many pictures or documents, by the place where the page says that it is."""
    folder = tmp_path_factory.mktemp("data")
    places = {
        name: folder / name.split("/")[-1]
        for name in (
            "lmms-lab/RefCOCOg", "k-nick/VidSTG", "vidor", "MMDocIR/MMDocIR_Evaluation_Dataset",
            "ZhaoweiWang/MMLongBench", "MLVU/MVLU", "lmms-lab/Video-MME",
        )
    }  # fmt: skip
    rows = [
        files.refcocog_row(
            question_id=str(number),
            file_name=f"COCO_train2014_{number:012d}_{number}.jpg",
            image={"bytes": files.encoded_picture((100, 80), kind="PNG"), "path": "a.png"},
            answer=["a"],
        )
        for number in range(4)
    ]
    for split in ("val", "test"):
        files.write_table(places["lmms-lab/RefCOCOg"] / "data" / f"{split}-0.parquet", rows)
    videos = [f"240107527{number}" for number in range(4)]
    files.write_json(places["k-nick/VidSTG"] / "test_annotations.json", [files.vidstg_row(vid=vid) for vid in videos])
    for vid in videos:
        files.write_video(places["vidor"] / f"{vid}.mp4")
    layout = {"page": 1, "page_size": [612.0, 792.0], "bbox": [61.2, 79.2, 306, 396]}
    documents = places["MMDocIR/MMDocIR_Evaluation_Dataset"]
    question = files.mmdocir_question(layout_mapping=[layout])
    files.write_lines(documents / "MMDocIR_annotations.jsonl", [
        {"doc_name": f"{name}.pdf", "domain": "Brochure", "questions": [question]} for name in REPORTS
    ])  # fmt: skip
    page = {"image_binary": files.encoded_picture((153, 198))}
    files.write_table(documents / "MMDocIR_pages.parquet", [
        {"doc_name": name, "passage_id": str(number), **page} for name in REPORTS for number in range(3)
    ])  # fmt: skip
    bench = places["ZhaoweiWang/MMLongBench"]
    (bench / "mmlb_image" / "mm-niah").mkdir(parents=True)
    for name in ("a", "b", "needle", "c0", "c1"):
        Image.new("RGB", (60, 60)).save(bench / "mmlb_image" / "mm-niah" / f"{name}.png")
    files.write_lines(
        bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K8_dep6.jsonl", [files.mmlongbench_needle_row()] * 4
    )
    tasks = {
        "mmlongdoc": {name: [f"mmlongbench-doc/{name}/{name}_page{page}.jpg" for page in range(3)] for name in REPORTS},
        "longdocurl": {"4026369": [f"longdocurl/4026369/4026369_page{page}.jpg" for page in range(3)]},
    }
    for task, page_lists in tasks.items():
        for path in chain.from_iterable(page_lists.values()):
            (bench / "mmlb_image" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 60)).save(bench / "mmlb_image" / path)
        task_rows = [
            files.mmlongbench_document_row(doc_name=name, page_list=pages) for name, pages in page_lists.items()
        ]
        for length in (8, 128):
            path = bench / "mmlb_data" / "documentQA" / f"{task}_K{length}.jsonl"
            files.write_lines(path, task_rows * (4 // len(task_rows)))
    for number, task in enumerate(PUBLISHED_TASKS, 1):
        files.write_json(places["MLVU/MVLU"] / "json" / f"{number}_{task}.json", [files.mlvu_row()])
        files.write_video(places["MLVU/MVLU"] / "video" / f"{number}_{task}" / "needle_32.mp4")
    films = places["lmms-lab/Video-MME"]
    files.write_table(films / "videomme" / "test-00000-of-00001.parquet", [files.videomme_row()])
    files.write_video(films / "data" / "fFjv93ACGo8.mp4")
    return places


def substituted(words: list[str], model: Path, data: dict[str, Path]) -> list[str]:
    """A command for the tiny model, few samples, local data, and a cluster on this machine."""
    least = "4" if words[0] == "study" else "2"
    instead = {"--model": str(model), "--limit": least, "--ray": "local", "--actors": "1"}
    instead |= {"--top": "2", "--heads": "2"}  # of 12
    changed = [instead.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    for place, folder in data.items():
        changed = [re.sub(rf"(?<==){re.escape(place)}(?=,|$)", str(folder), word) for word in changed]
    shorter = {"study": ["--quick", "--max-new-tokens", "2"], "accelerate": ["--max-new-tokens", "2"]}
    return [*changed, *shorter.get(words[0], [])]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("corelens.study.verdict.N_DRAWS", 10)
    monkeypatch.setattr("corelens.study.QUICK", StudyBudget(1, 2, 1, (2,), (("mean", "both"),), (0.05,), 1, 1))
    for numbers in published_numbers()["tables"]["key_token_ratio"]["models"].values():
        monkeypatch.setitem(numbers, "heads", 3)  # of 12
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def run(words: list[str], here: Path, data: dict[str, Path]) -> Path:
    """The folder that a command writes or, to compare it, reads, which it does without a mistake."""
    found = CliRunner().invoke(app, substituted(words, here / "model", data))
    expected = 0 if "--published" not in words or is_printed(words) else 2
    assert found.exit_code == expected, f"{' '.join(words)}\n{found.output}\n{found.exception!r}"
    if expected:
        assert "the paper prints nothing about" in " ".join(found.output.replace("│", " ").split())
    return here / (words[words.index("--out") + 1] if "--out" in words else words[1])


def is_printed(words: list[str]) -> bool:
    """True if the paper prints numbers of this kind about the model."""
    model, tables = published_model(words[words.index("--published") + 1]), published_numbers()["tables"]
    return any(model in tables[table]["models"] for table in PRINTED[Path(words[1]).name])


def run_benchmark(here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Run the benchmark of latency on a small model at one short length."""
    instead = {"--model": "small", "--device": "cpu"}
    changed = [instead.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    fast = ["--lengths", "64", "--counts", "2", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", [*changed, *fast])
    script = runpy.run_path(str(verified.ROOT / words[0]))
    assert words[words.index("--model") + 1] in script["SIZES"]
    script["main"]()
    assert (here / words[words.index("--figure") + 1]).exists()


@needs_torchvision
@pytest.mark.parametrize("row", [ROWS[SHOWN], *ROWS[4:]], ids=lambda row: row[0])
def test_every_command_of_the_page_runs(
    row: tuple[str, ...], data: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch
):
    family = TINY[row[0].partition("/")[0]]
    video_processors.model(family).save_pretrained(here / "model")
    video_processors.build(family).save_pretrained(here / "model")
    (here / "visual-retrieval-heads.json").write_text('["L2H1", "L0H3", "L1H0"]')
    (here / "mmrethead-image-8k.json").write_text('{"head_score_list": [["2-1", 0.123], ["0-3", 0.111], ["1-0", 0]]}')
    every = [words for words in commands(row, here / "bin") if "--ray" not in words]
    is_shown = row is ROWS[SHOWN]
    for words in every:
        if words[0] == BENCHMARK and is_shown:
            run_benchmark(here, monkeypatch, words)
    # The loop over sizes of Qwen3-VL once, and the study, which takes longest.
    others = [
        words for words in every if {row[0], "compare"} & {*words} and not any("/study" in word for word in words)
    ]
    ran = {
        folder: words
        for words in (every if is_shown else others)
        if words[0] != BENCHMARK
        for folder in [run(words, here, data)]
    }
    assert all((folder / "manifest.json").exists() or (folder / "study.json").exists() for folder in ran)
    for folder, words in ran.items():
        if words[0] == "study":
            study = json.loads((folder / "study.json").read_text())
            assert len(study["findings"]) == 9
            assert len(study["compared with"]) == words.count("--compare-with")


@pytest.mark.nightly
@pytest.mark.skipif(TORCHVISION, reason="runs without torchvision, whose wheels Ray's workers cannot import here")
def test_the_command_for_a_cluster_runs(data: dict[str, Path], here: Path):
    tiny.build("qwen3_vl").save_pretrained(here / "model")
    processors.build("qwen3_vl").save_pretrained(here / "model")
    (words,) = [words for words in commands(ROWS[SHOWN], here / "bin") if "--ray" in words]
    video = words.index("vidstg=k-nick/VidSTG,vidor=vidor,evidence=published")
    folder = run(words[: video - 1] + words[video + 1 :], here, data)
    assert (folder / "vrh.safetensors").exists()
