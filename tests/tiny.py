"""Real architectures, tiny and random, and batches for their forward pass. Nothing here imports corelens."""

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

VOCABULARY, PAD, IMAGE, VIDEO, VISION_START, VISION_END = 512, 0, 500, 501, 502, 503
TOKENS = dict(pad_token_id=PAD, bos_token_id=1, eos_token_id=2)
MROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 2, 2])
TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    **TOKENS,
)
QWEN_VISION = dict(
    depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64, spatial_merge_size=2,
    temporal_patch_size=2,
)  # fmt: skip
VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
)
QWEN_TOKENS = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END
)

CONFIGS = {
    "qwen3_vl": dict(
        text_config=TEXT | dict(rope_parameters=MROPE | dict(mrope_interleaved=True)),
        vision_config=QWEN_VISION | dict(patch_size=16, num_position_embeddings=64, deepstack_visual_indexes=[0, 1]),
        **QWEN_TOKENS,
    ),
    "qwen2_5_vl": dict(
        text_config=TEXT | dict(rope_parameters=MROPE),
        vision_config=QWEN_VISION | dict(patch_size=14, fullatt_block_indexes=[1], window_size=56),
        **QWEN_TOKENS,
    ),
    "llava": dict(
        text_config=TEXT | dict(model_type="llama"),
        vision_config=VISION | dict(model_type="clip_vision_model", projection_dim=32),
        image_token_index=IMAGE,
    ),
    "gemma3": dict(
        text_config=TEXT
        | dict(
            query_pre_attn_scalar=16,
            sliding_window=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
        vision_config=VISION | dict(model_type="siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
    ),
    "internvl": dict(
        text_config=TEXT | dict(model_type="qwen2"),
        vision_config=VISION | dict(image_size=[56, 56], patch_size=[14, 14]),
        image_token_id=IMAGE,
        image_seq_length=4,
    ),
}
"""The families that are checked against eager attention."""

VISUAL_TOKENS = {"qwen3_vl": 6, "qwen2_5_vl": 6, "llava": 16, "gemma3": 4, "internvl": 4}


def build(family: str, seed: int = 0, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model with weights large enough that its attention is far from even."""
    torch.manual_seed(seed)
    kind = "qwen2_5_vl" if family == "qwen2_5_vl" else family
    config = AutoConfig.for_model(kind, **CONFIGS[family])
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return model.eval()


def batch(family: str, padded: bool = True, seed: int = 3) -> dict[str, Tensor]:
    """Two samples with a picture each; with `padded`, the second starts with three padding tokens."""
    generator = torch.Generator().manual_seed(seed)
    n = VISUAL_TOKENS[family]
    rows, masks = [], []
    for sample in range(2):
        pad = 3 * (padded and sample == 1)
        text = torch.randint(3, 400, (14 - pad,), generator=generator).tolist()
        rows.append([PAD] * pad + [1, *text[:3], VISION_START, *[IMAGE] * n, VISION_END, *text[3:]])
        masks.append([0] * pad + [1] * (len(rows[-1]) - pad))
    ids = torch.tensor(rows)
    inputs = {"input_ids": ids, "attention_mask": torch.tensor(masks)}
    if family.startswith("qwen"):
        patch = 16 if family == "qwen3_vl" else 14
        inputs["pixel_values"] = torch.randn(2 * 24, 3 * 2 * patch * patch, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 6]] * 2)
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    else:
        inputs["pixel_values"] = torch.randn(2, 3, 56, 56, generator=generator)
    if family == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    return inputs
