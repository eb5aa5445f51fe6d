"""Support of a model by corelens, from its configuration alone: no weights are downloaded, and nothing is computed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as _MAPPED

from corelens.hf.architecture import KNOWN_BUGS, decoder_layers, vision_layers
from corelens.inputs.token_geometry import SEGMENTS, WITHOUT_BOXES, no_boxes

CHECKS = ("unhooked", "eager", "padded", "rows", "generation", "padded generation", "edits", "weights")
"""Properties of the attention of a model type that tests check on a tiny random model of its architecture:

logits of passes without hooks are bit-identical; patterns equal eager attention's, without padding and
left-padded; chosen rows are rows of the whole pattern; so are those of cached generation, without padding and
left-padded; edits of patterns and scores act in every layer; a zeroed head is its zeroed columns of W_O.
"""


@dataclass(frozen=True)
class ModelSupport:
    """Parts of a model that can be hooked and drawn. Layers are counted from zero."""

    model_type: str
    n_layers: int
    """Number of decoder layers."""

    heads: dict[int, int]
    """Number of heads of each layer that has some."""

    headless: dict[int, str]
    """Parts of each layer that has no heads."""

    cross_attention: list[int]
    """Layers whose keys are not positions of the sequence."""

    gated: list[int]
    """Layers in which a gate or a norm acts on head outputs before W_O."""

    mixing_norm: list[int]
    """Gated layers with one norm over all heads, so that one head changes what the others write."""

    vision: list[int]
    """Layers of the vision tower whose attention can be hooked."""

    no_vision: str
    """Reason why there are none; empty if there are some."""

    no_boxes: str
    """Reason why visual tokens have no rectangles in a picture; empty if they have."""

    no_video_boxes: str
    """Reason why they have none in a video; empty if they have."""

    n_parameters: int
    known_bug: str
    """Fault of transformers that changes what is measured; empty if none is known."""

    @property
    def n_heads(self) -> int:
        """Number of heads of the decoder."""
        return sum(self.heads.values())

    @property
    def gib(self) -> float:
        """Memory of the parameters in bfloat16, in GiB."""
        return self.n_parameters * 2 / 2**30

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Table of these facts for a terminal: labels and texts."""
        by_count = {count: [at for at, n in self.heads.items() if n == count] for count in self.heads.values()}
        by_parts = {
            text: [at for at, other in self.headless.items() if other == text] for text in self.headless.values()
        }
        gates = [layer for layer in self.gated if layer not in self.mixing_norm]
        gates_and_norms = [
            f"{name}: {number_ranges(layers)}"
            for name, layers in (("gate", gates), ("mixing norm", self.mixing_norm))
            if layers
        ]
        heads_by_layer = "; ".join(f"{n} per layer in {number_ranges(layers)}" for n, layers in by_count.items())
        without_heads = "; ".join(f"{number_ranges(layers)}: {parts}" for parts, layers in by_parts.items())
        lines = [
            ("model type", self.model_type),
            ("decoder layers", str(self.n_layers)),
            ("with heads", number_ranges(list(self.heads)) or "none"),
            ("without heads", without_heads or "none"),
            ("heads", f"{self.n_heads}: {heads_by_layer}"),
            ("cross-attention", number_ranges(self.cross_attention) or "none"),
            ("gate or norm on heads", "; ".join(gates_and_norms) or "none"),
            ("vision tower", f"{len(self.vision)} layers" if self.vision else f"no: {self.no_vision}"),
            ("picture geometry", f"no: {self.no_boxes}" if self.no_boxes else "yes"),
            ("video geometry", f"no: {self.no_video_boxes}" if self.no_video_boxes else "yes"),
            ("parameters", f"{self.n_parameters:,} ({self.gib:.2f} GiB at bfloat16)"),
        ]
        return [*lines, ("known fault", self.known_bug)] if self.known_bug else lines


