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
MLA = dict(
    num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16
)
INDEXER = dict(index_topk=8, index_head_dim=16, index_n_heads=2)
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
SAM = VISION | dict(
    image_size=128, patch_size=16, output_channels=16, mlp_dim=48, window_size=2, global_attn_indexes=[1]
)
GEMMA4_TEXT = TEXT | dict(
    num_hidden_layers=4,
    sliding_window=8,
    layer_types=["sliding_attention", "full_attention"] * 2,
    num_kv_shared_layers=2,
    global_head_dim=32,
)
GEMMA4_VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    head_dim=16, patch_size=8, pooling_kernel_size=2, position_embedding_size=16,
)  # fmt: skip
TIMM = dict(model_type="timm_wrapper", hidden_size=32)
INKLING_TEXT = TEXT | EXPERTS | dict(
    num_hidden_layers=4, layer_types=["hybrid_sliding", "hybrid"] * 2, sliding_window_size=8, swa_num_attention_heads=4,
    swa_num_key_value_heads=2, swa_head_dim=16, d_rel=8, rel_extent=16, n_routed_experts=4,
    unpadded_vocab_size=VOCABULARY,
)  # fmt: skip
KOSMOS_TEXT = dict(
    vocab_size=VOCABULARY, embed_dim=64, layers=3, ffn_dim=96, attention_heads=4, max_position_embeddings=128, **TOKENS
)
BART = dict(
    model_type="bart", vocab_size=VOCABULARY, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=128,
    decoder_start_token_id=2, forced_eos_token_id=None, **TOKENS,
)  # fmt: skip
DECODER = dict(decoder_input_ids=[[2, 5, 6, 7, 8], [2, 9, 10, 11, 12]])
AUDIO_TOWER = dict(
    num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=48, d_model=32, output_dim=64,
    max_source_positions=16, n_window=4, downsample_hidden_size=8,
)  # fmt: skip
OMNI_TOKENS = dict(audio_start_token_id=505, user_token_id=506)
GRID = dict(image_grid_thw=[[1, 4, 6]] * 2)


@dataclass(frozen=True)
class Architecture:
    """One model and one batch: two samples with a picture each."""

    config: dict[str, Any]
    visual: int | Sequence[int] = 16
    """Number of image tokens of a picture, or the tokens themselves."""
    pixels: Sequence[int] = (2, 3, 56, 56)
    """Shape of the picture's tensor."""
    constants: dict[str, Any] = field(default_factory=dict)
    """Further inputs."""
    types: str = ""
    """The input that tells visual tokens from text."""
    model_type: str = ""
    """The configuration's, where it is not the architecture's name."""
    pixels_name: str = "pixel_values"
    finish: Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]] | None = None
    """Rewrites the inputs where they have another form."""

    @property
    def tokens(self) -> list[int]:
        return [IMAGE] * self.visual if isinstance(self.visual, int) else list(self.visual)


def flat(
    text: dict[str, Any],
    vision: dict[str, Any],
    patch: int = 14,
    frames: int = 1,
    tower: dict[str, Any] = VISION,
    **config: Any,
) -> Architecture:
    """Pictures as flat patches with a grid; four patches make one token."""
    config = dict(text_config=TEXT | text, vision_config=tower | dict(patch_size=patch) | vision) | config
    return Architecture(config, 6, (2 * 24, 3 * frames * patch**2), GRID, "mm_token_type_ids")


def square(*args: Any, **config: Any) -> Architecture:
    """The same, the patches as small pictures."""
    return replace(flat(*args, **config), pixels=(2 * 24, 3, 14, 14))


def qwen(text: dict[str, Any], vision: dict[str, Any], patch: int = 14, **config: Any) -> Architecture:
    return flat(text, vision, patch, 2, QWEN_VISION, **config)


def qwen2_vl(text: dict[str, Any], vision: dict[str, Any] | None = None, **config: Any) -> Architecture:
    return qwen(text, vision or dict(fullatt_block_indexes=[1], window_size=56), **config)


def qwen3_vl(**text: Any) -> Architecture:
    vision = dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    return qwen(dict(rope_parameters=MROPE | dict(mrope_interleaved=True)) | text, vision, 16, **QWEN_TOKENS)


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


