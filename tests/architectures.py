"""Tiny configurations of every image-text-to-text architecture of transformers, and what their forward pass takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

VOCABULARY, PAD, IMAGE, VIDEO, VISION_START, VISION_END, AUDIO = 512, 0, 500, 501, 502, 503, 504
TOKENS = dict(pad_token_id=PAD, bos_token_id=1, eos_token_id=2)
ROPE = dict(rope_type="default", rope_theta=1e4)
MROPE = ROPE | dict(mrope_section=[4, 2, 2])
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
SLIDING = dict(sliding_window=8, layer_types=["sliding_attention", "sliding_attention", "full_attention"])
EXPERTS = dict(moe_intermediate_size=32, num_experts_per_tok=2)
VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
)
CLIP = VISION | dict(model_type="clip_vision_model", projection_dim=32)
SIGLIP = VISION | dict(model_type="siglip_vision_model", vision_use_head=False)
QWEN_VISION = dict(
    depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64, spatial_merge_size=2,
    temporal_patch_size=2,
)  # fmt: skip
QWEN_TOKENS = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END
)
GRID = dict(image_grid_thw=[[1, 4, 6]] * 2)


@dataclass(frozen=True)
class Architecture:
    """One model and one batch: two samples with a picture each."""

    config: dict[str, Any]
    visual: int | Sequence[int] = 16
    """How many image tokens a picture takes, or the tokens themselves."""
    pixels: Sequence[int] = (2, 3, 56, 56)
    """Shape of `pixel_values`."""
    constants: dict[str, Any] = field(default_factory=dict)
    """Further inputs."""
    types: str = ""
    """The input that tells visual tokens from text."""
    model_type: str = ""
    """The configuration's, where it is not the architecture's name."""
    finish: Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]] | None = None
    """Rewrites the inputs where they have another form."""

    @property
    def tokens(self) -> list[int]:
        return [IMAGE] * self.visual if isinstance(self.visual, int) else list(self.visual)


def qwen(text: dict[str, Any], vision: dict[str, Any], patch: int = 14, frames: int = 2, **config: Any) -> Architecture:
    """Pictures as flat patches with a grid; four patches make one token."""
    config = dict(text_config=TEXT | text, vision_config=QWEN_VISION | dict(patch_size=patch) | vision) | config
    return Architecture(config, 6, (2 * 24, 3 * frames * patch**2), GRID, "mm_token_type_ids")


def qwen2_vl(text: dict[str, Any], vision: dict[str, Any] | None = None, **config: Any) -> Architecture:
    return qwen(text, vision or dict(fullatt_block_indexes=[1], window_size=56), **config)


def qwen3_vl(**text: Any) -> Architecture:
    vision = dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    return qwen(dict(rope_parameters=MROPE | dict(mrope_interleaved=True)) | text, vision, 16, **QWEN_TOKENS)


QWEN3_5_TEXT = TEXT | dict(
    num_hidden_layers=4,
    head_dim=32,
    rope_parameters=ROPE | dict(mrope_section=[2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.25),
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention"],
)


def qwen3_5(**text: Any) -> Architecture:
    return qwen(QWEN3_5_TEXT | text, dict(num_position_embeddings=64), 16, **QWEN_TOKENS)


def glm(text: dict[str, Any] | None = None, **vision: Any) -> Architecture:
    tokens = dict(
        image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=VISION_START, image_end_token_id=VISION_END,
        video_start_token_id=496, video_end_token_id=497,
    )  # fmt: skip
    return qwen(dict(rope_parameters=MROPE) | (text or {}), dict(image_size=56) | vision, **tokens)


def gemma3() -> Architecture:
    return Architecture(
        dict(
            text_config=TEXT | SLIDING | dict(query_pre_attn_scalar=16),
            vision_config=SIGLIP,
            mm_tokens_per_image=4,
            image_token_index=IMAGE,
            boi_token_index=VISION_START,
            eoi_token_index=VISION_END,
        ),
        4,
        types="token_type_ids",
    )


def internvl(text: dict[str, Any], model_type: str = "") -> Architecture:
    vision = VISION | dict(image_size=[56, 56], patch_size=[14, 14])
    config = dict(text_config=TEXT | text, vision_config=vision, image_token_id=IMAGE, image_seq_length=4)
    return Architecture(config, 4, model_type=model_type)


def llava(vision: dict[str, Any] = CLIP, **config: Any) -> Architecture:
    return Architecture(
        dict(text_config=TEXT | dict(model_type="llama"), vision_config=vision, image_token_index=IMAGE) | config
    )


def tiles(vision: dict[str, Any] = CLIP, size: int = 28, **config: Any) -> Architecture:
    """LLaVA-NeXT: the picture as 2 by 2 tokens, and two tiles above each other, whose rows end with a newline token."""
    vision = vision | dict(image_size=size)
    config = dict(
        text_config=TEXT | dict(model_type="llama"), vision_config=vision, image_token_index=IMAGE,
        image_grid_pinpoints=[[2 * size, size], [size, 2 * size], [2 * size, 2 * size]],
    ) | config  # fmt: skip
    constants = dict(image_sizes=[[2 * size, size]] * 2)
    return Architecture(config, 16, (2, 3, 3, size, size), constants)


def pixtral(text: dict[str, Any], **config: Any) -> Architecture:
    config = dict(
        text_config=TEXT | text, vision_config=VISION | dict(model_type="pixtral", head_dim=16), spatial_merge_size=2
    ) | (config or dict(image_token_index=IMAGE))
    return Architecture(config, 4, constants=dict(image_sizes=[[56, 56]] * 2))


def idefics3(text: dict[str, Any], vision: dict[str, Any] | None = None, **config: Any) -> Architecture:
    """Two tiles per picture."""
    config = dict(text_config=TEXT | text, vision_config=VISION | (vision or {}), image_token_id=IMAGE) | config
    return Architecture(config, 8, (2, 2, 3, 56, 56))


def cohere2(**config: Any) -> Architecture:
    return Architecture(
        dict(text_config=TEXT | SLIDING | dict(model_type="cohere2"), vision_config=SIGLIP, image_token_index=IMAGE)
        | config,
        4,
    )


def blip2(qformer: str, frames: int = 1, **config: Any) -> Architecture:
    text = dict(
        model_type="opt", vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=3, ffn_dim=96, num_attention_heads=4,
        word_embed_proj_dim=64, max_position_embeddings=128, dropout=0.0, **TOKENS,
    )  # fmt: skip
    queries = dict(
        model_type=qformer, vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, encoder_hidden_size=32, cross_attention_frequency=1, pad_token_id=PAD,
    )  # fmt: skip
    return Architecture(
        dict(text_config=text, vision_config=VISION, qformer_config=queries, num_query_tokens=4)
        | (config or dict(image_token_index=IMAGE)),
        4 * frames,
        (2, 3, 56, 56) if frames == 1 else (2, frames, 3, 56, 56),
        {} if qformer == "blip_2_qformer" else dict(qformer_input_ids=[[5, 6, 7], [8, 9, 10]]),
    )


def paligemma(text: dict[str, Any]) -> Architecture:
    vision = SIGLIP | dict(projection_dim=64)
    config = dict(text_config=TEXT | text, vision_config=vision, image_token_index=IMAGE, projection_dim=64)
    # token types: 0 for the prefix, whose attention is bidirectional
    return Architecture(config, constants=dict(token_type_ids=[[0] * 32] * 2), model_type="paligemma")


def mllama_inputs(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Every token sees all tiles of its picture."""
    rows, length = inputs["input_ids"].shape
    return inputs | {"cross_attention_mask": torch.ones(rows, length, 1, 2)}