@dataclass(frozen=True)
class TestedType:
    """Results of the tests for a model type; no model is built."""

    model_type: str

    attention: str
    """Number of `CHECKS` that passed."""

    heads: str
    """Peculiarities of the decoder's attention."""

    picture: str
    """`yes` if visual tokens of a picture have rectangles; learned queries have none."""

    video: str
    """`yes` if visual tokens of a video have rectangles."""

    tower: str
    """Kind of the vision tower, if its attention can be hooked."""

    caveat: str


def inspect_config(config: PreTrainedConfig) -> ModelSupport:
    """Support of a model with this configuration; the model is built without weights.

    Raises:
        ValueError: If it is not the configuration of an image-text-to-text model.
        TypeError: If the model's decoder computes attention on its own.
    """
    model_type = config.model_type
    if model_type not in _MAPPED:
        raise ValueError(f"model type {model_type!r} is not an image-text-to-text model of transformers.")
    model = _without_weights(config)
    layers = decoder_layers(model)
    vision, no_vision = vision_layers(model, layers)
    attentions = {layer.layer: layer.attentions["attn"] for layer in layers if "attn" in layer.attentions}
    return ModelSupport(
        model_type=model_type,
        n_layers=len(layers),
        heads={layer: attention.n_heads for layer, attention in attentions.items()},
        headless={s.layer: s.missing["attn"].partition("made of ")[2] for s in layers if "attn" in s.missing},
        # A layer whose only attention is cross-attention has it as `attn`.
        cross_attention=[s.layer for s in layers if any(a.is_cross_attention for a in s.attentions.values())],
        gated=[layer for layer, attention in attentions.items() if attention.gated],
        mixing_norm=[layer for layer, attention in attentions.items() if attention.mixing_norm],
        vision=list(vision),
        no_vision=no_vision,
        no_boxes=no_boxes(model_type),
        no_video_boxes=no_boxes(model_type, "video"),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        known_bug=KNOWN_BUGS.get(model_type, ""),
    )


def tested_types() -> list[TestedType]:
    """All image-text-to-text model types of the installed transformers, and others that can be wrapped."""
    verified = json.loads(Path(__file__).with_name("verified.json").read_text())
    untested = {"passed": [], "not made": {}}
    return [_tested_type(name, verified.get(name, untested)) for name in sorted({*_MAPPED, *SEGMENTS})]


def _tested_type(name: str, results: dict[str, Any]) -> TestedType:
    passed, reasons = results["passed"], results["not made"]
    n_passed = len(set(CHECKS) & set(passed))
    caveats = [results["refused"]] if "refused" in passed else []
    for reason in dict.fromkeys(reasons.values()):
        caveats.append(f"no {', no '.join(check for check in reasons if reasons[check] == reason)}: {reason}")
    if name in KNOWN_BUGS:
        caveats.append("a known fault of transformers; wrapping the model warns of it")
    if name not in _MAPPED:
        caveats.append("no Auto class loads it; wrap it as it is")

    def boxes(kind: str) -> str:
        known = "no" if no_boxes(name, kind) else "untested"
        return "yes" if kind in passed else known

    return TestedType(
        model_type=name,
        attention="refused" if "refused" in passed else f"{n_passed} of {len(CHECKS)}" if n_passed else "not tested",
        heads=results.get("heads", ""),
        picture=WITHOUT_BOXES.get(name) or boxes("picture"),
        video=boxes("video"),
        tower=results.get("tower", "") if "tower" in passed else "",
        caveat="; ".join(caveats),
    )


def number_ranges(layers: list[int]) -> str:
    """Ascending numbers, with runs as ranges: `0-2, 4`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        try:
            return AutoModelForImageTextToText.from_config(config)
        except ValueError as cause:
            # Evolla: the mapping names its class, and the Auto class does not find it.
            if "Unrecognized configuration class" not in str(cause):
                raise
            model_class = getattr(transformers, _MAPPED[config.model_type])
            return model_class._from_config(config)
