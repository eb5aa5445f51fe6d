"""The model before its training: Idefics3's class around SmolLM2, with a small random vision tower and connector."""

from typing import Any

import torch
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from corelens.hf.smol import ADDED_TOKENS, IMAGE, PATCH, SHUFFLE, SIDE, joined_weights, processor
from corelens.hf.smollm2 import load_language


def model_and_processor(seed: int) -> tuple[Any, Any]:
    """Build the model, its language model as it was published, and its processor."""
    language, weights, tokenizer = load_language()
    torch.manual_seed(seed)
    config: Any = Idefics3Config(
        text_config=language.to_dict() | {"vocab_size": language.vocab_size + len(ADDED_TOKENS)},
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        image_token_id=language.vocab_size + ADDED_TOKENS.index(IMAGE),
        scale_factor=SHUFFLE,
        tie_word_embeddings=True,
    )
    config.pad_token_id = tokenizer.pad_token_id
    model: Any = Idefics3ForConditionalGeneration(config)
    unknown = model.load_state_dict(joined_weights(weights, {}), strict=False).unexpected_keys
    assert not unknown, unknown
    model.tie_weights()
    # The end of a turn, with which the template closes every answer.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor(tokenizer)
