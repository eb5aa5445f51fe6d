"""Every image-text-to-text architecture of transformers against its own eager attention and against weight surgery."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens import Head, HookedMLLM, ablate
from corelens.hf.architecture import KNOWN_BUGS
from tests.helpers import tiny

OWN_ATTENTION = "its text attention does not call transformers' attention functions"
LOOP = "its layers run in a loop, so that a head has several patterns in one pass"
REFUSED = {name: LOOP if "loop" in name else OWN_ATTENTION for name in tiny.NOT_HOOKED if name in tiny.ARCHITECTURES}
MESSAGES = {
    OWN_ATTENTION: r"is not supported: its text attention \(.*(Git|BlipText)SelfAttention.*\)",
    LOOP: "is not supported: it runs some of its layers 2 times in one pass",
}
"""Their text attention is not dispatched, so they cannot be wrapped."""

WARNED = tuple(KNOWN_BUGS)
"""Wrapping them names a fault of transformers."""

PADDED_UNDER_EAGER = "transformers masks padding under sdpa, the default, and not in the same way under eager"
EAGER_IS_ANOTHER_MODEL_WHEN_PADDED = ("minimax_m3_vl", "diffusion_gemma")
"""Architectures of which only rows of the sample without padding are compared."""

NO_PADDED_GENERATION = {
    "minimax_m3_vl": PADDED_UNDER_EAGER,
    "evolla": "transformers itself fails under eager",
}

ATTENTIONS_NOT_LISTED = {"idefics": "cross_attn"}
"""Hugging Face returns the self-attention alone."""

Record = Callable[[str, object], None]
"""Pytest's `record_property`: what tests/helpers/verified.py tells readers of the docs beside the outcome."""

SUPPORTED = [name for name in tiny.ARCHITECTURES if name not in REFUSED]


def build(name: str, **options: Any) -> Any:
    hf_model = tiny.build(name, **options)
    for module in hf_model.modules():
        # The fault that wrapping warns of: eager and sdpa are not the same model otherwise.
        if type(module).__name__ == "Phi4MultimodalVisionAttention":
            module.is_causal = False
    return hf_model


def wrap(hf_model: Any) -> Any:
    with warnings.catch_warnings():
        if hf_model.config.model_type in WARNED:
            warnings.simplefilter("ignore")
        return HookedMLLM(hf_model)


