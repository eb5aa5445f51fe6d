"""Every command of docs/reproduce.md, read from the page and run on tiny models and data of the same forms.

Videos need torchvision.
"""

import importlib.util
import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from corelens.cli import app
from corelens.study import StudyBudget
from tests.helpers import dataset_files as files
from tests.helpers import processors, tiny, verified, video_processors

PAGE = (verified.ROOT / "docs" / "reproduce.md").read_text()
ROWS = re.findall(r"^\| `(\S+/\S+)` \| `(\S+)` \| `(\S+)` \| `(\S+)` \| `(\S+)` \|$", PAGE, re.MULTILINE)
"""Rows of the table of models: MODEL, RUN, BOX, PAGES and class."""

TINY = {
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "LlavaOnevisionForConditionalGeneration": "llava_onevision",
    "InternVLForConditionalGeneration": "internvl",
}
TORCHVISION = importlib.util.find_spec("torchvision") is not None
needs_torchvision = pytest.mark.skipif(
    not TORCHVISION, reason="transformers' video processors need torchvision: pip install 'corelens[video]'"
)


@cache
def commands(row: tuple[str, ...], folder: Path) -> list[list[str]]:
    """The arguments of every `corelens` of the page, for a row of its table, as a shell expands them."""
    shim, heard = folder / "corelens", folder / "heard"
    shim.write_text(f'#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >> {heard}\nprintf "\\n" >> {heard}\n')
    shim.chmod(0o755)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    script = "\n".join(blocks)
    for name, value in zip(("MODEL", "RUN", "BOX", "PAGES"), row, strict=False):
        script, n = re.subn(rf"^{name}=.*$", f"{name}={value}", script, flags=re.MULTILINE)
        assert n == 1
    subprocess.run(["bash", "-euc", script], check=True, cwd=folder, env={"PATH": f"{folder}:/usr/bin:/bin"})
    return [line.split("\0")[:-1] for line in heard.read_text().split("\n")[:-1]]


