"""Layers and heads of a Hugging Face model; with `parts` and `inputs/token_geometry.py` all that knows its insides.

Architectures are not listed: the code of a module's forward tells them apart, by the names that it uses.

    calls ALL_ATTENTION_FUNCTIONS            -> an attention module (AttentionModule)
    uses a Linear, a norm, sigmoid after it  -> W_O, a norm over head outputs, a gate
    `layers.3.self_attn` in its path         -> layer 3 of the decoder, or of the vision tower (DecoderLayer)
    parts that a layer's forward uses        -> where attention and MLP write to the residual stream (HookLocation)

A new architecture needs a line here only if its residual stream has a new form (`RESIDUAL_FORMS`). The hook points
themselves are in `corelens.hooks.points`.
"""

import inspect
import re
from importlib.metadata import version
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from corelens.errors import docs_link
from corelens.hf.layers import AttentionModule, DecoderLayer, HookLocation
from corelens.hf.parts import dense_mlp, experts_module, head_norms, head_rows, input_norms, names_in_forward
from corelens.hf.projections import inner_widths, widths

KNOWN_BUGS = {
    "phi4_multimodal": "transformers runs the vision encoder of phi4_multimodal causally under sdpa, its default, and "
    "not under eager (Phi4MultimodalVisionAttention.is_causal is True). corelens shows the pass that runs. Load it "
    "with attn_implementation='eager', or set is_causal=False on these modules, for the model that was trained.",
    "minimax_m3_vl": "the indexer of minimax_m3_vl counts padding, so that in a left-padded batch a sample's attention "
    "depends on how much it is padded. Give it one sample at a time, or samples of one length.",
}
"""Faults of transformers that change what is measured, by model type; wrapping such a model warns of them."""

if version("transformers") == "5.24.0":
    KNOWN_BUGS["llama4"] = (
        "transformers 5.24.0 cannot run llama4, with or without corelens: its forward reads an output, image_outputs, "
        "that its decoder does not give. Install another version."
    )

_VISION = re.compile("(?i:vision|visual|image)|ViT")
_CONNECTORS = re.compile("qformer|perceiver|project|audio", re.IGNORECASE)
_OF_MEDIA = re.compile("vision|visual|image|audio|protein")
"""Words in paths and class names: of vision towers, connectors to the decoder, and encoders."""

_NUMBER = re.compile(r"\.(\d+)\.")
"""Number of a layer in the path of a module within it."""

HEAD_WIDTHS = ("v_head_dim", "head_dim", "attention_head_size", "key_value_proj_dim")
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "groups")
"""Attributes of attention modules with width and number of heads, in order of preference."""