@pytest.fixture(scope="module", params=SUPPORTED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def hf_model(name: str) -> Any:
    return build(name)


@pytest.fixture(scope="module")
def model(hf_model: Any) -> Any:
    return wrap(hf_model)


@pytest.fixture(scope="module")
def eager(name: str) -> Any:
    return build(name, attention="eager")


@pytest.fixture(scope="module")
def plain(name: str) -> dict[str, Tensor]:
    return tiny.batch(name, padded=False)


@pytest.fixture(scope="module")
def padded(name: str) -> dict[str, Tensor]:
    return tiny.batch(name, padded=True)


def real_queries(hf_model: Any, inputs: dict[str, Tensor], n_queries: int) -> Tensor:
    """Mask of the rows that are not padding; rows of padding are arbitrary."""
    mask = inputs.get("attention_mask")
    if hf_model.config.is_encoder_decoder or mask is None or mask.shape[1] != n_queries:
        return torch.ones(2, n_queries, dtype=torch.bool)
    return mask.bool()


def at(chosen: Tensor, rows: Tensor) -> Tensor:
    """[batch head query key] at the chosen queries."""
    return rows.transpose(1, 2)[chosen]


def eager_rows(outputs: Any, model: Any) -> dict[str, Tensor]:
    """Attentions that Hugging Face returns, by the name of the hook point."""
    for part in ("language_model_outputs", "decoder_attentions", "attentions"):
        if getattr(outputs, part, None) is not None:
            break
    found = getattr(outputs, part)
    found = found.attentions if part == "language_model_outputs" else found
    crossing = getattr(outputs, "cross_attentions", None)
    own, cross = model.attn_names("pattern"), [n for n in model.hook_dict if n.endswith("cross_attn.hook_pattern")]
    if crossing and not cross:  # one softmax over both, which Hugging Face returns in two parts (T5Gemma 2)
        found, crossing = [torch.cat(pair, -1) for pair in zip(found, crossing, strict=True)], None
    by_name = dict(zip(own, [a for a in found if a is not None], strict=True))
    return by_name | (dict(zip(cross, crossing, strict=True)) if crossing else {})


@torch.no_grad()
@pytest.mark.parametrize("part", ["blocks", "vision"])
def test_hooks_that_return_what_they_got_change_no_bit(model: Any, padded: dict[str, Tensor], part: str):
    """At padding, too: rows without a key are the first to differ between two kinds of masks."""
    hooks = [(name, lambda tensor, hook: tensor) for name in model.hook_dict if name.startswith(part)]
    assert torch.equal(model.run_with_hooks(padded, fwd_hooks=hooks), model(padded))


@torch.no_grad()
def test_unhooked_logits_are_bit_identical(hf_model: Any, model: Any, plain: Any, padded: Any):
    for inputs in (plain, padded):
        assert torch.equal(model(inputs), hf_model(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("padding", [False, True], ids=["plain", "padded"])
def test_patterns_are_those_of_eager_attention(
    name: str, hf_model: Any, model: Any, eager: Any, plain: Any, padded: Any, padding: bool, record_property: Record
):
    inputs = padded if padding else plain
    logits, cache = model.run_with_cache(inputs)
    assert set(cache) == {name for name in model.hook_dict if not name.startswith("vision.")}
    expected = eager_rows(eager(**inputs, output_attentions=True), model)
    unlisted = ATTENTIONS_NOT_LISTED.get(name)
    assert set(expected) == {key for key in cache if key.endswith("pattern") and not (unlisted and unlisted in key)}
    for key, rows in expected.items():
        real = real_queries(hf_model, inputs, rows.shape[2])
        if padding and name in EAGER_IS_ANOTHER_MODEL_WHEN_PADDED:
            real[1] = False
            record_property("not made", PADDED_UNDER_EAGER)
        # Diffusion Gemma's canvas looks at a sliding cache, whose first keys are gone; columns are positions.
        assert_close(at(real, cache[key])[..., -rows.shape[-1] :], at(real, rows), atol=1e-5, rtol=0)
    real = real_queries(hf_model, inputs, logits.shape[1])
    assert_close(logits[real], hf_model(**inputs).logits[real], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_chosen_rows_are_rows_of_the_whole_pattern(name: str, model: Any, padded: Any, record_property: Record):
    _, whole = model.run_with_cache(padded, names_filter=lambda name: name.endswith("hook_pattern"))
    shape = padded["decoder_input_ids" if "decoder_input_ids" in padded else "input_ids"].shape
    queries = torch.zeros(shape, dtype=torch.bool)
    queries[0, [-3, -1]] = True
    queries[1, -2:] = True
    names = [key for key in whole if not key.startswith("vision.")]
    if name in ("pi0", "diffusion_gemma"):
        record_property("not made", "the decoder reads actions or a canvas, not the sequence")
        return
    _, cache = model.run_with_cache(padded, queries=queries, names_filter=names)
    for key in names:
        assert cache[key].shape[2] == 2
        assert_close(at(torch.ones(2, 2, dtype=torch.bool), cache[key]), at(queries, whole[key]), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("padding", [False, True], ids=["plain", "padded"])
def test_cached_generation_shows_eager_rows(
    name: str, model: Any, eager: Any, plain: Any, padded: Any, padding: bool, record_property: Record
):
    inputs = tiny.generation_inputs(name, padded if padding else plain)
    if reason := (tiny.NO_GENERATION | (NO_PADDED_GENERATION if padding else {})).get(name):
        record_property("not made", reason)
        return
    length = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, use_cache=True)
    expected = eager.generate(**inputs, **length, output_attentions=True, return_dict_in_generate=True)
    steps = expected.attentions if "attentions" in expected else expected.decoder_attentions
    seen: dict[str, list[Tensor]] = {key: [] for key in model.attn_names("pattern")}

    def keep(pattern: Tensor, hook: Any) -> None:
        seen[hook.name].append(pattern)

    inputs = tiny.generation_inputs(name, padded if padding else plain)
    with model.hooks(fwd_hooks=[(key, keep) for key in seen]):
        sequences = model.generate(inputs, **length)
    assert torch.equal(sequences, expected.sequences)
    crossing = getattr(expected, "cross_attentions", None)
    for index, rows in enumerate(seen.values()):
        assert len(rows) == len(steps)
        for number, (step, row) in enumerate(zip(steps, rows, strict=True)):
            theirs = [layer for layer in step if layer is not None][index]
            if name == "t5gemma2":
                theirs = torch.cat([theirs, crossing[number][index]], -1)
            # Every position of the prompt, also in Gemma 4's layers that share keys and would compute the last alone.
            assert row.shape[2] == theirs.shape[2]
            # Where a sliding cache has dropped the first keys, theirs begins later.
            assert_close(row[:, :, -1, -theirs.shape[-1] :], theirs[:, :, -1], atol=1e-5, rtol=0)
            assert not row[:, :, -1, : -theirs.shape[-1]].any()


# --- edits -----------------------------------------------------------------------------------------------------------


def attentions(model: Any) -> dict[str, Any]:
    """Every decoder attention by the name of its hook points."""
    named = {
        f"blocks.{b.hf_layer.layer}.{kind}": getattr(b, kind) for b in model._blocks for kind in b.hf_layer.attentions
    }
    assert {f"{name}.hook_pattern" for name in named} == {
        key for key in model.hook_dict if key.endswith("hook_pattern") and not key.startswith("vision.")
    }
    return named


def only_the_first_key(pattern: Tensor, hook: Any) -> Tensor:
    return torch.zeros_like(pattern).index_fill_(-1, torch.tensor([0]), 1)


def flatten(scores: Tensor, hook: Any) -> None:
    scores *= 0.3


@torch.no_grad()
def test_edits_of_pattern_and_scores_act_in_every_layer(model: Any, plain: dict[str, Tensor]):
    before = model(plain)
    for name in attentions(model):
        for point, edit in (("pattern", only_the_first_key), ("attn_scores", flatten)):
            after = model.run_with_hooks(plain, fwd_hooks=[(f"{name}.hook_{point}", edit)])
            assert not torch.allclose(after, before, atol=1e-4), f"an edit of {name}.hook_{point} changed nothing"


@torch.no_grad()
def test_zeroing_a_head_is_zeroing_its_columns_of_w_o(
    name: str, hf_model: Any, model: Any, padded: dict[str, Tensor], record_property: Record
):
    def zero(z: Tensor, hook: Any) -> Tensor:
        return z.index_fill(2, torch.tensor([1]), 0)

    if name == "diffusion_gemma":
        record_property("not made", "its encoder has the same weights")
        return
    real = real_queries(hf_model, padded, model(padded).shape[1])
    for name, attention in attentions(model).items():
        site = attention.hf_attention
        weight = site.w_o.weight
        columns = slice(site.d_head, 2 * site.d_head)
        kept = weight[:, columns].clone()
        weight[:, columns] = 0
        expected = model(padded)
        weight[:, columns] = kept
        assert not torch.allclose(expected, model(padded), atol=1e-4)
        points = ["hook_o_in"] if hasattr(attention, "hook_o_in") else []
        if site.mixing_norm:
            with pytest.raises(ValueError, match=r"hook_z was edited, and .* all heads together .* Edit hook_o_in"):
                model.run_with_hooks(padded, fwd_hooks=[(f"{name}.hook_z", zero)])
        else:
            points += ["hook_z"]
        for point in points:
            after = model.run_with_hooks(padded, fwd_hooks=[(f"{name}.{point}", zero)])
            assert_close(after[real], expected[real], atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_heads_write_through_w_o_and_gates_are_found(model: Any, plain: dict[str, Tensor]):
    """The input of W_O is `z` unless the layer has `hook_o_in`; heads times W_O, summed, is what W_O returns."""
    entered: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        attention.hf_attention.w_o.register_forward_hook(
            lambda module, args, output, name=name: entered.__setitem__(name, (args[0], output))
        )
        for name, attention in attentions(model).items()
    ]
    _, cache = model.run_with_cache(plain)
    for handle in handles:
        handle.remove()
    for name, attention in attentions(model).items():
        o_in, out = entered[name]
        z, gated = cache[f"{name}.hook_z"], f"{name}.hook_o_in" in cache
        assert z.shape[2:] == (attention.hf_attention.n_heads, attention.hf_attention.d_head)
        same = torch.equal(z.reshape(-1), o_in.reshape(-1))
        assert same != gated, f"{name} changes z before W_O, and has no hook_o_in" if not gated else name
        found = cache[f"{name}.hook_o_in"] if gated else z
        assert torch.equal(found.reshape(-1), o_in.reshape(-1))
        written = torch.einsum("bphd,hdm->bpm", found, attention.W_O)
        if attention.hf_attention.w_o.bias is not None:
            written += attention.hf_attention.w_o.bias
        assert_close(written.reshape(-1), out.reshape(-1), atol=2e-5, rtol=1e-4)


def kinds_of_heads(model: Any) -> list[str]:
    """Peculiarities of a decoder's attention."""
    sites = [site for block in model._blocks for site in block.hf_layer.attentions.values()]
    found = {
        "hybrid": any(block.hf_layer.missing.get("attn") for block in model._blocks),
        "MLA": any("kv_b_proj" in dict(site.module.named_children()) for site in sites),
        "gated": any(site.gated and not site.mixing_norm for site in sites),
        "mixing norm": any(site.mixing_norm for site in sites),
        "cross-attention": any(site.is_cross_attention for site in sites),
    }
    return [kind for kind, true in found.items() if true]


@torch.no_grad()
def test_heads_are_those_that_exist(model: Any, plain: dict[str, Tensor], record_property: Record):
    record_property("heads", ", ".join(kinds_of_heads(model)))
    _, cache = model.run_with_cache(plain, names_filter=lambda name: name.endswith("attn.hook_pattern"))
    expected = [Head(b, h) for b in range(model.cfg.n_layers) for h in range(model.cfg.n_heads)]
    shown = {layer: cache[name].shape[1] for layer in range(model.cfg.n_layers)
             if (name := f"blocks.{layer}.attn.hook_pattern") in cache}  # fmt: skip
    assert list(model.heads) == [head for head in expected if head.head < shown.get(head.layer, 0)]
    for head in set(expected) - set(model.heads):
        reason = "has no softmax attention; it is made of" if head.layer not in shown else "heads, counted from zero"
        with pytest.raises(ValueError, match=f"{head} does not exist: layer {head.layer} .*{reason}"):
            model.run_with_hooks(plain, fwd_hooks=ablate([head]))


# --- the residual stream ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_residual_stream_adds_up_where_it_has_hook_points(model: Any, plain: dict[str, Tensor]):
    _, cache = model.run_with_cache(plain)
    for block in model._blocks:
        layer, points = block.hf_layer.layer, set(block.hf_layer.points)
        assert {"resid_pre", "resid_post"} <= points
        if not block.hf_layer.attentions:
            with pytest.raises(ValueError, match=rf"layer {layer} has no softmax attention; it is made of \w+"):
                model.run_with_cache(plain, names_filter=f"blocks.{layer}.attn.hook_z")
        if {"attn_out", "resid_mid"} <= points:
            assert_close(cache["resid_pre", layer] + cache["attn_out", layer], cache["resid_mid", layer])
        if {"resid_mid", "mlp_out"} <= points:
            assert_close(cache["resid_mid", layer] + cache["mlp_out", layer], cache["resid_post", layer])
        if "attn_out" in points and "mlp_out" in points and "resid_mid" not in points:
            total = cache["resid_pre", layer] + cache["attn_out", layer] + cache["mlp_out", layer]
            assert_close(total, cache["resid_post", layer])
        for point in {"attn_out", "resid_mid", "mlp_out"} - points:
            with pytest.raises(ValueError, match="no hook point"):
                model.run_with_cache(plain, names_filter=f"blocks.{layer}.hook_{point}")


@torch.no_grad()
def test_edits_of_the_residual_stream_act(model: Any, plain: dict[str, Tensor]):
    before = model(plain)
    for block in model._blocks:
        for point in block.hf_layer.points:
            name = f"blocks.{block.hf_layer.layer}.hook_{point}"
            after = model.run_with_hooks(plain, fwd_hooks=[(name, lambda x, hook: x.flip(1))])
            assert not torch.allclose(after, before, atol=1e-4), f"an edit of {name} changed nothing"


# --- the vision tower ------------------------------------------------------------------------------------------------

WITHOUT_VISION_HEADS = {
    "gemma3n": "timm", "fast_vlm": "timm", "perception_lm": "timm",
    "got_ocr2": "SAM", "pp_chart2table": "SAM", "pp_formulanet": "SAM", "kosmos-2.5": "own code",
    "apertus1p5": "VQ codes", "chameleon": "VQ codes", "emu3": "VQ codes", "inkling_mm_model": "an MLP",
    "fuyu": "none", "gemma4_unified": "none", "udop": "none", "mistral4": "text only", "evolla": "proteins",
}  # fmt: skip


@torch.no_grad()
def test_the_vision_tower(name: str, model: Any, plain: dict[str, Tensor], record_property: Record):
    record_property("tower", WITHOUT_VISION_HEADS.get(name, "yes"))
    before = model(plain)
    names = [key for key in model.hook_dict if key.startswith("vision.")]
    assert (name in WITHOUT_VISION_HEADS) == (not names)
    if not names:
        with pytest.raises(ValueError, match=r"no hook point 'vision.blocks.0.attn.hook_pattern': .*(tower|vision)"):
            model.run_with_cache(plain, names_filter="vision.blocks.0.attn.hook_pattern")
        return
    logits, cache = model.run_with_cache(plain, names_filter=names)
    assert_close(logits, before, atol=2e-5, rtol=1e-5)
    # MiniCPM-OCR merges windows before the tower only for large pictures.
    layers = [layer for layer in model.vision.blocks if name != "minicpm_ocr" or layer != "3"]
    assert set(cache) == {key for key in names if key.split(".")[2] in layers}
    acted = 0
    for layer in layers:
        at = f"vision.blocks.{layer}.attn"
        pattern, v, z = cache[f"{at}.hook_pattern"], cache[f"{at}.hook_v"], cache[f"{at}.hook_z"]
        assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
        v = v.repeat_interleave(pattern.shape[1] // v.shape[2], 2)
        assert_close(torch.einsum("bhqk,bkhd->bqhd", pattern, v), z, atol=1e-5, rtol=1e-4)
        even = model.run_with_hooks(
            plain, fwd_hooks=[(f"{at}.hook_pattern", lambda p, hook: torch.full_like(p, 1 / p.shape[-1]))]
        )
        acted += not torch.allclose(even, before, atol=1e-6)
    # Towers may compute a last layer that nobody reads.
    assert acted >= len(layers) - 1


# --- refusals and faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_architectures_that_cannot_be_hooked_are_refused_by_name(name: str, record_property: Record):
    record_property("refused", REFUSED[name])
    with pytest.raises(TypeError, match=MESSAGES[REFUSED[name]]):
        wrap(tiny.build(name))


@pytest.mark.parametrize("name", WARNED)
def test_faults_of_transformers_are_named(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiny, "CANNOT_RUN", {})
    with pytest.warns(UserWarning, match=name):
        HookedMLLM(tiny.build(name))


def test_every_architecture_of_this_transformers_is_built():
    assert not tiny.NOT_BUILT
    assert set(tiny.CLASSES) <= set(tiny.ARCHITECTURES)


# --- ways to run -----------------------------------------------------------------------------------------------------

CACHED = ("qwen3_vl", "gemma3", "internvl_gpt_oss", "paligemma2", "llama4", "mistral_large4", "qwen3_5", "mllama")
"""One of each kind: plain, sliding, sinks, soft caps, chunked, chosen keys, hybrid, cross-attention."""

NO_STATIC = ("paligemma2", "mistral_large4")
"""With a static cache transformers fails on the first, and computes other logits on the second."""

STATIC = {"cache_implementation": "static", "disable_compile": True}
CHUNKED = {"prefill_chunk_size": 8}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "way"),
    [(name, STATIC) for name in CACHED if name not in NO_STATIC]
    + [(name, CHUNKED) for name in ("qwen3_vl", "internvl_gpt_oss", "qwen2_5_vl")],
    indirect=["name"],
)
def test_static_caches_and_chunked_prefill_show_the_same_rows(name: str, model: Any, padded: Any, way: dict[str, Any]):
    inputs = tiny.generation_inputs(name, padded)
    queries = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    queries[:, [-9, -1]] = True
    _, expected = model.run_with_cache(inputs, queries=queries, names_filter=model.attn_names("pattern"))
    seen: dict[str, list[Tensor]] = {}
    hooks = [(key, lambda rows, hook: seen.setdefault(hook.name, []).append(rows)) for key in expected]
    with model.hooks(fwd_hooks=hooks, queries=queries):
        model.generate(inputs, max_new_tokens=3, do_sample=False, eos_token_id=None, **way)
    assert seen.keys() == expected.keys()
    for key, rows in seen.items():
        assert sum(part.shape[2] for part in rows) == 2
        filled = [torch.nn.functional.pad(part, (0, 64 - part.shape[-1])) for part in rows]
        whole = torch.nn.functional.pad(expected[key], (0, 64 - expected[key].shape[-1]))
        assert_close(torch.cat(filled, 2), whole, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CACHED, indirect=True)
def test_half_precision(name: str, padded: dict[str, Tensor], dtype: torch.dtype):
    hf_model = build(name, dtype=dtype)
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in padded.items()}
    model = wrap(hf_model)
    assert torch.equal(model(inputs), hf_model(**inputs).logits)
    # The first layer only: later ones start from streams that already differ by rounding.
    first = model.attn_names("pattern")[0]
    rows = model.run_with_cache(inputs, names_filter=first)[1][first]
    assert rows.dtype == torch.float32
    expected = build(name, attention="eager", dtype=dtype)(**inputs, output_attentions=True).attentions
    expected = next(layer for layer in expected if layer is not None)
    real = real_queries(hf_model, inputs, rows.shape[2])
    rows, expected = at(real, rows), at(real, expected).float()
    if name == "mistral_large4":
        # Its indexer picks other keys where rounding decides between two.
        same = ((rows > 0) == (expected > 0)).all(-1)
        assert same.float().mean() > 0.9
        rows, expected = rows[same], expected[same]
    assert_close(rows, expected, atol=2e-2, rtol=0)
