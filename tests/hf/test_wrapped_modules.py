"""Models that changed after wrapping, and modes in which hooks would not act as they seem to."""

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import corelens as cl
from corelens import Head, HookedMLLM, ablate
from tests.helpers import tiny

INPUTS = tiny.batch("llava")
HEADS = [Head(1, 2)]


def layers(hf_model: Any) -> Any:
    return hf_model.get_decoder().layers


def replaced_layer(hf_model: Any) -> None:
    layers(hf_model)[1] = copy.deepcopy(layers(hf_model)[1])


def swapped_layers(hf_model: Any) -> None:
    layers(hf_model)[0], layers(hf_model)[1] = layers(hf_model)[1], layers(hf_model)[0]


def deleted_layer(hf_model: Any) -> None:
    del layers(hf_model)[2]


def added_layer(hf_model: Any) -> None:
    layers(hf_model).append(copy.deepcopy(layers(hf_model)[2]))


def replaced_list(hf_model: Any) -> None:
    hf_model.get_decoder().layers = nn.ModuleList(copy.deepcopy(layer) for layer in layers(hf_model))


def replaced_attention(hf_model: Any) -> None:
    layers(hf_model)[1].self_attn = copy.deepcopy(layers(hf_model)[1].self_attn)


def replaced_mlp(hf_model: Any) -> None:
    layers(hf_model)[1].mlp = copy.deepcopy(layers(hf_model)[1].mlp)


def replaced_decoder(hf_model: Any) -> None:
    hf_model.model.language_model = copy.deepcopy(hf_model.model.language_model)


def attention_of_its_own(hf_model: Any) -> None:
    def forward(self: Any, hidden_states: Any, **kwargs: Any) -> Any:
        return self.o_proj(self.q_proj(hidden_states)), None

    attention = layers(hf_model)[1].self_attn
    attention.forward = types.MethodType(forward, attention)


def compiled_model(hf_model: Any) -> None:
    hf_model.compile(backend="eager")


def compiled_forward(hf_model: Any) -> None:
    hf_model.forward = torch.compile(hf_model.forward, backend="eager")


def compiled_layer(hf_model: Any) -> None:
    layers(hf_model)[1].compile(backend="eager")


def compiled_decoder(hf_model: Any) -> None:
    hf_model.get_decoder().compile(backend="eager")


def wrapped_in_a_compiled_module(hf_model: Any) -> None:
    layers(hf_model)[1] = torch.compile(layers(hf_model)[1], backend="eager")


def attention_dropout(hf_model: Any) -> None:
    hf_model.train()
    layers(hf_model)[1].self_attn.attention_dropout = 0.5


def dropout_module(hf_model: Any) -> None:
    layers(hf_model)[1].mlp.add_module("dropout", nn.Dropout(0.1))
    hf_model.train()


def dropout_of_one_layer(hf_model: Any) -> None:
    layers(hf_model)[1].self_attn.attention_dropout = 0.5
    layers(hf_model)[1].self_attn.train()


def checkpointing(hf_model: Any) -> None:
    hf_model.activation_checkpointing_enable()
    hf_model.train()


REFUSED: dict[Callable[[Any], None], str] = {
    replaced_layer: r"layers\.1 of .* has changed since the model was wrapped",
    swapped_layers: r"layers\.0 of .* has changed",
    deleted_layer: r"layers of .* has changed",
    added_layer: r"layers of .* has changed",
    replaced_list: r"layers of .* has changed",
    replaced_attention: r"layers\.1\.self_attn of .* has changed",
    replaced_mlp: r"layers\.1\.mlp of .* has changed",
    replaced_decoder: r"language_model of .* has changed",
    attention_of_its_own: r"LlamaAttention ran without its hooks on blocks\.1\.attn\.hook_z",
    compiled_model: "the model is compiled",
    compiled_forward: "the model is compiled",
    compiled_layer: r"layers\.1 is compiled",
    compiled_decoder: r"language_model is compiled",
    wrapped_in_a_compiled_module: r"layers\.1 of .* has changed",
    attention_dropout: r"layers\.1\.self_attn is in training mode with attention_dropout=0\.5",
    dropout_module: r"layers\.1\.mlp\.dropout is in training mode with p=0\.1",
    dropout_of_one_layer: r"layers\.1\.self_attn is in training mode",
    checkpointing: "has gradient checkpointing",
}


@pytest.mark.parametrize("change", REFUSED)
def test_hooks_that_would_act_on_nothing_or_on_half_are_refused(change: Callable[[Any], None]):
    model = HookedMLLM(tiny.build("llava"))
    change(model.hf_model)
    with pytest.raises(RuntimeError, match=REFUSED[change]):
        model.run_with_hooks(INPUTS, fwd_hooks=ablate(HEADS))


@pytest.mark.parametrize("change", [replaced_layer, replaced_attention])
def test_weights_of_modules_that_no_longer_run_are_refused(change: Callable[[Any], None]):
    model = HookedMLLM(tiny.build("llava"))
    change(model.hf_model)
    with pytest.raises(RuntimeError, match="has changed"), cl.zeroed_weights(model, HEADS):
        pass


@torch.no_grad()
def test_training_without_dropout_and_checkpointing_without_gradients_are_hooked_as_ever():
    model = HookedMLLM(tiny.build("llava"))
    expected = model.run_with_hooks(INPUTS, fwd_hooks=ablate(HEADS))
    model.hf_model.activation_checkpointing_enable()
    model.train()
    assert torch.equal(model.run_with_hooks(INPUTS, fwd_hooks=ablate(HEADS), use_cache=False), expected)


def test_nothing_is_measured_while_activations_are_dropped():
    model = HookedMLLM(tiny.build("llava"))
    attention_dropout(model.hf_model)
    with pytest.raises(RuntimeError, match="each pass gives other numbers"):
        cl.evaluate(model, [])
    assert model(INPUTS, labels=INPUTS["input_ids"]).requires_grad  # training goes on
