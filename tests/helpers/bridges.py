"""TransformerLens's own models of the weights of tiny ones."""

from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.sources.transformers import source

from tests.helpers import tiny


def bridge_of(name: str, tokenizer: Any) -> Any:
    """TransformerLens's bridge to a tiny model, which attends by eager attention as bridges do."""
    hf_model = tiny.build(name, attention="eager")
    hf_model.config.architectures = [type(hf_model).__name__]
    with pytest.MonkeyPatch.context() as patches:
        # It would look for a processor on the Hub, and for torchvision, which processors of pictures need.
        patches.setattr(source, "load_modality_processor", lambda *_, **__: None)
        patches.setattr(ArchitectureAdapter, "_check_required_libraries", lambda _: None)
        return TransformerBridge.boot_transformers(name, hf_model=hf_model, tokenizer=tokenizer, device="cpu")