MLA = dict(
    num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16
)
INDEXER = dict(index_topk=8, index_head_dim=16, index_n_heads=2)

ARCHITECTURES: dict[str, Architecture] = {
    "qwen3_vl": qwen3_vl(),
    "qwen2_5_vl": qwen2_vl(dict(rope_parameters=MROPE), **QWEN_TOKENS),
    "llava": llava(),
    "gemma3": gemma3(),
    "internvl": internvl(dict(model_type="qwen2")),
    "internvl_gpt_oss": internvl(  # attention sinks
        SLIDING | dict(model_type="gpt_oss", num_local_experts=4, num_experts_per_tok=2), "internvl"
    ),
    "qianfan_ocr": internvl(dict(model_type="qwen3")),
    "qwen2_vl": qwen2_vl(dict(rope_parameters=MROPE), dict(embed_dim=32, hidden_size=64, mlp_ratio=2), **QWEN_TOKENS),
    "qwen3_vl_moe": qwen3_vl(num_local_experts=4, **EXPERTS),
    "qwen3_5": qwen3_5(),
    "qwen3_5_moe": qwen3_5(num_experts=4, shared_expert_intermediate_size=32, **EXPERTS),
    "qwen4_exp": qwen3_5(
        num_experts=4,
        shared_expert_intermediate_size=32,
        **EXPERTS,
        layer_types=["linear_attention", "full_attention", "linear_attention", "indexed_attention"],
        hc_count=2,
        hc_lowrank=8,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=16,
        indexer_budget=8,
        indexer_compress_ratio=1,
    ),
    "cosmos3_omni": qwen3_vl(),
    "cohere_compass": qwen3_vl(
        **SLIDING, rope_parameters={"sliding_attention": dict(MROPE), "full_attention": dict(MROPE)}
    ),
    "glm4v": glm(),
    "glm46v": glm(),
    "glmga": glm(),
    "glm_ocr": glm(),
    "glm4v_moe": glm(
        dict(
            rope_parameters=ROPE | dict(mrope_section=[1, 1, 2], partial_rotary_factor=0.5),
            n_routed_experts=4,
            **EXPERTS,
        )
    ),
    "glm5_next": glm(
        MLA
        | INDEXER
        | EXPERTS
        | dict(
            num_hidden_layers=4,
            qk_rope_head_dim=0,
            qk_nope_head_dim=16,
            n_routed_experts=4,
            layer_types=["linear_attention", "indexed_attention"] * 2,
            indexer_types=["full"] * 4,
            mlp_layer_types=["dense"] * 4,
            linear_head_dim=16,
            linear_num_heads=4,
            hc_mult=2,
            hc_sinkhorn_iters=3,
            index_kpool=2,
        ),
        projection_intermediate_size=64,
    ),
    "hyperclovax_vision_v2": qwen2_vl(
        dict(model_type="hyperclovax"),
        dict(model_type="qwen2_5_vl_vision", fullatt_block_indexes=[1], window_size=56),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    ),
    "exaone4_5": qwen2_vl(
        SLIDING | dict(model_type="exaone4"),
        dict(fullatt_block_indexes=[1], window_size=56, num_key_value_heads=1),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    ),
    "shieldgemma2": gemma3(),
    "paligemma": paligemma(dict(model_type="gemma")),
    "paligemma2": paligemma(SLIDING | dict(model_type="gemma2", query_pre_attn_scalar=16, attn_logit_softcapping=5.0)),
    "vipllava": llava(vision_feature_layer=[-2, -1, 1]),
    "llava_next": tiles(),
    "llava_next_video": tiles(video_token_index=VIDEO),
    "llava_onevision": tiles(SIGLIP, text_config=TEXT | dict(model_type="qwen2"), video_token_index=VIDEO),
    "granite4_vision": tiles(
        CLIP | dict(hidden_size=64, num_hidden_layers=3),
        size=56,
        text_config=TEXT | dict(model_type="granite4_vision_text"),
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [-2, 1]],
        use_spatial_sampling=False,
        spatial_target_layers=[],
        qformer_config=dict(
            model_type="blip_2_qformer",
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=48,
            encoder_hidden_size=64,
            cross_attention_frequency=1,
        ),
    ),
    "idefics3": idefics3(dict(model_type="llama"), scale_factor=2),
    "smolvlm": idefics3(dict(model_type="llama"), scale_factor=2),
    "granite_docling": replace(
        idefics3(
            dict(attention_multiplier=0.25),
            dict(out_hidden_size=64, scale_factor=2, deepstack_visual_indexes=[0, 1], use_fine_route=False),
        ),
        constants=dict(pixel_attention_mask=torch.ones(2, 2, dtype=torch.bool)),
    ),
    "mistral3": pixtral(dict(model_type="mistral")),
    "lighton_ocr": pixtral(dict(model_type="qwen3"), image_token_id=IMAGE),
    "mistral_large4": pixtral(
        MLA
        | INDEXER
        | EXPERTS
        | dict(
            num_hidden_layers=4,
            head_dim=8,
            n_routed_experts=4,
            mlp_layer_types=["dense"] * 4,
            layer_types=["indexed_attention"] * 4,
            indexer_types=["full", "shared", "full", "shared"],
            no_rope_layers=[1, 1, 1, 0],
            kv_source_layers=[0, 1, 2, 3],
        )
    ),
    "aya_vision": cohere2(),
    "cohere2_vision": cohere2(image_token_id=IMAGE, alignment_intermediate_size=64),
    "llama4": Architecture(
        dict(
            text_config=TEXT
            | dict(
                num_hidden_layers=4,
                intermediate_size_mlp=96,
                num_local_experts=4,
                num_experts_per_tok=1,
                moe_layers=[1],
                attention_chunk_size=8,
                no_rope_layers=[1, 1, 1, 0],
            ),
            vision_config=VISION
            | dict(
                intermediate_size=128,
                vision_output_dim=64,
                projector_input_dim=64,
                projector_output_dim=64,
                pixel_shuffle_ratio=0.5,
                rope_parameters=ROPE,
            ),
            image_token_index=IMAGE,
            boi_token_index=VISION_START,
            eoi_token_index=VISION_END,
        ),
        4,
    ),
    "mllama": Architecture(
        dict(
            text_config=TEXT | dict(num_hidden_layers=4, cross_attention_layers=[1, 3], rope_parameters=ROPE),
            vision_config=dict(
                hidden_size=32,
                num_hidden_layers=2,
                num_global_layers=1,
                attention_heads=2,
                intermediate_size=48,
                vision_output_dim=64,
                image_size=28,
                patch_size=14,
                max_num_tiles=2,
                intermediate_layers_indices=[0],
                supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
            ),
            image_token_index=IMAGE,
        ),
        1,
        (2, 1, 2, 3, 28, 28),
        dict(aspect_ratio_ids=[[2], [1]], aspect_ratio_mask=[[[1, 1]], [[1, 0]]]),
        finish=mllama_inputs,
    ),
    "blip-2": blip2("blip_2_qformer"),
    "instructblip": blip2("instructblip_qformer"),
    "instructblipvideo": blip2("instructblipvideo_qformer", frames=2, video_token_index=IMAGE),
}
