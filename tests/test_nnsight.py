"""Every corelens line of docs/nnsight.md's table, against PyTorch's hooks on the Hugging Face model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import corelens as cl
from tests.helpers.nnsight import IDIOMS, Idiom


@pytest.fixture(scope="module")
def setting(toy_model: cl.HookedMLLM) -> dict[str, Any]:
    """The page's variables."""
    one, another = cl.toy.scenes(2, seed=0)
    picture, question = one.images[0], one.question
    inputs, other = toy_model.prepare(picture, question), toy_model.prepare(another.images[0], question)
    _, cache = toy_model.run_with_cache(inputs)
    _, source = toy_model.run_with_cache(other)
    return {
        **{"cl": cl, "torch": torch, "model": toy_model, "inputs": inputs, "other": other, "cache": cache},
        **{"picture": picture, "question": question, "other_question": "what colour is the 7 ?"},
        **{
            "answer": toy_model.to_single_token(one.answer),
            "stream": source["resid_post", 3],
        },
        "batch": toy_model.prepare([picture] * 2, [question, "what colour is the 7 ?"]),
    }


def layer(names: dict[str, Any], number: int = 3) -> Any:
    return names["model"].hf_model.get_decoder().layers[number]


def logits_of(names: dict[str, Any], edit: Callable[[Tensor, Tensor], Tensor], inputs: str = "inputs") -> Tensor:
    """Logits of the Hugging Face model where layer 3 leaves what a function makes of its input and output."""
    handle = layer(names).register_forward_hook(lambda module, args, output: edit(args[0], output))
    try:
        return names["model"].hf_model(**names[inputs]).logits
    finally:
        handle.remove()


def outputs(names: dict[str, Any], run: Callable[[], object], number: int = 3) -> list[Tensor]:
    """Outputs of a layer, one for each pass, by PyTorch's own hook."""
    found: list[Tensor] = []
    handle = layer(names, number).register_forward_hook(lambda module, args, output: found.append(output))
    run()
    handle.remove()
    return found


def gradient(names: dict[str, Any]) -> Tensor:
    found: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> None:
        output.register_hook(found.append)

    handle = layer(names).register_forward_hook(keep)
    names["model"].hf_model(**names["inputs"]).logits[0, -1, names["answer"]].backward()
    handle.remove()
    return found[0]


def plain(names: dict[str, Any], inputs: str = "inputs") -> Tensor:
    return names["model"].hf_model(**names[inputs]).logits


def greedy(names: dict[str, Any]) -> Tensor:
    return names["model"].hf_model.generate(**names["inputs"], min_new_tokens=4, max_new_tokens=4)


def patched(names: dict[str, Any]) -> Tensor:
    """Logits where the last position's output of head 14 of layer 3 is that of the other prompt."""
    w_o, (columns, found) = layer(names).self_attn.o_proj, (slice(14 * 16, 15 * 16), [])
    handle = w_o.register_forward_pre_hook(lambda module, args: found.append(args[0].clone()))
    plain(names, "other")
    handle.remove()

    def patch(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].clone()
        z[:, -1, columns] = found[0][:, -1, columns]
        return (z,)

    handle = w_o.register_forward_pre_hook(patch)
    logits = plain(names)
    handle.remove()
    return logits


EXPECTED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "read a value": (lambda n: n["stream"], lambda n: outputs(n, lambda: plain(n))[0]),
    "read the same of many modules": (
        lambda n: torch.stack([*n["cache"].values()])[2],
        lambda n: outputs(n, lambda: plain(n), 2)[0],
    ),
    "the output": (lambda n: n["logits"], plain),
    "edit": (lambda n: n["logits"], lambda n: logits_of(n, lambda stream, output: output * 2)),
    "swap for another value": (lambda n: n["logits"], lambda n: logits_of(n, lambda stream, output: n["stream"])),
    "skip a module": (lambda n: n["logits"], lambda n: logits_of(n, lambda stream, output: stream)),
    "stop early": (lambda n: n["stream"], lambda n: outputs(n, lambda: plain(n), 2)[0]),
    "several prompts in a pass": (lambda n: n["logits"], lambda n: plain(n, "batch")),
    "edit one prompt of a batch": (
        lambda n: n["logits"],
        lambda n: logits_of(n, lambda stream, output: torch.stack([output[0], output[1] * 0]), "batch"),
    ),
    "gradients": (lambda n: n["gradients"][0], gradient),
    "modules out of order": (
        lambda n: n["lens"],
        lambda n: n["model"].hf_model.lm_head(n["model"].hf_model.get_decoder().norm(outputs(n, lambda: plain(n))[0])),
    ),
    "inside a forward: `.source`": (
        lambda n: n["scores"].softmax(-1)[0, :, -1],
        lambda n: (n["query"][0, -1, :, None] * keys(n)).sum(-1).mul(n["query"].shape[-1] ** -0.5).softmax(-1),
    ),
    "generate": (lambda n: n["tokens"], lambda n: n["model"].hf_model.generate(**n["inputs"], max_new_tokens=4)),
    "each step of it": (
        lambda n: torch.stack(n["steps"]),
        lambda n: torch.stack([output[:, -1] for output in outputs(n, lambda: greedy(n))]),
    ),
    "values from one trace in another": (lambda n: n["logits"], patched),
    "edits that stay": (lambda n: n["logits"], lambda n: logits_of(n, lambda stream, output: output * 0)),
    "names of modules": (
        lambda n: "blocks.3.hook_resid_post" in n["names"],
        lambda n: True,
    ),
}
"""For each job, what its lines give and what it should be."""


def keys(names: dict[str, Any]) -> Tensor:
    """Keys of layer 3 for each query head: [head key d_head]."""
    key = names["cache"]["k", 3][0].transpose(0, 1)
    return key.repeat_interleave(names["model"].cfg.n_heads // len(key), 0)


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.job)
def test_lines_do_the_job(setting: dict[str, Any], idiom: Idiom):
    names = dict(setting)
    exec("\n".join(idiom.ours), names)
    found, expected = (of(names) for of in EXPECTED[idiom.job])
    if isinstance(found, Tensor):
        assert_close(found, expected, atol=1e-5, rtol=1e-5)
    else:
        assert found == expected


def test_every_job_has_an_expectation():
    assert EXPECTED.keys() == {idiom.job for idiom in IDIOMS}
