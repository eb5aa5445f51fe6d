"""Fingerprints differ in all that changes numbers, and in nothing else."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from tokenizers.normalizers import Lowercase

from corelens import Box, Evidence, Head, HookedMLLM, Sample, Video, ablate, scan
from corelens.data import charts
from corelens.experiments.fingerprint import WHOLE_FILE, samples_hash
from corelens.interventions.ablation import zeroed_weights
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture
from tests.helpers.questions import samples

Change = Callable[[HookedMLLM], AbstractContextManager[Any]]


@pytest.fixture
def model() -> HookedMLLM:
    return HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))


@torch.no_grad()
def most_of_a_matrix(model: HookedMLLM) -> AbstractContextManager[Any]:
    model.hf_model.get_decoder().layers[1].mlp.down_proj.weight[1:].neg_()  # pyright: ignore
    return nullcontext()


def configuration(model: HookedMLLM) -> AbstractContextManager[Any]:
    model.hf_model.config.get_text_config().rms_norm_eps = 0.1
    return nullcontext()


def pictures_size(model: HookedMLLM) -> AbstractContextManager[Any]:
    model.processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 64 * 64}
    return nullcontext()


def chat_template(model: HookedMLLM) -> AbstractContextManager[Any]:
    model.processor.chat_template = model.processor.chat_template.replace("assistant", "user")
    return nullcontext()


def another_normalizer(model: HookedMLLM) -> AbstractContextManager[Any]:
    model.processor.tokenizer.backend_tokenizer.normalizer = Lowercase()
    return nullcontext()


@contextmanager
def pytorch_hook(model: HookedMLLM) -> Iterator[None]:
    handle = model.hf_model.get_decoder().layers[0].register_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextmanager
def other_adapter(model: HookedMLLM) -> Iterator[None]:
    """As PEFT's layers say which of their adapters act."""
    adapted = model.hf_model.get_decoder().layers[0].self_attn.q_proj
    adapted.active_adapters, adapted.disable_adapters, adapted.scaling = ["a"], False, {"a": 1.0, "b": 1.0}
    yield
    del adapted.active_adapters, adapted.disable_adapters, adapted.scaling


@contextmanager
def changed_while_offloaded(model: HookedMLLM) -> Iterator[None]:
    layer = model.hf_model.get_decoder().layers[1]
    with torch.no_grad():
        layer.mlp.down_proj.weight[3].neg_()
    cpu_offload(layer, torch.device("cpu"))
    yield


MODELS: dict[str, tuple[Change, str]] = {
    "most of a matrix": (most_of_a_matrix, "weights was"),
    "a head without output": (lambda model: zeroed_weights(model, [Head(0, 1)]), "weights was"),
    "the configuration": (configuration, "settings was"),
    "the size of pictures": (pictures_size, "processor was"),
    "the chat template": (chat_template, "chat template was"),
    "merges of the tokenizer": (another_normalizer, "processor was"),
    "adapters": (other_adapter, "settings was"),
    "an offloaded matrix": (changed_while_offloaded, "weights was"),
    "autocast": (lambda model: torch.autocast("cpu", torch.bfloat16), "settings was"),
    "hooks of PyTorch": (pytorch_hook, "hooks act on the model"),
    "hooks": (lambda model: model.hooks(fwd_hooks=ablate([Head(0, 1)])), "hooks act on the model"),
}
"""Changes of a model between the runs into one folder, and the message about each."""


@pytest.mark.parametrize("change", MODELS)
def test_a_folder_refuses_the_run_of_a_changed_model(model: HookedMLLM, change: str, tmp_path: Path):
    first = scan(model, samples(2), out=tmp_path / "run")
    assert torch.equal(scan(model, samples(2), out=tmp_path / "run").values, first.values)
    apply, message = MODELS[change]
    with apply(model), pytest.raises(ValueError, match=rf"another run.*{message}|{message}.*another run"):
        scan(model, samples(2), out=tmp_path / "run")


def test_a_folder_takes_the_same_model_wherever_its_weights_are(model: HookedMLLM, tmp_path: Path):
    first = scan(model, samples(2), out=tmp_path / "run")
    cpu_offload(model.hf_model.get_decoder().layers[1], torch.device("cpu"))
    assert torch.equal(scan(model, samples(2), out=tmp_path / "run").values, first.values)


def returning(picture: Image.Image) -> Callable[[], Image.Image]:
    """A function that returns a picture, as a reader of one's own may hold."""
    return lambda: picture


class Album:
    """An object with a picture."""

    def __init__(self, picture: Image.Image):
        self.picture = picture

    def first(self) -> Image.Image:
        return self.picture


class Nameless:
    """An object without a name that can be called."""

    def __call__(self, n: int) -> Image.Image:
        raise AssertionError("a picture was drawn")


def file_of(picture: Image.Image, folder: Path) -> str:
    picture.save(folder / "a.png")
    return str(folder / "a.png")


def large_file(folder: Path, end: bytes) -> str:
    (folder / "a.mp4").write_bytes(bytes(WHOLE_FILE) + end)
    return str(folder / "a.mp4")