def by_experts(architecture: Architecture) -> Architecture:
    """With the input that tells which tokens get experts of pictures: the ends of pictures among them."""

    def finish(inputs: dict[str, Tensor], _: torch.Generator) -> dict[str, Tensor]:
        visual = torch.isin(inputs["input_ids"], torch.tensor([IMAGE, VISION_START, VISION_END]))
        return inputs | dict(moe_mm_token_type_ids=visual.int())

    return replace(architecture, finish=finish)


def omni(architecture: Architecture, **tokens: int) -> Architecture:
    """With an audio tower, which the batch does not use."""
    config = {key: value for key, value in architecture.config.items() if key.endswith("config")}
    return replace(architecture, config=config | dict(audio_config=AUDIO_TOWER) | OMNI_TOKENS | tokens)


def minicpm(side: int, **config: Any) -> Architecture:
    """All patches next to each other in one long picture."""
    vision = VISION | dict(image_size=14 * side, num_hidden_layers=3)
    config = dict(
        text_config=QWEN3_5_TEXT | dict(model_type="qwen3_5_text"), vision_config=vision, insert_layer_id=0,
        image_token_id=IMAGE, video_token_id=VIDEO,
    ) | config  # fmt: skip
    return Architecture(config, 4, (1, 3, 14, 2 * 14 * side**2), dict(target_sizes=[[side, side]] * 2))


def muse(text: dict[str, Any], **config: Any) -> Architecture:
    vision = dict(pos_emb_height=8, pos_emb_width=8)
    config = dict(out_hidden_size=128, projector_hidden_size=48, image_token_id=IMAGE, video_token_id=VIDEO) | config
    return flat(SLIDING | text, vision, 14, 2, **config)


def numbered(inputs: dict[str, Tensor], _: torch.Generator) -> dict[str, Tensor]:
    """Patches that start with their row and column."""
    inputs["flattened_patches"][..., :2] = torch.tensor([[y + 1, x + 1] for y in range(4) for x in range(4)])
    return inputs


def picture_only(inputs: dict[str, Tensor], _: torch.Generator) -> dict[str, Tensor]:
    return {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}


