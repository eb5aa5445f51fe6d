"""TransformerLens's own models of the weights of tiny ones."""

from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.sources.transformers import source

from tests.helpers import tiny

REBUILT = ("llava", "llava_next", "llava_onevision", "gemma3", "idefics3", "mistral3", "emu3", "qwen3_5", "qwen3_5_moe")
"""Families whose attention TransformerLens computes itself."""

LEFT_TO_HUGGING_FACE = (
    *("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "llama4", "gemma4", "gemma4_unified", "muse_glimmer"),
)


def bridge_of(name: str, tokenizer: Any) -> Any:
    """TransformerLens's bridge to a tiny model, which attends by eager attention as bridges do."""
    hf_model = tiny.build(name, attention="eager")
    hf_model.config.architectures = [type(hf_model).__name__]
    with pytest.MonkeyPatch.context() as patches:
        # It would look for a processor on the Hub, and for torchvision, which processors of pictures need.
        patches.setattr(source, "load_modality_processor", lambda *_, **__: None)
        patches.setattr(ArchitectureAdapter, "_check_required_libraries", lambda _: None)
        return TransformerBridge.boot_transformers(name, hf_model=hf_model, tokenizer=tokenizer, device="cpu")
