"""What corelens can see in a model, told from its configuration alone: nothing is downloaded but that, or computed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as _MAPPED

from corelens.hf.architecture import KNOWN_BUGS, decoder_layers, vision_layers
from corelens.inputs.token_geometry import LEARNED_QUERIES, SEGMENTS, no_boxes

CHECKS = ("unhooked", "eager", "padded", "rows", "generation", "padded generation", "edits", "weights")
"""What tests hold of the attention of a model type, on a tiny random model of its architecture:

logits of passes that nobody looks at are bit-identical; patterns equal eager attention's, without padding and
left-padded; chosen rows are rows of the whole pattern; so are those of cached generation, without padding and
left-padded; edits of patterns and scores act in every layer; a zeroed head is its zeroed columns of W_O.
"""


@dataclass(frozen=True)
class ModelSupport:
    """What of a model can be hooked and drawn. Layers are counted from zero."""

    model_type: str
    n_layers: int
    """Of the decoder."""

    heads: dict[int, int]
    """By layer that has heads, how many."""

    headless: dict[int, str]
    """By layer that has none, what it is made of."""

    cross_attention: list[int]
    """Layers that attend to something else than the sequence."""

    gated: list[int]
    """Layers in which a gate or a norm acts on the heads' outputs before they are written."""

    mixing_norm: list[int]
    """Those of them in which it is one norm over all heads, so that one head changes what the others write."""

    vision: list[int]
    """Layers of the vision tower whose attention can be seen."""

    no_vision: str
    """Why there are none; empty if there are."""

    no_boxes: str
    """Why visual tokens have no rectangles in a picture; empty if they have."""

    no_video_boxes: str
    """The same of a video."""

    n_parameters: int
    known_bug: str
    """A fault of transformers that changes what is measured; empty if none is known."""

    @property
    def n_heads(self) -> int:
        """Of the decoder."""
        return sum(self.heads.values())

    @property
    def gib(self) -> float:
        """Memory of the parameters at bfloat16."""
        return self.n_parameters * 2 / 2**30

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The whole of it to read, as labels and texts."""
        counts = {count: [at for at, n in self.heads.items() if n == count] for count in self.heads.values()}
        made = {parts: [at for at, text in self.headless.items() if text == parts] for parts in self.headless.values()}
        gates = [at for at in self.gated if at not in self.mixing_norm]
        acting = [
            f"{name}: {number_ranges(at)}" for name, at in (("gate", gates), ("mixing norm", self.mixing_norm)) if at
        ]
        lines = [
            ("model type", self.model_type),
            ("decoder layers", str(self.n_layers)),
            ("with heads", number_ranges(list(self.heads)) or "none"),
            ("without heads", "; ".join(f"{number_ranges(at)}: {parts}" for parts, at in made.items()) or "none"),
            (
                "heads",
                f"{self.n_heads}: " + "; ".join(f"{n} per layer in {number_ranges(at)}" for n, at in counts.items()),
            ),
            ("cross-attention", number_ranges(self.cross_attention) or "none"),
            ("gate or norm on heads", "; ".join(acting) or "none"),
            ("vision tower", f"{len(self.vision)} layers" if self.vision else f"no: {self.no_vision}"),
            ("picture geometry", f"no: {self.no_boxes}" if self.no_boxes else "yes"),
            ("video geometry", f"no: {self.no_video_boxes}" if self.no_video_boxes else "yes"),
            ("parameters", f"{self.n_parameters:,} ({self.gib:.2f} GiB at bfloat16)"),
        ]
        return [*lines, ("known fault", self.known_bug)] if self.known_bug else lines


@dataclass(frozen=True)
class TestedType:
    """What the tests showed of a model type, without building a model."""

    model_type: str

    attention: str
    """How many of `CHECKS` passed."""

    heads: str
    """What is unusual about the decoder's attention."""

    picture: str
    """Whether visual tokens of a picture have rectangles; learned queries have none."""

    video: str
    """The same of a video."""

    tower: str
    """Whether attention of the vision tower can be hooked, or what stands in its place."""

    caveat: str


def inspect_config(config: PreTrainedConfig) -> ModelSupport:
    """What corelens would see in a model of this configuration; the model is built without weights.

    Raises:
        ValueError: If it is not the configuration of an image-text-to-text model.
        TypeError: If the model's decoder computes attention on its own.
    """
    model_type = config.model_type
    if model_type not in _MAPPED:
        raise ValueError(f"model type {model_type!r} is not an image-text-to-text model of transformers.")
    model = _without_weights(config)
    sites = decoder_layers(model)
    vision, no_vision = vision_layers(model, sites)
    attentions = {site.layer: site.attentions["attn"] for site in sites if "attn" in site.attentions}
    return ModelSupport(
        model_type=model_type,
        n_layers=len(sites),
        heads={layer: attention.n_heads for layer, attention in attentions.items()},
        headless={s.layer: s.missing["attn"].partition("made of ")[2] for s in sites if "attn" in s.missing},
        # A layer whose only attention is cross-attention has it as `attn`.
        cross_attention=[s.layer for s in sites if any(a.is_cross_attention for a in s.attentions.values())],
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
    """Every image-text-to-text model type of the installed transformers, and those that can be wrapped besides."""
    verified = json.loads(Path(__file__).with_name("verified.json").read_text())
    nothing = {"passed": [], "not made": {}}
    return [_tested_type(name, verified.get(name, nothing)) for name in sorted({*_MAPPED, *SEGMENTS})]


def _tested_type(name: str, shown: dict[str, Any]) -> TestedType:
    passed, reasons = shown["passed"], shown["not made"]
    n_passed = len(set(CHECKS) & set(passed))
    caveats = ["its text attention asks transformers for no attention function"] if "refused" in passed else []
    for reason in dict.fromkeys(reasons.values()):
        caveats.append(f"no {', no '.join(check for check in reasons if reasons[check] == reason)}: {reason}")
    if name in KNOWN_BUGS:
        caveats.append("a known fault of transformers; wrapping the model says which")
    if name not in _MAPPED:
        caveats.append("no Auto class loads it; wrap it as it is")

    def boxes(kind: str) -> str:
        known = "no" if no_boxes(name, kind) else "untested"
        return "yes" if kind in passed else known

    return TestedType(
        model_type=name,
        attention="refused" if "refused" in passed else f"{n_passed} of {len(CHECKS)}" if n_passed else "not tested",
        heads=shown.get("heads", ""),
        picture="queries" if name in LEARNED_QUERIES else boxes("picture"),
        video=boxes("video"),
        tower=shown.get("tower", "") if "tower" in passed else "",
        caveat="; ".join(caveats),
    )


def number_ranges(layers: list[int]) -> str:
    """Ascending numbers with runs drawn together: `0-2, 4`."""
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
            # Evolla's: the mapping names its class, the Auto class does not find it.
            if "Unrecognized configuration class" not in str(cause):
                raise
            model_class = getattr(transformers, _MAPPED[config.model_type])
            return model_class._from_config(config)