def pix2struct_inputs(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The padding hides patches."""
    mask = inputs["attention_mask"][:, :16]
    return picture_only(numbered(inputs, generator), generator) | dict(attention_mask=mask)


def udop_inputs(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    corner = torch.rand(*inputs["input_ids"].shape, 2, generator=generator) / 2
    return inputs | dict(bbox=torch.cat([corner, corner + 0.4], -1))


def got_ocr2() -> Architecture:
    config = dict(text_config=TEXT | dict(model_type="qwen2"), vision_config=SAM, image_token_index=IMAGE)
    return Architecture(config | dict(image_seq_length=4), 4, (2, 3, 128, 128))


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
        text_config=TEXT | dict(model_type="granite4_vision_text", attention_multiplier=0.25),
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
    "hy_v4_vl": replace(
        flat(
            MLA
            | INDEXER
            | EXPERTS
            | dict(
                q_lora_rank=16,
                n_routed_experts=4,
                mlp_layer_types=["dense", "sparse", "dense"],
                layer_types=["indexed_attention"] * 3,
                indexer_types=["full", "shared", "full"],
                hc_mult=2,
                rope_parameters=ROPE | dict(mrope_section=[2, 1, 1]),
            ),
            dict(out_hidden_size=64, max_image_size=64),
            16,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        visual=8,  # every row of three ends with a newline
    ),
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
    "aria": Architecture(
        dict(
            text_config=TEXT | dict(moe_num_experts=4, moe_topk=2),
            vision_config=VISION | dict(model_type="idefics3_vision"),
            projector_patch_to_query_dict={16: 4},
            image_token_index=IMAGE,
        ),
        4,
    ),
    "blip": Architecture(
        dict(text_config=TEXT | dict(encoder_hidden_size=32, sep_token_id=2), vision_config=VISION), ()
    ),
    "apertus1p5": Architecture(
        dict(
            text_config=TEXT | dict(vocab_size=520),
            vision_config=dict(
                codebook_size=10,
                embed_dim=8,
                latent_channels=32,
                base_channels=32,
                channel_multiplier=[1, 1, 2],
                num_res_blocks=1,
                attn_resolutions=[2],
                resolution=16,
            ),
            audio_config=dict(
                model_type="wavtokenizer_encoder",
                num_filters=4,
                hidden_size=16,
                codebook_dim=16,
                codebook_size=8,
            ),
            image_token_id=IMAGE,
            audio_token_id=AUDIO,
            image_token_offset=410,
            audio_token_offset=420,
        ),
        8,
        (2, 3, 16, 8),
        dict(image_sizes=[[16, 8]] * 2),
    ),
    "chameleon": Architecture(
        TEXT
        | dict(
            vocabulary_map={"<image>": IMAGE} | {f"IMGIMG{chr(65 + code)}Z": 410 + code for code in range(10)},
            vq_config=dict(
                embed_dim=8,
                num_embeddings=10,
                latent_channels=8,
                resolution=16,
                base_channels=32,
                channel_multiplier=[1, 1, 2],
                num_res_blocks=1,
            ),
        ),
        pixels=(2, 3, 16, 16),
    ),
    "emu3": Architecture(
        dict(
            text_config=TEXT,
            vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 499}
            | {f"<|visual token {code:06}|>": 410 + code for code in range(10)},
            vq_config=dict(
                codebook_size=10,
                embed_dim=4,
                latent_channels=32,
                base_channels=32,
                channel_multiplier=[1, 1, 2],
                num_res_blocks=1,
                hidden_size=64,
                attn_resolutions=[2],
            ),
        ),
        12,  # every row of four by two ends with a newline
        (2, 3, 16, 8),
        dict(image_sizes=[[16, 8]] * 2),
    ),
    "janus": Architecture(
        dict(
            text_config=TEXT | dict(model_type="llama"),
            vision_config=VISION | dict(projection_dim=64, num_image_tokens=16),
            image_token_id=IMAGE,
            vq_config=dict(
                embed_dim=8,
                num_embeddings=16,
                latent_channels=32,
                base_channels=32,
                channel_multiplier=[1, 2],
                num_res_blocks=1,
                projection_dim=64,
                image_token_embed_dim=64,
            ),
        )
    ),
    "fuyu": Architecture(
        dict(text_config=TEXT | dict(model_type="persimmon"), patch_size=14, image_token_id=IMAGE), 4, (2, 4, 3 * 14**2)
    ),
    "git": Architecture(TEXT | dict(vision_config=VISION), ()),
    "cosmos3_edge": flat(
        dict(rope_parameters=MROPE), dict(num_patches=16), 16, projector_hidden_size=64, **QWEN_TOKENS
    ),
    "deepseek_vl": Architecture(
        dict(text_config=TEXT | dict(model_type="llama"), vision_config=SIGLIP, image_token_id=IMAGE)
    ),
    "deepseek_vl_hybrid": Architecture(
        dict(
            text_config=TEXT | dict(model_type="llama"),
            vision_config=SIGLIP,
            high_res_vision_config=SAM | dict(model_type="sam_vision_model"),
            image_token_id=IMAGE,
        ),
        constants=dict(high_res_pixel_values=torch.linspace(-1, 1, 2 * 3 * 128**2).sin().view(2, 3, 128, 128)),
    ),
    "deepseek_ocr2": Architecture(
        dict(
            text_config=TEXT | EXPERTS | dict(n_routed_experts=4, mlp_layer_types=["dense", "sparse", "sparse"]),
            vision_config=dict(
                sam_config=SAM | dict(downsample_channels=[24, 32]),
                encoder_config=TEXT
                | dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2),
            ),
            image_token_id=IMAGE,
        ),
        145,  # the number of queries is fixed
        (2, 3, 128, 128),
    ),
    "unlimited_ocr": Architecture(
        dict(
            text_config=TEXT | EXPERTS | dict(num_key_value_heads=4, n_routed_experts=4, sliding_window=8),
            vision_config=dict(
                sam_config=SAM | dict(downsample_channels=[24, 32]), encoder_config=VISION | dict(image_size=28)
            ),
            image_token_id=IMAGE,
        ),
        7,
        (2, 3, 128, 128),
    ),
    "got_ocr2": got_ocr2(),
    "pp_chart2table": got_ocr2(),
    "gemma4": Architecture(
        dict(
            text_config=GEMMA4_TEXT | dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY),
            vision_config=GEMMA4_VISION,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
        ),
        4,
        (2, 16, 3 * 8**2),
        dict(image_position_ids=[[[x, y] for y in range(4) for x in range(4)]] * 2),
        "mm_token_type_ids",
    ),
    "gemma4_unified": Architecture(
        dict(
            text_config=GEMMA4_TEXT,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            vision_config=dict(
                patch_size=8, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=16, output_proj_dims=32
            ),
        ),
        4,
        (2, 4, 3 * 16**2),
        dict(image_position_ids=[[[x, y] for y in range(2) for x in range(2)]] * 2),
        "mm_token_type_ids",
    ),
    "diffusion_gemma": Architecture(
        dict(
            text_config=TEXT
            | SLIDING
            | dict(global_head_dim=32, num_experts=4, top_k_experts=2, moe_intermediate_size=32),
            vision_config=GEMMA4_VISION | dict(model_type="gemma4_vision"),
            image_token_id=IMAGE,
            boi_token_id=VISION_START,
            eoi_token_id=VISION_END,
            canvas_length=8,
        ),
        4,
        (2, 16, 3 * 8**2),
        dict(
            image_position_ids=[[[x, y] for y in range(4) for x in range(4)]] * 2,
            decoder_input_ids=[list(range(10, 18)), list(range(20, 28))],
        ),
        "mm_token_type_ids",
    ),
    "florence2": Architecture(
        dict(
            text_config=BART,
            image_token_id=IMAGE,
            vision_config=dict(
                depths=[1] * 4,
                embed_dim=[8, 16, 24, 32],
                num_heads=[2] * 4,
                num_groups=[2] * 4,
                window_size=3,
                drop_path_rate=0.0,
                projection_dim=64,
                max_position_embeddings=8,
                max_temporal_embeddings=4,
            ),
        ),
        5,
        (2, 3, 64, 64),
        DECODER,
    ),
    "evolla": Architecture(
        TEXT
        | dict(
            protein_encoder_config=dict(
                vocab_size=40,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
            ),
            aligner_ffn_mult=1,
            aligner_num_add_layers=2,
            resampler_depth=1,
            resampler_dim_head=16,
            resampler_heads=2,
            resampler_num_latents=4,
            resampler_ff_mult=1,
        ),
        (),
        (),
        dict(
            protein_input_ids=[[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15, 16, 17, 18, 19, 20]],
            protein_attention_mask=[[1] * 8] * 2,
        ),
    ),
    "hunyuan_vl": replace(
        flat(
            dict(rope_parameters=ROPE | dict(mrope_section=[2, 2, 2, 2])),
            dict(out_hidden_size=64),
            16,
            image_token_id=IMAGE,
        ),
        visual=10,
    ),
    "idefics": Architecture(
        TEXT | dict(num_hidden_layers=4, cross_layer_interval=2, vision_config=VISION | dict(embed_dim=32)),
        (),
        (2, 1, 3, 56, 56),
        finish=lambda inputs, _: inputs | dict(image_attention_mask=torch.ones(*inputs["input_ids"].shape, 1)),
    ),
    "idefics2": Architecture(
        dict(
            text_config=TEXT | dict(model_type="mistral"),
            vision_config=VISION,
            image_token_id=IMAGE,
            perceiver_config=dict(
                hidden_size=64,
                resampler_n_latents=4,
                resampler_depth=1,
                resampler_n_heads=2,
                resampler_head_dim=16,
                num_key_value_heads=1,
            ),
        ),
        4,
        (2, 1, 3, 56, 56),
    ),
    "mistral4": Architecture(TEXT | MLA | EXPERTS | dict(n_routed_experts=4, first_k_dense_replace=1), (), ()),
    "kimi_k25": square(
        MLA
        | EXPERTS
        | dict(
            model_type="deepseek_v3", head_dim=8, n_routed_experts=8, n_group=2, topk_group=1, first_k_dense_replace=1
        ),
        dict(pos_emb_height=8, pos_emb_width=8),
        projection_hidden_size=32,
        **QWEN_TOKENS,
    ),
    "ernie4_5_vl_moe": by_experts(
        flat(
            dict(
                rope_parameters=ROPE | dict(mrope_section=[3, 3, 2]),
                moe_intermediate_size=[32, 32],
                moe_k=2,
                moe_num_experts=4,
            ),
            dict(depth=2, num_heads=2),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=VISION_START,
            image_end_token_id=VISION_END,
        )
    ),
    "paddleocr_vl": square(dict(rope_parameters=MROPE), {}, **QWEN_TOKENS),
    "video_llama_3": replace(
        flat(dict(model_type="qwen2"), {}, image_token_id=IMAGE, video_token_id=VIDEO),
        constants=GRID | dict(image_merge_sizes=[2, 2]),
    ),
    "video_llava": replace(llava(video_token_index=VIDEO), pixels_name="pixel_values_images"),
    "molmo2": Architecture(
        dict(
            text_config=TEXT,
            vision_config=VISION | dict(image_size=[56, 56], num_key_value_heads=2, head_dim=16),
            image_patch_id=IMAGE,
            adapter_config=dict(
                hidden_size=32,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=16,
                text_hidden_size=64,
                intermediate_size=48,
                vision_feature_layer=[-1, -2],
            ),
        ),
        4,
        (2, 16, 3 * 14**2),
        dict(
            image_grids=[[2, 2, 0, 0]] * 2,
            image_token_pooling=[[first + step for step in (0, 1, 4, 5)] for first in (0, 2, 8, 10, 16, 18, 24, 26)],
        ),
        "mm_token_type_ids",
    ),
    "lfm3_vl": flat(
        dict(
            model_type="lfm3",
            num_hidden_layers=4,
            sliding_window=8,
            layer_types=["conv", "sliding_attention", "conv", "full_attention"],
        ),
        dict(num_key_value_heads=1, layer_types=["conv", "full_attention"]),
        16,
        2,
        projector_hidden_size=48,
        **QWEN_TOKENS,
    ),
    "lfm2_vl": Architecture(
        dict(
            text_config=TEXT | dict(model_type="lfm2", num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2),
            vision_config=VISION | dict(model_type="siglip2_vision_model", num_patches=16),
            image_token_id=IMAGE,
            projector_hidden_size=48,
        ),
        4,
        (2, 16, 3 * 14**2),
        dict(spatial_shapes=[[4, 4]] * 2, pixel_attention_mask=[[1] * 16] * 2),
    ),
    "dots3_note": flat(
        MLA
        | INDEXER
        | EXPERTS
        | dict(
            n_routed_experts=4,
            shared_experts_intermediate_size=32,
            head_dim=16,
            sliding_window=8,
            layer_types=["indexed_attention", "sliding_attention", "indexed_attention"],
            swa_num_attention_heads=4,
            swa_num_key_value_heads=4,
            swa_q_lora_rank=16,
            swa_kv_lora_rank=16,
            swa_head_dim=16,
            swa_qk_nope_head_dim=8,
            swa_v_head_dim=16,
        ),
        dict(mlp_layer_types=["dense", "dense"], adapter_in_dim=32, adapter_out_dim=64),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        audio_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            feature_size=8,
            downsample_hidden_size=4,
            adapter_input_size=32,
            adapter_out_dim=64,
        ),
    ),
    "fast_vlm": llava(TIMM, text_config=TEXT | dict(model_type="qwen2")),
    "perception_lm": replace(
        llava(TIMM | dict(model_args=dict(embed_dim=32)), image_token_id=IMAGE, video_token_id=VIDEO),
        pixels=(2, 1, 3, 56, 56),
    ),
    "gemma3n": Architecture(
        dict(
            text_config=TEXT
            | dict(
                num_hidden_layers=4,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention"] * 2,
                num_kv_shared_layers=2,
                hidden_size_per_layer_input=8,
                vocab_size_per_layer_input=VOCABULARY,
                laurel_rank=8,
                altup_num_inputs=2,
                activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
            ),
            vision_config=dict(hidden_size=32, vocab_offset=600),
            vision_soft_tokens_per_image=16,
            image_token_id=IMAGE,
            audio_token_id=AUDIO,
            audio_config=dict(
                hidden_size=32,
                vocab_offset=800,
                input_feat_size=16,
                conf_num_attention_heads=2,
                conf_num_hidden_layers=1,
                sscp_conv_channel_size=[4, 4],
            ),
        )
    ),
    "inkling2": Architecture(
        dict(
            text_config=INKLING_TEXT,
            vision_config=VISION | dict(posemb_grid_size=8, projection_hidden_dim=48, text_hidden_size=64),
            image_token_id=IMAGE,
        ),
        6,
        (2 * 6, 28, 28, 3),
        dict(image_grid_thw=[[1, 2, 3]] * 2),
    ),
    "inkling2_loop": Architecture(
        dict(
            text_config=INKLING_TEXT
            | dict(
                n_layers_per_attn_res_block=1,
                loop_layer_index_start=1,
                loop_layer_index_end=3,
                loop_num_passes=2,
                loop_gate_rank=8,
            ),
            vision_config=VISION
            | dict(model_type="inkling2_vision", posemb_grid_size=8, projection_hidden_dim=48, text_hidden_size=64),
            image_token_id=IMAGE,
        ),
        6,
        (2 * 6, 28, 28, 3),
        dict(image_grid_thw=[[1, 2, 3]] * 2),
    ),
    "inkling_mm_model": Architecture(
        dict(
            text_config=INKLING_TEXT | dict(mlp_layer_types=["dense", "sparse"] * 2, logits_mup_width_multiplier=1.0),
            vision_config=dict(patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
            image_token_id=IMAGE,
            audio_config=dict(n_mel_bins=4, mel_vocab_size=8),
            audio_token_id=AUDIO,
        ),
        4,
        (2 * 4, 2, 8, 8, 3),
    ),
    "kosmos-2": Architecture(
        dict(text_config=KOSMOS_TEXT, vision_config=VISION, latent_query_num=4), 4, types="image_embeds_position_mask"
    ),
    "kosmos-2.5": Architecture(
        dict(
            text_config=KOSMOS_TEXT,
            vision_config=VISION | dict(patch_embed_hidden_size=48, head_dim=16, max_num_patches=16),
            latent_query_num=4,
        ),
        4,
        (2, 16, 2 + 48),
        types="image_embeds_position_mask",
        pixels_name="flattened_patches",
        finish=numbered,
    ),
    "minicpmv4_6": minicpm(8),
    "minicpmv4_7": replace(minicpm(8), types="mm_token_type_ids"),
    "minicpm_ocr": minicpm(4),
    "minimax_m3_vl": flat(
        dict(
            layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
            mlp_layer_types=["dense", "sparse", "sparse"],
            num_local_experts=4,
            num_experts_per_tok=2,
            intermediate_size=32,
            dense_intermediate_size=96,
            shared_intermediate_size=32,
            rotary_dim=8,
            index_n_heads=2,
            index_head_dim=16,
            index_block_size=4,
            index_topk_blocks=2,
        ),
        {},
        14,
        2,
        projector_hidden_size=64,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    ),
    "muse_glimmer": muse({}),
    "muse_spark": muse(
        EXPERTS | dict(num_local_experts=4, moe_hidden_size=64, qk_scale_factor=2.0),
        audio_config=dict(
            patch_sizes=[4, 2], hidden_sizes=[8, 16], depths=[1, 1], num_hidden_layers=2, out_hidden_size=64
        ),
        audio_token_id=AUDIO,
    ),
    "nemotron_h_omni": Architecture(
        dict(
            text_config=TEXT
            | EXPERTS
            | dict(
                model_type="nemotron_h",
                layers_block_type=["linear_attention", "mlp", "full_attention", "moe", "full_attention"],
                num_hidden_layers=5,
                ssm_state_size=16,
                mamba_num_heads=8,
                mamba_head_dim=16,
                n_groups=2,
                chunk_size=8,
                n_routed_experts=4,
                moe_shared_expert_intermediate_size=32,
            ),
            vision_config=VISION
            | dict(
                model_type="radio",
                max_img_size=112,
                num_cls_tokens=1,
                num_registers=1,
                video_temporal_patch_size=2,
                summary_idxs=[0],
            ),
            vision_hidden_size=32,
            projector_hidden_size=48,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        4,
        (2 * 16, 3 * 14**2),
        dict(image_grid_hw=[[4, 4]] * 2),
    ),
    "ovis2": Architecture(
        dict(
            text_config=TEXT | dict(model_type="qwen2"),
            vision_config=VISION | dict(vocab_size=32, hidden_stride=2),
            hidden_size=64,
            vocab_size=VOCABULARY,
            image_token_id=IMAGE,
            visual_indicator_token_ids=[405, 406, 407, 408, 409],
        ),
        [405, *[IMAGE] * 4, 406],
    ),
    "phi4_multimodal": Architecture(
        TEXT
        | dict(
            vision_config=VISION | dict(num_hidden_layers=3, crop_size=56, image_token_id=IMAGE),
            audio_config=dict(
                hidden_size=32,
                intermediate_size=48,
                num_blocks=1,
                num_attention_heads=2,
                ext_pw_out_channel=32,
                depthwise_separable_out_channel=32,
                nemo_conv_channels=8,
                input_size=16,
                audio_token_id=AUDIO,
                feature_layer=-1,
            ),
        ),
        13,  # one crop, a separator and the whole picture, rows of two and a newline
        (2, 2, 3, 56, 56),
        dict(image_sizes=[[56, 56]] * 2, image_attention_mask=torch.ones(2, 2, 4, 4)),
        pixels_name="image_pixel_values",
    ),
    "qwen2_5_omni_thinker": omni(
        qwen2_vl(dict(rope_parameters=MROPE)),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=AUDIO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    ),
    "qwen3_omni_moe_thinker": omni(qwen3_vl(num_experts=4, **EXPERTS), audio_token_id=AUDIO, **QWEN_TOKENS),
    "step3p7": Architecture(
        dict(
            text_config=TEXT
            | EXPERTS
            | dict(
                layer_types=["full_attention", "sliding_attention", "sliding_attention"],
                sliding_window=8,
                num_sliding_attention_heads=6,
                mlp_layer_types=["dense", "sparse", "sparse"],
                n_routed_experts=4,
                share_expert_dim=32,
            ),
            vision_config=VISION | dict(image_size=112, mlp_ratio=2.0, text_hidden_size=64, max_position_embeddings=64),
            image_token_id=IMAGE,
        ),
        4,
        (2, 3, 112, 112),
    ),
    "pi0": Architecture(
        dict(
            vlm_config=paligemma(dict(model_type="gemma")).config | dict(model_type="paligemma"),
            dit_config=TEXT | dict(model_type="gemma"),
            chunk_size=4,
            max_state_dim=6,
            max_action_dim=6,
        ),
        16,
        (2, 1, 3, 56, 56),
        dict(
            state=[[0.1 * i for i in range(6)]] * 2,
            noise=torch.linspace(-9, 9, 48).sin().view(2, 4, 6),
            timestep=[0.3, 0.7],
            pixel_attention_mask=[[True]] * 2,
        ),
    ),
    "pix2struct": Architecture(
        dict(
            text_config=dict(
                vocab_size=VOCABULARY,
                hidden_size=64,
                d_kv=16,
                d_ff=96,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=PAD,
                **TOKENS,
            ),
            vision_config=dict(
                hidden_size=64,
                patch_embed_hidden_size=48,
                d_kv=16,
                d_ff=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                seq_len=16,
            ),
        ),
        (),
        (2, 16, 2 + 48),
        DECODER,
        pixels_name="flattened_patches",
        finish=pix2struct_inputs,
    ),
    "pp_formulanet": Architecture(
        dict(
            text_config={key: value for key, value in BART.items() if key != "model_type"}
            | dict(encoder_attention_heads=4),
            vision_config=SAM
            | dict(
                post_conv_in_channels=16, post_conv_mid_channels=24, post_conv_out_channels=32, decoder_hidden_size=64
            ),
        ),
        (),
        (2, 3, 128, 128),
        DECODER,
        finish=picture_only,
    ),
    "t5gemma2": Architecture(
        dict(
            encoder=dict(
                text_config=TEXT | SLIDING | dict(query_pre_attn_scalar=16),
                vision_config=SIGLIP,
                mm_tokens_per_image=4,
                boi_token_index=VISION_START,
                eoi_token_index=VISION_END,
                image_token_index=IMAGE,
            ),
            decoder=TEXT | SLIDING | dict(query_pre_attn_scalar=16),
            image_token_index=IMAGE,
        ),
        4,
        constants=DECODER,
    ),
    "udop": Architecture(
        dict(
            vocab_size=VOCABULARY,
            d_model=64,
            d_kv=16,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            image_size=56,
            patch_size=14,
            max_2d_position_embeddings=64,
            decoder_start_token_id=PAD,
            **TOKENS,
        ),
        (),
        constants=DECODER,
        finish=udop_inputs,
    ),
    "vision-encoder-decoder": Architecture(
        dict(
            encoder=VISION | dict(model_type="vit"),
            decoder=TEXT | dict(model_type="bert", is_decoder=True, add_cross_attention=True, type_vocab_size=1),
            decoder_start_token_id=2,
            pad_token_id=PAD,
        ),
        (),
        constants=DECODER,
        finish=picture_only,
    ),
}
