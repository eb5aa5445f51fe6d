"""Arguments of a forward pass, and what the pass returns: names that no pass reads raise an error."""

import inspect
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.utilities.lm_utils import lm_cross_entropy_loss
from transformers import PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from corelens.errors import check_choice, docs_link
from corelens.hf.module_outputs import StopForward, allow_stopping
from corelens.hf.versions import CACHE

ReturnType = Literal["auto", "logits", "loss", "both"] | None
"""Output of a pass: TransformerLens's choices, and `auto`, the loss if `labels` are given and else the logits."""

Output = Float[Tensor, "batch position *rest"] | Float[Tensor, ""] | tuple[Tensor, Tensor] | None
"""Logits, a residual stream, a loss, both logits and loss, or nothing."""

FROM_PROCESSORS = {"mm_token_type_ids", "token_type_ids"}
"""Tensors that processors make for models of several types, whether these read them or not."""

ELSEWHERE = {
    "queries": "run_with_cache, run_with_hooks or hooks",
    "fwd_hooks": "run_with_hooks or hooks",
    "bwd_hooks": "hooks",
    "names_filter": "run_with_cache",
    "max_new_tokens": "generate or answer",
}
"""Arguments of other calls, and these calls."""

OF_TRANSFORMERLENS = {
    "loss_per_token": "model.loss_fn(logits, inputs, per_token=True) returns the loss of each token",
    "start_at_layer": "a hook on blocks.LAYER.hook_resid_pre puts a stream in, and the layers before it run",
    "return_cache_object": "the dictionary of a cache is cache.cache_dict",
    "prepend_bos": "give it to model.to_tokens",
    "padding_side": "give it to model.to_tokens",
}
"""Arguments of TransformerLens's passes, and what stands in their place."""

OF_ITS_GENERATE = {
    "stop_at_eos": "generate stops there, and min_new_tokens=... makes it go on",
    "freq_penalty": "Hugging Face has repetition_penalty",
    "use_past_kv_cache": "Hugging Face calls it use_cache",
    "prepend_bos": "give it to model.to_tokens",
    "padding_side": "give it to model.to_tokens",
    "return_type": "model.answer(inputs) returns text, and model.to_string(ids) that of what generate returns",
    "verbose": "it prints nothing",
    "return_cache": "hooks in a `with model.hooks(...)` block see each step",
    "names_filter": "hooks in a `with model.hooks(...)` block see each step",
    "return_input_tokens": "what generate returns begins with the prompt",
    "multimodal_kwargs": "they are among what model.prepare(pictures, question) returns",
}
"""The same of its `generate`."""

NOT_RETURNED = {
    "output_attentions": "hook_pattern",
    "output_hidden_states": "hook_resid_post",
    "output_router_logits": "hook_expert_weights",
}
"""Arguments that request what a pass does not return, and the hook points that give it."""


PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
"""Settings that name the tokens in whose places pictures and videos are put."""


def input_mapping(inputs: Any = None) -> Mapping[str, Any]:
    """Tensors by name, of prepared inputs or of the ids of a text.

    Raises:
        TypeError: If it is a question or a picture that was not prepared.
    """
    if isinstance(inputs, Tensor) and inputs.ndim == 2 and not inputs.is_floating_point():
        return {"input_ids": inputs}
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        raise TypeError(f"a residual stream is no input: {OF_TRANSFORMERLENS['start_at_layer']}.")
    if inputs is not None and not isinstance(inputs, Mapping):
        ids = " (or the ids of a text alone, model.to_tokens(text))" if isinstance(inputs, str) else ""
        raise TypeError(
            f"a {type(inputs).__name__} is no input; give what model.prepare(pictures, question) returns{ids}."
        )
    return inputs or {}


def check_text_ids(inputs: Any, hf_model: PreTrainedModel, padding: int | None) -> None:
    """Raise a ValueError if ids alone, [batch position], are not all that a pass needs.

    Args:
        inputs: First argument of the pass.
        hf_model: The model.
        padding: Id of the tokenizer's padding, if it has one.
    """
    if not isinstance(inputs, Tensor) or inputs.is_floating_point():
        return
    named = {name: getattr(hf_model.config, name, None) for name in PLACEHOLDERS}
    for name, token in named.items():
        if token is not None and (inputs == token).any():
            raise ValueError(
                f"these ids hold placeholders of pictures ({name}={token}) and come without the pictures: give what "
                f"model.prepare(pictures, question) returns. {docs_link('ids')}"
            )
    if padding is not None and len(inputs) > 1 and (inputs[:, [0, -1]] == padding).any():
        raise ValueError(
            f"these ids are padded (by token {padding}), and come without a mask of their padding: give "
            f"{{'input_ids': ids, 'attention_mask': mask}}, or texts of one length. {docs_link('ids')}"
        )


def argument_names(hf_model: PreTrainedModel) -> frozenset[str]:
    """Names of the arguments that a model's forward takes, and hands to the models within it."""
    models = [module for module in hf_model.modules() if isinstance(module, PreTrainedModel)]
    parameters = [parameter for model in models for parameter in inspect.signature(model.forward).parameters.values()]
    named = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return frozenset(named | TransformersKwargs.__annotations__.keys() | {"use_cache", "past_key_values"})