def decoder_layers(hf_model: PreTrainedModel) -> list[DecoderLayer]:
    """Find the decoder layers of a model, first layer first.

    Raises:
        TypeError: If the model takes no pictures, or its decoder computes attention on its own, or runs layers in a
            loop; names the class.
    """
    name, config = type(hf_model).__name__, hf_model.config
    takes_pictures = (
        config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        or getattr(config, "image_token_id", None) is not None
        or hasattr(config, "vision_config")
    )
    if not takes_pictures:
        raise TypeError(
            f"{name} takes no pictures: model type {config.model_type!r} has no vision configuration. corelens wraps "
            f"image-text-to-text models; load one with HookedMLLM.from_pretrained or AutoModelForImageTextToText. "
            f"{docs_link('no-pictures')}"
        )
    # Any: Hugging Face sets these attributes at run time. Below this function they have types.
    decoder: Any = hf_model.get_decoder()
    attention_modules = {
        path: module
        for path, module in decoder.named_modules()
        if _calls_attention_function(module) and _takes_mask(module) and not _OF_MEDIA.search(path)
    }
    if not attention_modules:
        classes = sorted({type(m).__name__ for m in decoder.modules() if "Attention" in type(m).__name__})
        raise TypeError(
            f"{name} is not supported: its text attention ({', '.join(classes) or 'none found'}) does not call "
            f"transformers' attention functions but computes attention on its own, so its heads cannot be hooked. "
            f"{docs_link('own-attention')}"
        )
    if (n_times := getattr(config.get_text_config(decoder=True), "loop_num_passes", 1)) > 1:
        raise TypeError(
            f"{name} is not supported: it runs some of its layers {n_times} times in one pass. A head of such a layer "
            f"has as many patterns, and corelens has one hook point for each head. {docs_link('loops')}"
        )
    # Encoder-decoders keep both in what transformers calls the decoder.
    attention_modules = {p: m for p, m in attention_modules.items() if "decoder." in p} or attention_modules
    numbered = {path: _numbered(path) for path in attention_modules}
    layers_path = next(iter(numbered.values()))[0]
    layers = decoder.get_submodule(layers_path)
    attentions: dict[int, dict[str, AttentionModule]] = {layer: {} for layer in range(len(layers))}
    for path, module in attention_modules.items():
        list_path, layer, name_in_layer = numbered[path]
        crossing = bool(re.search("cross|enc", name_in_layer, re.IGNORECASE))
        if list_path != layers_path and not crossing:
            continue
        # Idefics has its cross-attention in a list of its own, every so many layers.
        layer *= len(layers) // len(decoder.get_submodule(list_path))
        attention = attention_module(module, decoder.get_submodule(path.rpartition(".")[0]), crossing)
        attentions[layer]["cross_attn" if crossing else "attn"] = attention
    stack = decoder.get_submodule(layers_path.rpartition(".")[0])
    return [_decoder_layer(layer, stack, block, attentions[layer]) for layer, block in enumerate(layers)]