ONE, OTHER = random_picture(seed=1), random_picture(seed=2)
SAMPLE = Sample("a", "Which?", "7", (ONE,), (Evidence(Box(0, 0, 9, 9)),))
SAMPLES: dict[str, Callable[[Path], tuple[Sample, Sample]]] = {
    "the question": lambda folder: (SAMPLE, replace(SAMPLE, question="What?")),
    "the answer": lambda folder: (SAMPLE, replace(SAMPLE, answer="8")),
    "the instruction": lambda folder: (SAMPLE, replace(SAMPLE, instruction=" Be brief.")),
    "the box": lambda folder: (SAMPLE, replace(SAMPLE, evidence=(Evidence(Box(0, 0, 9, 8)),))),
    "the weight": lambda folder: (SAMPLE, replace(SAMPLE, evidence=(Evidence(Box(0, 0, 9, 9), weight=0.5),))),
    "the rule of scoring": lambda folder: (SAMPLE, replace(SAMPLE, scoring="contains")),
    "the format of the answer": lambda folder: (SAMPLE, replace(SAMPLE, about={"answer format": "Int"})),
    "the picture": lambda folder: (SAMPLE, replace(SAMPLE, images=(OTHER,))),
    "one more picture": lambda folder: (SAMPLE, replace(SAMPLE, images=(ONE, ONE))),
    "what a function holds": lambda folder: (
        replace(SAMPLE, images=(returning(ONE),)), replace(SAMPLE, images=(returning(OTHER),))
    ),
    "arguments of a function": lambda folder: (
        replace(SAMPLE, images=(partial(random_picture, (9, 9), 1),)),
        replace(SAMPLE, images=(partial(random_picture, (9, 9), 2),)),
    ),
    "what a function does": lambda folder: (
        replace(SAMPLE, images=(lambda: ONE.rotate(90),)), replace(SAMPLE, images=(lambda: ONE.rotate(180),))
    ),
    "defaults of a function": lambda folder: (
        replace(SAMPLE, images=(lambda picture=ONE: picture,)), replace(SAMPLE, images=(lambda picture=OTHER: picture,))
    ),
    "the object of a method": lambda folder: (
        replace(SAMPLE, images=(Album(ONE).first,)), replace(SAMPLE, images=(Album(OTHER).first,))
    ),
    "numbers of numpy": lambda folder: (
        replace(SAMPLE, about={"page": np.int64(1)}), replace(SAMPLE, about={"page": np.int64(2)})
    ),
    "a frame": lambda folder: (
        replace(SAMPLE, images=(), videos=(Video(np.zeros((4, 8, 8, 3), np.uint8), 2.0),)),
        replace(SAMPLE, images=(), videos=(Video(np.ones((4, 8, 8, 3), np.uint8), 2.0),)),
    ),
    "the frame rate": lambda folder: (
        replace(SAMPLE, images=(), videos=(Video(np.zeros((4, 8, 8, 3), np.uint8), 2.0),)),
        replace(SAMPLE, images=(), videos=(Video(np.zeros((4, 8, 8, 3), np.uint8), 3.0),)),
    ),
}  # fmt: skip
"""Pairs of samples that differ."""


@pytest.mark.parametrize("what", SAMPLES)
def test_samples_that_differ_have_other_hashes(what: str, tmp_path: Path):
    one, other = SAMPLES[what](tmp_path)
    assert samples_hash([("x", one)]) == samples_hash([("x", replace(one))])
    assert samples_hash([("x", one)]) != samples_hash([("x", other)])
    assert samples_hash([("x", one)]) != samples_hash([("y", one)])


def test_functions_are_not_called_and_may_hold_themselves():
    def draw(again: bool = True) -> Image.Image:
        raise AssertionError("a picture was drawn") if again else draw()

    # An object that a function holds may have a name and no module, as a generator has.
    held = (number for number in range(1))
    for function in (draw, partial(draw, again=True), partial(Nameless(), 1), lambda: held):
        sample = replace(SAMPLE, images=(function,))
        assert samples_hash([("x", sample)]) == samples_hash([("x", replace(sample))])


def test_files_are_hashed_by_what_they_hold(tmp_path: Path):
    sample = replace(SAMPLE, images=(file_of(ONE, tmp_path),))
    before = samples_hash([("", sample)])
    assert samples_hash([("", sample)]) == before
    file_of(OTHER, tmp_path)
    assert samples_hash([("", sample)]) != before
    video = replace(SAMPLE, images=(), videos=(large_file(tmp_path, b"a"),))
    before = samples_hash([("", video)])
    large_file(tmp_path, b"b")
    assert samples_hash([("", video)]) != before
    missing = replace(SAMPLE, images=(str(tmp_path / "none.png"),))
    assert samples_hash([("", missing)])


def test_hashes_are_the_same_in_every_process():
    code = (
        "from corelens.data import charts; from corelens.experiments.fingerprint import samples_hash; "
        "print(samples_hash([('', sample) for sample in charts(2)]))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert samples_hash([("", sample) for sample in charts(2)]) == other