def check_arguments(arguments: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise a TypeError if a pass would ignore one of its arguments.

    Args:
        arguments: Arguments of the pass.
        names: As returned by `argument_names`.
    """
    for name, value in arguments.items():
        if name in ELSEWHERE and name not in names:
            raise TypeError(f"a pass takes no {name!r}; give it to {ELSEWHERE[name]}. {docs_link('arguments')}")
        if name in OF_TRANSFORMERLENS and name not in names:
            raise TypeError(f"a pass takes no {name!r}: {OF_TRANSFORMERLENS[name]}. {docs_link('arguments')}")
        if name not in names and name not in FROM_PROCESSORS and name != "return_dict":
            known = [*names, *ELSEWHERE, "prefix", "stop_at_layer", "return_type"]
            nearest = ", ".join(get_close_matches(name, known, n=3, cutoff=0))
            raise TypeError(f"a pass takes no {name!r}; the nearest are {nearest}. {docs_link('arguments')}")
        if name in NOT_RETURNED and value:
            raise TypeError(
                f"{name} has no effect, since a pass returns logits or a loss: see {NOT_RETURNED[name]}, or call "
                f"model.hf_model. {docs_link('arguments')}"
            )
        if name == "return_dict" and value is False:
            raise TypeError(f"return_dict=False has no effect, since a pass returns logits. {docs_link('arguments')}")


def check_generate_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise a TypeError if an argument is one of TransformerLens's `generate`, and none of Hugging Face's."""
    for name in arguments.keys() & OF_ITS_GENERATE.keys():
        raise TypeError(f"generate takes no {name!r}: {OF_ITS_GENERATE[name]}. {docs_link('arguments')}")


def check_return_type(return_type: object) -> None:
    """Raise a ValueError if there is no such output."""
    check_choice("return_type", return_type, (*get_args(get_args(ReturnType)[0]), None))


def check_prefix_arguments(arguments: Mapping[str, Any], return_type: ReturnType) -> None:
    """Raise a ValueError if a pass after a prefix would ignore one of its arguments."""
    names = ("labels", "position_ids", "cache", "past_key_values")
    given = [name for name in names if arguments.get(name) is not None]
    if return_type in ("loss", "both"):
        given.append(f"return_type={return_type!r}")
    if given:
        raise ValueError(f"a pass after a prefix takes no {given[0]}: run the whole prompt, without prefix=.")


def layer_to_stop_at(stop_at_layer: int, n_layers: int, arguments: Mapping[str, Any], return_type: ReturnType) -> int:
    """Number of the layer before which a pass stops, from zero.

    Raises:
        ValueError: If there is no such layer, or the output is requested to be a loss.
    """
    if not -n_layers <= stop_at_layer < n_layers:
        raise ValueError(
            f"stop_at_layer={stop_at_layer} is no layer: the model has layers 0 to {n_layers - 1}, or -{n_layers} to "
            f"-1 from the end. The stream after the last is hook_resid_post."
        )
    if arguments.get("labels") is not None or return_type not in ("auto", "logits"):
        requested = "labels" if return_type in ("auto", "logits") else f"return_type={return_type!r}"
        raise ValueError(f"stop_at_layer returns a residual stream, and takes no {requested}.")
    return stop_at_layer % n_layers


def run_until(
    hf_model: PreTrainedModel, block: nn.Module, arguments: Mapping[str, Any]
) -> Float[Tensor, "batch position *rest"]:
    """Run a pass until a decoder layer begins, and return the residual stream that enters it."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise StopForward(args[0] if args else kwargs["hidden_states"])

    return allow_stopping(hf_model, block.register_forward_pre_hook(stop, with_kwargs=True), arguments)


def select_output(output: Any, arguments: Mapping[str, Any], return_type: ReturnType) -> Output:
    """Select the output of a pass from Hugging Face's."""
    labels = arguments.get("labels")
    if return_type is None:
        return None
    if return_type == "logits" or (return_type == "auto" and labels is None):
        return output.logits
    loss = output.loss if labels is not None else _next_token_loss(output.logits, arguments)
    return (output.logits, loss) if return_type == "both" else loss


def asks_for_attentions(hf_model: PreTrainedModel, arguments: Mapping[str, Any]) -> bool:
    """True if a call of `generate` would return attention patterns."""
    config = arguments.get("generation_config") or hf_model.generation_config
    requested = arguments.get("output_attentions")
    return bool(getattr(config, "output_attentions", False) if requested is None else requested)


def _next_token_loss(logits: Float[Tensor, "batch position vocabulary"], arguments: Mapping[str, Any]) -> Tensor:
    """TransformerLens's loss: the mean over all tokens but the first, placeholders of pictures among them."""
    tokens, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if tokens is None or "decoder_input_ids" in arguments or tokens.shape != logits.shape[:2]:
        raise ValueError(
            "return_type='loss' needs input_ids, and a logit for each of them: give labels, or leave out "
            f"inputs_embeds, {CACHE} and logits_to_keep."
        )
    mask = None if mask is None else mask.bool().to(logits.device)
    return lm_cross_entropy_loss(logits, tokens.to(logits.device), mask)