def decoder_configs(hf_model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Configurations of the decoder and of the models within it, by which masks are made."""
    decoder: nn.Module = hf_model.get_decoder()
    configs = {id(module.config): module.config for module in decoder.modules() if isinstance(module, PreTrainedModel)}
    return list(configs.values())


def vision_layers(hf_model: PreTrainedModel, layers: list[DecoderLayer]) -> tuple[dict[int, AttentionModule], str]:
    """Attention modules of the vision tower by layer, and the reason if there are none.

    Args:
        hf_model: The model.
        layers: Its decoder layers, whose attention is not the tower's.
    """
    # Any: not every model has these, and Hugging Face has no type for them.
    model: Any = hf_model
    in_decoder = {attention.module for layer in layers for attention in layer.attentions.values()}
    modules = {
        path: module
        for path, module in model.named_modules()
        if module not in in_decoder
        and _calls_attention_function(module)
        and _VISION.search(f"{path} {type(module).__name__}")
        and not _CONNECTORS.search(f"{path} {type(module).__name__}")
    }
    if not modules:
        tower = model.get_encoder("image")
        if tower is hf_model:
            return {}, f"{type(hf_model).__name__} has no vision tower that transformers knows of."
        return {}, f"its vision tower, {type(tower).__name__}, does not call transformers' attention functions."
    numbers = [int(number[1]) for path in modules if (number := _NUMBER.search(path))]
    if len(set(numbers)) < len(modules):
        # Stages and twin attentions count from zero more than once.
        numbers = list(range(len(modules)))
    attentions = [
        attention_module(module, model.get_submodule(path.rpartition(".")[0]), True) for path, module in modules.items()
    ]
    return dict(zip(numbers, attentions, strict=True)), ""


def final_norm(stack: nn.Module) -> nn.Module | None:
    """Last norm that the stack of layers uses; None if it uses none."""
    parts = [getattr(stack, name, None) for name in names_in_forward(stack)]
    norms = [part for part in parts if isinstance(part, nn.Module) and "norm" in type(part).__name__.lower()]
    return norms[-1] if norms else None


def attention_module(module: nn.Module, parent: nn.Module, crossing: bool = False) -> AttentionModule:
    """Read number of heads, W_O, gates and norms off an attention module.

    Args:
        module: A module that calls one of transformers' attention functions.
        parent: The module that holds it; BERT keeps its W_O there.
        crossing: True if its keys are not positions of the sequence.
    """
    names = names_in_forward(module)
    names_after = names[names.index("ALL_ATTENTION_FUNCTIONS") :]
    parts_after = {name: part for name in names_after if isinstance(part := getattr(module, name, None), nn.Module)}
    owner, w_o_name = _w_o_place(module, parent, parts_after)
    d_in = 0 if owner is None else (inner_widths(getattr(owner, w_o_name)) or (0, 0))[0]
    norms = [name for name, part in parts_after.items() if "norm" in type(part).__name__.lower()]
    mixing = [name for name in norms if d_in and any(p.numel() == d_in for p in parts_after[name].parameters())]
    # Any: set at run time, and not by all.
    hf_module: Any = module
    count = _first_number(module, HEAD_COUNTS)
    if not count and d_in and (width := _first_number(module, HEAD_WIDTHS)):
        count = d_in // width
    n_heads = count or hf_module.config.num_attention_heads
    gated = bool(norms) or "sigmoid" in (*names, *names_in_forward(owner or module))
    rows, no_rows = head_rows(module, n_heads, gated)
    return AttentionModule(
        module=module,
        n_heads=n_heads,
        is_cross_attention=crossing,
        w_o_owner=owner,
        w_o_name=w_o_name,
        gated=gated,
        mixing_norm=mixing[0] if mixing else "",
        packed="is_flash_attention_requested" in names and "cat" in names,
        head_rows=rows,
        no_head_rows=no_rows,
        norms=head_norms(module),
    )


def _w_o_place(module: nn.Module, parent: nn.Module, parts_after: dict[str, nn.Module]) -> tuple[nn.Module | None, str]:
    """Module that holds the projection of head outputs, and its name there."""
    # A gate and the projection behind it, as one module (Inkling 2).
    for part in parts_after.values():
        names = names_in_forward(part)
        if "sigmoid" in names and (inner := [name for name in names if widths(part._modules.get(name))]):
            return part, inner[-1]
    output: nn.Module | None = getattr(parent, "output", None)
    if direct := [name for name, part in parts_after.items() if widths(part)]:
        return module, direct[-1]
    if widths(getattr(output, "dense", None)):
        return output, "dense"
    # An adapter around it.
    around = [name for name, part in parts_after.items() if inner_widths(part)]
    return (module, around[-1]) if around else (None, "")


def _decoder_layer(
    layer: int, stack: nn.Module, block: nn.Module, attentions: dict[str, AttentionModule]
) -> DecoderLayer:
    missing: dict[str, str] = {}
    if list(attentions) == ["cross_attn"]:
        attentions = {"attn": attentions["cross_attn"]}
    points = {"resid_pre": HookLocation(block, "input"), "resid_post": HookLocation(block, "output")}
    points |= _inner_points(block)
    if not attentions:
        parts = ", ".join(type(part).__name__ for part in block.children() if "Norm" not in type(part).__name__)
        missing["attn"] = missing["attn_out"] = f"layer {layer} has no softmax attention; it is made of {parts}"
        points.pop("attn_out", None)
    for name in ("attn_out", "resid_mid", "mlp_out"):
        if name not in points and name not in missing:
            missing[name] = f"how attention and MLP write to the residual stream in {type(block).__name__} is not known"
            if scales := _scales(block):
                missing[name] += f": it is scaled by {', '.join(scales)}"
    mlp, no_mlp = dense_mlp(layer, block)
    norms, no_norms = input_norms(block, points)
    missing |= no_norms | ({"mlp": no_mlp} if no_mlp else {})
    return DecoderLayer(layer, stack, block, attentions, points, missing, mlp, experts_module(block), norms)


RESIDUAL_FORMS: dict[tuple[str, ...], dict[str, tuple[str, Literal["input in place", "output"]]]] = {
    ("input_layernorm", "mixer", "post_attention_layernorm", "mlp"): {
        "attn_out": ("mixer", "output"),
        "resid_mid": ("post_attention_layernorm", "input in place"),
        "mlp_out": ("mlp", "output"),
    },
    ("input_layernorm", "mixer", "post_attention_layernorm", "feed_forward"): {
        "attn_out": ("mixer", "output"),
        "resid_mid": ("post_attention_layernorm", "input in place"),
        "mlp_out": ("feed_forward", "output"),
    },
    ("mixer", "operator_norm", "feed_forward", "ffn_norm"): {
        "attn_out": ("mixer", "output"),
        "resid_mid": ("ffn_norm", "input in place"),
        "mlp_out": ("feed_forward", "output"),
    },
    ("attention_layernorm", "mixer", "feedforward_layernorm", "mlp"): {
        "attn_out": ("mixer", "output"),
        "resid_mid": ("feedforward_layernorm", "input in place"),
        "mlp_out": ("mlp", "output"),
    },
    # Norms on both sides of attention and MLP: the second one's output is what is added.
    (
        "input_layernorm", "mixer", "post_attention_layernorm",
        "pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm",
    ): {
        "attn_out": ("post_attention_layernorm", "output"),
        "resid_mid": ("pre_feedforward_layernorm", "input in place"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
    },
    (
        "input_layernorm", "mixer", "post_self_attn_layernorm",
        "post_attention_layernorm", "mlp", "post_mlp_layernorm",
    ): {
        "attn_out": ("post_self_attn_layernorm", "output"),
        "resid_mid": ("post_attention_layernorm", "input in place"),
        "mlp_out": ("post_mlp_layernorm", "output"),
    },
    ("mixer", "post_attention_layernorm", "mlp", "post_feedforward_layernorm"): {
        "attn_out": ("post_attention_layernorm", "output"),
        "resid_mid": ("mlp", "input in place"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
    },
    # Attention and MLP side by side: there is no stream between them.
    ("input_layernorm", "mixer", "mlp"): {"attn_out": ("mixer", "output"), "mlp_out": ("mlp", "output")},
}  # fmt: skip
"""Locations where attention and MLP write to the residual stream, by the parts in a layer's code, in order."""

MIXERS = ("self_attn", "linear_attn", "conv")


def _inner_points(block: Any) -> dict[str, HookLocation]:
    """Hook points inside a layer whose code uses only the parts of a known form."""
    used = {name: getattr(block, name, None) for name in names_in_forward(block)}
    parts = {
        "mixer" if name in MIXERS else name: part
        for name, part in used.items()
        if isinstance(part, nn.Module) and not isinstance(part, nn.Dropout)
    }
    if _scales(block):
        return {}
    form = RESIDUAL_FORMS.get(tuple(parts), {})
    return {point: HookLocation(parts[part], side) for point, (part, side) in form.items()}


def _scales(block: nn.Module) -> list[str]:
    """Names of the numbers that scale what a layer adds to the residual stream, or the stream (Gemma 4)."""
    return [name for name in names_in_forward(block) if isinstance(getattr(block, name, None), float | Tensor)]


def _first_number(module: nn.Module, names: tuple[str, ...]) -> int:
    """First of some attributes that is a number; zero if none is."""
    return next((value for name in names if isinstance(value := getattr(module, name, None), int)), 0)


def _calls_attention_function(module: nn.Module) -> bool:
    names = names_in_forward(module)
    # The second name: Kosmos-2.5's vision tower looks the function up in a way that never finds one.
    return "ALL_ATTENTION_FUNCTIONS" in names and "get_interface" in names


def _takes_mask(module: nn.Module) -> bool:
    """True of attention to tokens; Inkling 2 also attends from a position to its own stream after earlier layers."""
    return any("mask" in name for name in inspect.signature(module.forward).parameters)


def _numbered(path: str) -> tuple[str, int, str]:
    """Path of the list that holds a module, its number there, and the rest of the path: `layers`, 3, `self_attn`."""
    list_path, number, rest = _NUMBER.split(path, maxsplit=1)
    return list_path, int(number), rest
