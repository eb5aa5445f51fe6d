"""Calls of the Hugging Face model itself while hooks wait, by this thread and by another."""

import threading
from typing import Any

import pytest
import torch

from corelens import Head, HookedMLLM, ablate
from tests.helpers import tiny

INPUTS = tiny.batch("llava")
HOOKS = ablate([Head(1, 2), Head(2, 0)])
CALLS: dict[str, Any] = {
    "the model": lambda hf_model: hf_model(**INPUTS),
    "its forward": lambda hf_model: hf_model.forward(**INPUTS),
    "the model without its head": lambda hf_model: hf_model.model(**INPUTS),
    "the decoder": lambda hf_model: hf_model.get_decoder()(input_ids=INPUTS["input_ids"] % 300),
    "generation": lambda hf_model: hf_model.generate(**INPUTS, max_new_tokens=1),
    "the vision tower": lambda hf_model: hf_model.model.get_image_features(pixel_values=INPUTS["pixel_values"]),
}


@torch.no_grad()
@pytest.mark.parametrize("call", CALLS)
def test_a_call_past_waiting_hooks_raises_an_error(call: str):
    model = HookedMLLM(tiny.build("llava"))
    with model.hooks(fwd_hooks=HOOKS), pytest.raises(RuntimeError, match="hooks are waiting"):
        CALLS[call](model.hf_model)
    model.add_hook(*HOOKS[0])
    with pytest.raises(RuntimeError, match="hooks are waiting"):
        CALLS[call](model.hf_model)
    model.reset_hooks()
    CALLS[call](model.hf_model)
    with model.hooks():
        CALLS[call](model.hf_model)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("point", ["hook_resid_pre", "hook_mlp_out", "attn.hook_z", "attn.hook_pattern"])
def test_a_call_by_another_thread_during_a_hooked_pass_is_its_own_or_refused(attention: str, point: str):
    model = HookedMLLM(tiny.build("llava", attention=attention))
    plain, others = model(INPUTS), []

    def call() -> None:
        with torch.no_grad():
            try:
                others.append(torch.equal(model.hf_model(**INPUTS).logits, plain))
            except RuntimeError as error:
                others.append("another thread hooks the attention" in str(error))

    def zero_meanwhile(tensor: Any, hook: Any) -> Any:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return tensor * 0

    changed = model.run_with_hooks(INPUTS, fwd_hooks=[(f"blocks.1.{point}", zero_meanwhile)])
    assert others == [True]
    assert not torch.allclose(changed, plain, atol=1e-3)


@torch.no_grad()
def test_attention_is_not_returned_under_hooks():
    model = HookedMLLM(tiny.build("llava", attention="eager"))
    settings: Any = dict(max_new_tokens=1, return_dict_in_generate=True, output_attentions=True)
    assert len(model.generate(INPUTS, **settings).attentions[0]) == 3
    with model.hooks(fwd_hooks=HOOKS), pytest.raises(ValueError, match="output_attentions=True gives no attention"):
        model.generate(INPUTS, **settings)
