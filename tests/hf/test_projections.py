"""W_O is the matrix that acts, whatever holds it; what cannot be one is refused."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from corelens import Head, HookedMLLM, ablate, zeroed_weights
from tests.helpers import tiny

HEADS = [Head(1, 2), Head(2, 0)]


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Adapter(nn.Module):
    """Low-rank, as PEFT's are: it keeps the projection as `base_layer`, whose weight alone is not what acts."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.weight = base_layer, base_layer.weight
        self.down = nn.Linear(base_layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, base_layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


class Offloaded(nn.Linear):
    """Weights that are there only while it runs."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.stored = [base.weight.detach().clone()]
        self._hf_hook = type("Hook", (), {"execution_device": "cpu"})()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.stored[0])


def parametrised(attention: Any) -> None:
    parametrize.register_parametrization(attention.o_proj, "weight", Doubled())


def weight_normed(attention: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(attention.o_proj)


def adapted(attention: Any) -> None:
    attention.o_proj = Adapter(attention.o_proj)


def offloaded(attention: Any) -> None:
    attention.o_proj = Offloaded(attention.o_proj)


def hooked_by_others(attention: Any) -> None:
    attention.o_proj.register_forward_hook(lambda module, args, output: output * 3)


ELSEWHERE: list[Callable[[Any], None]] = [parametrised, weight_normed, adapted, offloaded, hooked_by_others]


@torch.no_grad()
@pytest.mark.parametrize("before", [True, False], ids=["before wrapping", "after wrapping"])
@pytest.mark.parametrize("change", ELSEWHERE)
def test_w_o_is_what_acts_and_weights_that_do_not_act_are_not_zeroed(change: Callable[[Any], None], before: bool):
    hf_model, inputs = tiny.build("llava"), tiny.batch("llava")
    model = None if before else HookedMLLM(hf_model)
    for layer in hf_model.get_decoder().layers:
        change(layer.self_attn)
    model = model or HookedMLLM(hf_model)
    plain, cache = model.run_with_cache(inputs)
    assert torch.equal(plain, hf_model(**inputs).logits)
    attention: Any = model.blocks[1].attn
    written = torch.einsum("bqhd,hdm->bqm", cache["z", 1], attention.W_O)
    assert_close(written, cache["attn_out", 1], atol=1e-5, rtol=1e-5)
    assert (model.cfg.d_head, model.cfg.d_model) == (16, 64)
    assert not torch.allclose(model.run_with_hooks(inputs, fwd_hooks=ablate(HEADS)), plain, atol=1e-3)
    message = r"the W_O of blocks\.1\.attn .* ablate\(heads\) does the same"
    with pytest.raises(ValueError, match=message), zeroed_weights(model, HEADS):
        pass


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_layers_that_quantise_what_they_read_have_no_w_o():
    hf_model, inputs = tiny.build("llava"), tiny.batch("llava")
    for layer in hf_model.get_decoder().layers:
        layer.self_attn = torch.ao.quantization.quantize_dynamic(layer.self_attn, {nn.Linear}, dtype=torch.qint8)
    model = HookedMLLM(hf_model)
    assert model.run_with_cache(inputs)[1]["pattern", 1].isfinite().all()
    assert not torch.allclose(model.run_with_hooks(inputs, fwd_hooks=ablate(HEADS)), model(inputs), atol=1e-3)
    attention: Any = model.blocks[1].attn
    with pytest.raises(ValueError, match="has no matrix: it does not multiply what it reads by one"):
        _ = attention.W_O
    with pytest.raises(ValueError, match="is no matrix that it holds"), zeroed_weights(model, HEADS):
        pass


@torch.no_grad()
def test_the_unembedding_is_the_one_that_acts():
    hf_model, inputs = tiny.build("llava"), tiny.batch("llava")
    parametrize.register_parametrization(hf_model.lm_head, "weight", Doubled())
    model = HookedMLLM(hf_model)
    logits, cache = model.run_with_cache(inputs, names_filter="blocks.2.hook_resid_post")
    assert_close(model.ln_final(cache["resid_post", 2]) @ model.W_U + model.b_U, logits, atol=1e-4, rtol=1e-4)


def test_weights_on_the_meta_device_are_no_matrix():
    model = HookedMLLM(tiny.build("llava").to("meta"))
    attention: Any = model.blocks[1].attn
    with pytest.raises(ValueError, match="has no weights: they are on the meta device"):
        _ = attention.W_O


def test_a_projection_of_zeros_that_is_elsewhere_is_a_matrix_of_zeros():
    hf_model = tiny.build("llava")
    module = hf_model.get_decoder().layers[1].self_attn
    nn.init.zeros_(module.o_proj.weight)
    offloaded(module)
    attention: Any = HookedMLLM(hf_model).blocks[1].attn
    assert not attention.W_O.any()
