"""Circuits against single passes over whole prompts, each with all other heads ablated."""

from collections.abc import Iterable
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from corelens import (
    Head,
    HeadSet,
    HookedMLLM,
    Sample,
    ablate,
    append_answers,
    circuit_criteria,
    circuit_curves,
    mean_activations,
    resample_activations,
    scan,
    toy,
)
from corelens.causal.effects import log_prob
from corelens.experiments.ablation import ReferenceMethod
from tests.helpers import processors, tiny
from tests.helpers.prompts import family_model
from tests.helpers.questions import samples

numpys_copies = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
ODD = (pytest.param("glm5_next", "resample", marks=numpys_copies), ("qwen3_5", "resample"), ("gemma3n", "mean"))
"""Latent attention in several streams, layers without heads, and layers that attend to keys of others."""


def build(name: str) -> HookedMLLM:
    return family_model(name) if name in tiny.FAMILIES else HookedMLLM(tiny.build(name), processors.build(name))


@torch.no_grad()
def margins(
    model: HookedMLLM, asked: list[Sample], removed: Iterable[Head], method: ReferenceMethod = "zero"
) -> torch.Tensor:
    """Logit of the answer minus that of the strongest other token of the whole model, over its tokens, by sample."""
    references = {
        "mean": lambda: mean_activations(model, asked, positions="from_question"),
        "resample": lambda: resample_activations(model, asked),
    }
    reference = references[method]() if method in references else None
    values = []
    for sample in asked:
        prompt = model.prepare(list(sample.images), sample.question)
        inputs = append_answers(model, prompt, [sample.answer])
        hooks = ablate(removed, method, reference, positions="from_question")  # pyright: ignore
        clean, logits = model(inputs)[0].float(), model.run_with_hooks(inputs, fwd_hooks=hooks)[0].float()
        total = 0.0
        for position in inputs.tokens.answer[0].nonzero().flatten().tolist():
            answer = int(inputs["input_ids"][0, position])
            others = clean[position - 1].clone()
            others[answer] = -torch.inf
            total += float(logits[position - 1, answer] - logits[position - 1, int(others.argmax())])
        values.append(total)
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("name", "method"),
    [("qwen3_vl", "resample"), ("llava", "zero"), ("gemma3", "mean"), *ODD],
)
def test_curves_are_passes_with_all_other_heads_ablated(name: str, method: ReferenceMethod):
    model, asked = build(name), samples(3)
    every = HeadSet(model.heads)
    ranking = every.heads[::-1]
    curves = circuit_curves(model, asked, {"last first": ranking}, (2, 0.4), method, seeds=(7,))
    sizes = (0, 2, -(-4 * len(every) // 10), len(every))
    assert curves.sizes == sizes
    for size, values in zip(sizes, curves.values["last first"][0], strict=True):
        expected = margins(model, asked, every - HeadSet(ranking[:size]), method)
        assert_close(values, expected, atol=2e-4, rtol=2e-4)
    assert curves.values["random"].shape == (1, 4, 3)
    assert_close(curves.values["random"][0, [0, -1]], curves.values["last first"][0, [0, -1]])
    assert curves.faithfulness("last first")[0, [0, -1]].tolist() == [0, 1]
    assert curves.samples == ("s0", "s1", "s2")


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
def test_criteria_are_passes_without_heads_of_the_circuit(name: str):
    model, asked = build(name), samples(2)
    every = HeadSet(model.heads)
    circuit = HeadSet(every.heads[1:4], "three")
    found = circuit_criteria(model, asked, circuit, "zero", seeds=(0,))
    full, empty = (float(margins(model, asked, removed).mean()) for removed in ([], every))

    def share(removed: HeadSet) -> float:
        return (float(margins(model, asked, removed).mean()) - empty) / (full - empty)

    outside = every - circuit
    approx = partial(pytest.approx, abs=1e-3, rel=1e-3)
    assert found.faithfulness == approx(share(outside))
    for head, loss in zip(circuit, found.minimality.tolist(), strict=True):
        assert loss == approx(share(outside) - share(outside | HeadSet((head,))))
    assert found.subsets[0] == circuit
    assert len(found.subsets) == 2
    for subset, distance in zip(found.subsets, found.incompleteness.tolist(), strict=True):
        assert all(head in circuit for head in subset)
        assert distance == approx(abs(share(outside | subset) - share(subset)))
    assert float(found.circuit_without[0]) == pytest.approx(0, abs=1e-3)
    limit = float(found.minimality.median())
    assert len(found.unneeded(limit)) == 2
    assert all(head in found.unneeded(limit) for head in found.unneeded(limit - 1e-4))


def test_heads_that_are_closed_add_nothing(toy_model: HookedMLLM):
    """In a model organism the open heads are all of the circuit; its closed ones are random to it."""
    asked = list(toy.scenes(4, seed=1))
    written = scan(toy_model, asked, "question_write_norm")
    n_open = int((written.per_head > 0).sum())
    curves = circuit_curves(toy_model, asked, {"writing": written.ranked()}, (n_open,), seeds=())
    assert curves.faithfulness("writing")[0].tolist() == pytest.approx([0, 1, 1], abs=1e-4)
    assert "random" not in curves.values


def test_wrong_circuits_are_refused_before_a_pass(toy_model: HookedMLLM):
    asked, every = list(toy.scenes(1, seed=0)), toy_model.heads
    for rankings in ({}, {"random": every}):
        with pytest.raises(ValueError, match="'random' is the name of the control"):
            circuit_curves(toy_model, asked, rankings)
    with pytest.raises(ValueError, match="ranking 'short' has 3 heads, and 48 are to be kept"):
        circuit_curves(toy_model, asked, {"short": every[:3]})
    with pytest.raises(ValueError, match="L9H0"):
        circuit_curves(toy_model, asked, {"absent": [Head(9, 0), *every]})
    with pytest.raises(ValueError, match="a circuit of 97 heads was asked for, and the model has 96"):
        circuit_curves(toy_model, asked, {"all": every}, (97,))
    with pytest.raises(ValueError, match=r"sizes=\(0, 96\): give at least one number of heads between"):
        circuit_curves(toy_model, asked, {"all": every}, (0, 96))
    with pytest.raises(ValueError, match="these are 0 of 96"):
        circuit_criteria(toy_model, asked, HeadSet(()))
    with pytest.raises(ValueError, match="these are 96 of 96"):
        circuit_criteria(toy_model, asked, HeadSet(every))
    with pytest.raises(ValueError, match="there are no samples"):
        circuit_curves(toy_model, [], {"all": every})


def test_pictures_behind_cross_attention_are_refused_by_name():
    with pytest.raises(ValueError, match="mllama has no visual tokens: it sees pictures by cross-attention"):
        circuit_curves(build("mllama"), samples(2), {"all": build("mllama").heads})


def test_another_metric_is_named(toy_model: HookedMLLM):
    asked = list(toy.scenes(2, seed=0))
    curves = circuit_curves(toy_model, asked, {"all": toy_model.heads}, (5,), metric=log_prob, seeds=())
    assert (curves.metric, curves.method) == ("log probability", "resample")