def test_the_page_has_commands_for_every_model_that_digests_name(tmp_path: Path):
    assert len(ROWS) == 5
    assert {row[-1] for row in ROWS} == set(TINY)
    found = commands(ROWS[1], tmp_path)
    assert [words[0] for words in found].count("scan") == 3
    assert {words[0] for words in found} == {"scan", "sweep", "ablate", "accelerate", "study", "compare"}
    assert {words[words.index("--model") + 1] for words in found if "--model" in words} == {r[0] for r in ROWS[:3]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four rows of every data set, by the place where the page says that it is."""
    folder = tmp_path_factory.mktemp("data")
    places = {
        name: folder / name.split("/")[-1]
        for name in (
            "lmms-lab/RefCOCOg", "k-nick/VidSTG", "vidor", "MMDocIR/MMDocIR_Evaluation_Dataset",
            "yubo2333/MMLongBench-Doc", "ZhaoweiWang/MMLongBench", "MLVU/MVLU",
        )
    }  # fmt: skip
    small = {
        "image": {"bytes": files.encoded_picture((100, 80), kind="PNG"), "path": "a.png"},
        "answer": ["a", "b", "c", "d"],
    }
    for split in ("val", "test"):
        files.write_table(places["lmms-lab/RefCOCOg"] / "data" / f"{split}-0.parquet", [files.refcocog_row(**small)])
    files.write_json(places["k-nick/VidSTG"] / "test_annotations.json", [files.vidstg_row()] * 4)
    edges = {"xmin": 5, "ymin": 5, "xmax": 25, "ymax": 25}
    course = [[{"tid": 0, "bbox": edges}]] * files.N_FRAMES
    files.write_json(places["vidor"] / "annotation" / "2401075277.json", {"trajectories": course})
    files.write_video(places["vidor"] / "video" / "2401075277.mp4")
    layout = {"page": 1, "page_size": [612.0, 792.0], "bbox": [61.2, 79.2, 306, 396]}
    documents = files.mmdocir_folder(places["MMDocIR/MMDocIR_Evaluation_Dataset"], [
        files.mmdocir_question(layout_mapping=[layout]) for _ in range(4)
    ])  # fmt: skip
    page = {"image_binary": files.encoded_picture((153, 198))}
    files.write_table(documents / "MMDocIR_pages.parquet", [
        {"doc_name": "report", "passage_id": str(number), **page} for number in range(3)
    ])  # fmt: skip
    doc = places["yubo2333/MMLongBench-Doc"]
    files.write_json(doc / "samples.json", [files.mmlongbench_doc_row()] * 4)
    (doc / "documents").mkdir()
    pages = [Image.new("RGB", (72, 96), (60 * number, 0, 0)) for number in range(3)]
    pages[0].save(doc / "documents" / "report.pdf", save_all=True, append_images=pages[1:], resolution=72)
    bench = places["ZhaoweiWang/MMLongBench"]
    (bench / "mmlb_image" / "mm-niah").mkdir(parents=True)
    for name in ("a", "b", "needle", "c0", "c1", "page1", "page2"):
        Image.new("RGB", (60, 60)).save(bench / "mmlb_image" / "mm-niah" / f"{name}.png")
    files.write_lines(
        bench / "mmlb_data" / "NIAH" / "retrieval-image_test_K8_dep6.jsonl", [files.mmlongbench_needle_row()] * 4
    )
    slides = {"page_list": ["mm-niah/page1.png", "mm-niah/page2.png"], "doc_name": "mm-niah", "question": "How many?"}
    slides |= {"answer": "18", "answer_format": "Integer"}
    files.write_lines(bench / "mmlb_data" / "docqa" / "slidevqa_K8.jsonl", [slides] * 4)
    files.write_json(places["MLVU/MVLU"] / "json" / "1_plotQA.json", [files.mlvu_row()] * 4)
    files.write_video(places["MLVU/MVLU"] / "video" / "1_plotQA" / "needle_32.mp4")
    return places


def substituted(words: list[str], model: Path, data: dict[str, Path]) -> list[str]:
    """A command for the tiny model, few samples, local data, and a cluster on this machine."""
    least = "4" if words[0] == "study" else "2"
    instead = {"--model": str(model), "--limit": least, "--ray": "local", "--actors": "1"}
    if {"20", "58"} & {*words}:  # heads, of which there are 12
        instead["--top"] = "2"
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
    monkeypatch.setattr("corelens.study.QUICK", StudyBudget(1, (0.2,), (("mean", "both"),), (0.05,), 1))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def run(words: list[str], here: Path, data: dict[str, Path]) -> Path:
    """The folder that a command writes or, to compare it, reads, which it does without a mistake."""
    found = CliRunner().invoke(app, substituted(words, here / "model", data))
    assert found.exit_code == 0, f"{' '.join(words)}\n{found.output}\n{found.exception!r}"
    return here / (words[words.index("--out") + 1] if "--out" in words else words[1])


@needs_torchvision
@pytest.mark.parametrize("row", [ROWS[1], *ROWS[3:]], ids=lambda row: row[0])
def test_every_command_of_the_page_runs(row: tuple[str, ...], data: dict[str, Path], here: Path):
    family = TINY[row[-1]]
    hf_model = video_processors.model(family)
    assert type(hf_model).__name__ == row[-1]
    hf_model.save_pretrained(here / "model")
    video_processors.build(family).save_pretrained(here / "model")
    (here / "visual-retrieval-heads.json").write_text('["L2H1", "L0H3", "L1H0"]')
    (here / "mmrethead-image-8k.json").write_text('{"head_score_list": [["2-1", 0.123], ["0-3", 0.111], ["1-0", 0]]}')
    every = [words for words in commands(row, here / "bin") if "--ray" not in words]
    # The loop over sizes of Qwen3-VL once.
    ran = [run(words, here, data) for words in every if row is ROWS[1] or {row[0], "compare"} & {*words}]
    assert all((folder / "manifest.json").exists() or (folder / "study.json").exists() for folder in ran)
    study = json.loads((ran[-1] / "study.json").read_text())
    assert len(study["findings"]) == 5
    assert len(study["compared with"]) == 2 * (row is ROWS[1])


@pytest.mark.skipif(TORCHVISION, reason="runs without torchvision, whose wheels Ray's workers cannot import here")
def test_the_command_for_a_cluster_runs(data: dict[str, Path], here: Path):
    tiny.build("qwen3_vl").save_pretrained(here / "model")
    processors.build("qwen3_vl").save_pretrained(here / "model")
    (words,) = [words for words in commands(ROWS[1], here / "bin") if "--ray" in words]
    video = words.index("vidstg=k-nick/VidSTG,vidor=vidor")
    folder = run(words[: video - 1] + words[video + 1 :], here, data)
    assert (folder / "vrh.safetensors").exists()
