"""Every family against eager attention, against loops, and against the unwrapped model."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import ActivationCache, HookedRootModule
from transformers import AutoModelForCausalLM, LlamaConfig

import corelens.hooks.attention
from corelens import Head, HookedMLLM, ablate, row_mask
from corelens.hf.forward import input_mapping
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture

LAYERS = range(tiny.TEXT["num_hidden_layers"])


@pytest.fixture(params=[False, True], ids=["plain", "padded"])
def inputs(family: str, request: pytest.FixtureRequest) -> dict[str, Tensor]:
    return tiny.batch(family, padded=request.param)


def pattern_of(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_pattern"


def patterns_only(name: str) -> bool:
    return name.endswith("hook_pattern")


@torch.no_grad()
def test_unhooked_logits_are_those_of_the_unwrapped_model(family: str, model: Any, inputs: dict[str, Tensor]):
    assert torch.equal(model(inputs), tiny.build(family)(**inputs).logits)


@torch.no_grad()
def test_looking_changes_nothing(model: Any, hf_model: Any, inputs: dict[str, Tensor]):
    logits, cache = model.run_with_cache(inputs)
    assert torch.equal(logits, hf_model(**inputs).logits)
    assert set(cache) == {name for name in model.hook_dict if not name.startswith("vision.")}


@torch.no_grad()
def test_patterns_are_those_of_eager_attention(model: Any, eager: Any, inputs: dict[str, Tensor]):
    _, cache = model.run_with_cache(inputs)
    real = inputs["attention_mask"].bool()
    for layer, expected in enumerate(eager(**inputs, output_attentions=True).attentions):
        seen = cache["pattern", layer]
        assert seen.shape == expected.shape
        for sample in range(2):
            assert_close(seen[sample, :, real[sample]], expected[sample, :, real[sample]], atol=1e-5, rtol=0)
        assert_close(cache["attn_scores", layer].softmax(-1), seen)


@torch.no_grad()
def test_chosen_rows_are_rows_of_the_whole_pattern(model: Any, inputs: dict[str, Tensor]):
    queries = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    queries[0, [5, 9, -1]] = True
    queries[1, -2:] = True
    _, whole = model.run_with_cache(inputs)
    logits, cache = model.run_with_cache(inputs, queries=queries, names_filter=patterns_only)
    assert torch.equal(logits, model(inputs))
    assert row_mask(queries).tolist() == [[True, True, True], [True, True, False]]
    for layer in LAYERS:
        rows, expected = cache["pattern", layer], whole["pattern", layer]
        assert_close(rows[0], expected[0][:, queries[0]], atol=1e-6, rtol=0)
        assert_close(rows[1, :, :2], expected[1][:, queries[1]], atol=1e-6, rtol=0)
        assert rows[1, :, 2].isnan().all()


@torch.no_grad()
def test_z_is_values_mixed_by_the_pattern_in_a_loop(model: Any, inputs: dict[str, Tensor]):
    _, cache = model.run_with_cache(inputs)
    n_heads, n_kv_heads = tiny.TEXT["num_attention_heads"], tiny.TEXT["num_key_value_heads"]
    for head in range(n_heads):
        mixed = cache["pattern", 1][0, head] @ cache["v", 1][0, :, head // (n_heads // n_kv_heads)]
        assert_close(cache["z", 1][0, :, head], mixed, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_residual_stream_adds_up_and_heads_write_through_w_o(model: Any, inputs: dict[str, Tensor], family: str):
    _, cache = model.run_with_cache(inputs)
    for layer in LAYERS:
        assert_close(cache["resid_pre", layer] + cache["attn_out", layer], cache["resid_mid", layer])
        assert_close(cache["resid_mid", layer] + cache["mlp_out", layer], cache["resid_post", layer])
        if family != "gemma3":  # which has a norm between W_O and the stream
            written = torch.einsum("bqhd,hdm->bqm", cache["z", layer], model.blocks[layer].attn.W_O)
            assert_close(written, cache["attn_out", layer], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_edit_of_pattern_scores_or_rows_is_an_edit_of_z(model: Any, inputs: dict[str, Tensor]):
    """Three ways to make head 2 attend to its first visible key alone, at the last position."""
    first = inputs["attention_mask"].argmax(-1)
    last = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    last[:, -1] = True
    seen: dict[str, Tensor] = {}

    def replace(pattern: Tensor, hook: Any) -> Tensor:
        new = pattern.clone()
        new[:, 2, -1] = 0
        for sample in range(2):
            new[sample, 2, -1, first[sample]] = 1
        return new

    def in_place(pattern: Tensor, hook: Any) -> None:
        pattern.copy_(replace(pattern, hook))

    def only_head_2(scores: Tensor, hook: Any) -> Tensor:
        new = scores.clone()
        new[:, 2, -1] = -1e9
        for sample in range(2):
            new[sample, 2, -1, first[sample]] = 0
        return new

    def keep(name: str) -> Any:
        def hook(z: Tensor, hook: Any) -> None:
            seen[name] = z.clone()

        return ("blocks.1.attn.hook_z", hook)

    values: dict[str, Tensor] = {}
    model.run_with_hooks(inputs, fwd_hooks=[("blocks.1.attn.hook_v", lambda v, hook: values.update(v=v.clone()))])
    plain = model(inputs)
    outcomes = [
        model.run_with_hooks(inputs, fwd_hooks=[(pattern_of(1), replace), keep("whole")]),
        model.run_with_hooks(inputs, fwd_hooks=[(pattern_of(1), in_place), keep("in place")]),
        model.run_with_hooks(inputs, fwd_hooks=[(pattern_of(1), replace), keep("rows")], queries=last),
        model.run_with_hooks(inputs, fwd_hooks=[("blocks.1.attn.hook_attn_scores", only_head_2), keep("scores")]),
    ]
    for outcome in outcomes:
        assert_close(outcome[:, -1], outcomes[0][:, -1], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(outcome[:, -1], plain[:, -1], atol=1e-3)
    for z in seen.values():
        for sample in range(2):
            assert_close(z[sample, -1, 2], values["v"][sample, first[sample], 1], atol=1e-5, rtol=1e-5)
    # Rows that were not chosen are not touched.
    assert torch.equal(outcomes[2][:, :-1], plain[:, :-1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "hook_resid_pre"])
def test_hooks_on_other_points_leave_attention_fused_and_act(
    model: Any, inputs: dict[str, Tensor], name: str, monkeypatch: pytest.MonkeyPatch
):
    def forbidden(*args: Any) -> None:
        raise AssertionError("scores were computed")

    monkeypatch.setattr(corelens.hooks.attention, "attention_scores", forbidden)
    plain = model(inputs)
    for layer in LAYERS:
        untouched = model.run_with_hooks(inputs, fwd_hooks=[(f"blocks.{layer}.{name}", lambda x, hook: None)])
        assert torch.equal(untouched, plain)
        changed = model.run_with_hooks(inputs, fwd_hooks=[(f"blocks.{layer}.{name}", lambda x, hook: x.flip(1))])
        assert not torch.allclose(changed, plain, atol=1e-4)


@torch.no_grad()
def test_an_edit_of_resid_mid_reaches_mlp_and_stream(model: Any, inputs: dict[str, Tensor]):
    shift = torch.randn(64)
    _, before = model.run_with_cache(inputs)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_mid", lambda mid, hook: mid + shift)]):
        _, after = model.run_with_cache(inputs)
    assert_close(after["resid_mid", 1], before["resid_mid", 1] + shift)
    assert_close(after["resid_mid", 1] + after["mlp_out", 1], after["resid_post", 1])
    assert not torch.allclose(after["mlp_out", 1], before["mlp_out", 1])


@torch.no_grad()
def test_caches_keep_what_was_seen_before_an_edit(model: Any, inputs: dict[str, Tensor]):
    _, before = model.run_with_cache(inputs)
    for point in ("hook_resid_mid", "hook_resid_post", "attn.hook_z"):
        kept: dict[str, Tensor] = {}
        edits = [
            (f"blocks.1.{point}", lambda x, hook, kept=kept: kept.update(x=x.detach())),
            (f"blocks.1.{point}", lambda x, hook: x + 1),
        ]
        model.run_with_hooks(inputs, fwd_hooks=edits)
        assert torch.equal(kept["x"], before[f"blocks.1.{point}"])


@torch.no_grad()
def test_generation_under_hooks_sees_and_edits_every_step(model: Any, hf_model: Any, inputs: dict[str, Tensor]):
    plain = hf_model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(inputs, max_new_tokens=4, do_sample=False, eos_token_id=None), plain)
    shapes: list[tuple[int, ...]] = []
    with model.hooks(fwd_hooks=[(pattern_of(2), lambda pattern, hook: shapes.append(tuple(pattern.shape)))]):
        again = model.generate(inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(again, plain)
    n = inputs["input_ids"].shape[1]
    assert shapes == [(2, 4, n, n)] + [(2, 4, 1, n + step) for step in (1, 2, 3)]


@torch.no_grad()
def test_decoding_with_a_cache_sees_the_rows_of_one_pass(
    model: Any, hf_model: Any, inputs: dict[str, Tensor], family: str
):
    rows: list[Tensor] = []
    with model.hooks(fwd_hooks=[(pattern_of(2), lambda pattern, hook: rows.append(pattern[:, :, -1]))]):
        sequence = model.generate(inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    longer = dict(inputs) | {"input_ids": sequence[:, :-1]}
    for name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            more = torch.full((2, 2), int(name == "attention_mask"), dtype=inputs[name].dtype)
            longer[name] = torch.cat([inputs[name], more], 1)
    _, cache = model.run_with_cache(longer, names_filter=pattern_of(2))
    for back, row in enumerate(reversed(rows)):
        n_keys = row.shape[-1]
        assert_close(row, cache["pattern", 2][:, :, -1 - back, :n_keys], atol=1e-5, rtol=0)


@torch.no_grad()
def test_chosen_queries_in_generation_are_positions_of_the_prompt(model: Any, inputs: dict[str, Tensor]):
    queries = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    queries[:, -2:] = True
    shapes: list[tuple[int, ...]] = []
    with model.hooks(
        fwd_hooks=[(pattern_of(0), lambda pattern, hook: shapes.append(tuple(pattern.shape)))], queries=queries
    ):
        model.generate(inputs, max_new_tokens=3, do_sample=False)
        model.generate(inputs, max_new_tokens=3, do_sample=False, num_beams=2)
    n = inputs["input_ids"].shape[1]
    assert shapes == [(2, 4, 2, n), (4, 4, 2, n)]


@torch.no_grad()
def test_bfloat16(family: str, inputs: dict[str, Tensor]):
    hf_model = tiny.build(family, dtype=torch.bfloat16)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    logits, cache = HookedMLLM(hf_model).run_with_cache(inputs)
    assert torch.equal(logits, hf_model(**inputs).logits)
    expected = tiny.build(family, attention="eager", dtype=torch.bfloat16)(**inputs, output_attentions=True).attentions
    real = inputs["attention_mask"].bool()
    # The first layer only: later ones start from streams that already differ by bfloat16 rounding.
    assert cache["pattern", 0].dtype == torch.float32
    for sample in range(2):
        rows = cache["pattern", 0][sample, :, real[sample]]
        assert_close(rows, expected[0][sample, :, real[sample]].float(), atol=2e-2, rtol=0)


def test_gradients_reach_patterns(model: Any, inputs: dict[str, Tensor]):
    """The gradient of the pattern is the gradient of z times the value, in a loop."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda tensor, hook: seen.__setitem__(name, tensor.detach())

    with model.hooks(
        fwd_hooks=[("blocks.2.attn.hook_v", keep("v"))],
        bwd_hooks=[(pattern_of(2), keep("pattern")), ("blocks.2.attn.hook_z", keep("z"))],
    ):
        model(inputs)[:, -1].square().sum().backward()
    model.zero_grad()
    for head in range(4):
        expected = seen["z"][0, -1, head] @ seen["v"][0, :, head // 2].T
        assert_close(seen["pattern"][0, head, -1], expected, atol=1e-4, rtol=1e-3)


def test_wrapping_and_exceptions_leave_no_trace(family: str):
    hf_model = tiny.build(family)

    def trace() -> list[Any]:
        return [
            (name, sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in hf_model.named_modules()
        ] + [module.config._attn_implementation for module in hf_model.modules() if hasattr(module, "config")]

    inputs = tiny.batch(family)
    hf_model.generate(**inputs, max_new_tokens=1)  # Hugging Face's own first-use marks
    before = trace()
    model = HookedMLLM(hf_model)
    model.run_with_cache(inputs)

    def fail(tensor: Tensor, hook: Any) -> None:
        raise RuntimeError("stop")

    for name in ("blocks.1.attn.hook_pattern", "blocks.1.hook_resid_mid"):
        with pytest.raises(RuntimeError, match="stop"):
            model.run_with_hooks(inputs, fwd_hooks=[(name, fail)])
        with pytest.raises(RuntimeError, match="stop"), model.hooks(fwd_hooks=[(name, fail)]):
            model.generate(inputs, max_new_tokens=1)
    assert trace() == before
    assert not any(point.has_hooks() for point in model.hook_points())
    copy.deepcopy(hf_model)


@torch.no_grad()
def test_two_wrapped_models_and_two_threads_do_not_see_one_another(family: str):
    first, second = HookedMLLM(tiny.build(family)), HookedMLLM(tiny.build(family, seed=1))
    twin = HookedMLLM(first.hf_model)
    inputs = tiny.batch(family)
    expected = {id(m): m(inputs) for m in (first, second, twin)}
    zero = [("blocks.0.attn.hook_z", lambda z, hook: z * 0)]
    with first.hooks(fwd_hooks=zero):
        assert not torch.equal(first(inputs), expected[id(first)])
        assert torch.equal(second(inputs), expected[id(second)])
        assert torch.equal(twin(inputs), expected[id(twin)])
    wrong: list[str] = []

    def look() -> None:
        with torch.no_grad():
            for _ in range(5):
                if not torch.equal(first(inputs), expected[id(first)]):
                    wrong.append("a hook of another thread was seen")

    def ablate() -> None:
        with torch.no_grad():
            for _ in range(5):
                with first.hooks(fwd_hooks=zero):
                    if torch.equal(first(inputs), expected[id(first)]):
                        wrong.append("the hook did not act")

    threads = [threading.Thread(target=target) for target in (look, ablate, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_inputs_come_as_mapping_or_as_keywords(model: Any, inputs: dict[str, Tensor]):
    assert torch.equal(model(inputs), model(**inputs))
    ids = inputs["input_ids"]
    assert model(inputs, labels=ids).ndim == 0
    logits, cache = model.run_with_cache(**inputs, names_filter="blocks.0.hook_resid_pre")
    assert torch.equal(logits, model(inputs))
    assert list(cache) == ["blocks.0.hook_resid_pre"]


@torch.no_grad()
def test_inference_mode_edits_act(model: Any, inputs: dict[str, Tensor]):
    def blind(pattern: Tensor, hook: Any) -> None:
        pattern[:, 1] = 0

    expected = model.run_with_hooks(inputs, fwd_hooks=[(pattern_of(0), blind)])
    with torch.inference_mode():
        assert torch.equal(
            model.run_with_hooks(inputs, fwd_hooks=[(pattern_of(0), lambda p, hook: None)]), model(inputs)
        )
        assert_close(model.run_with_hooks(inputs, fwd_hooks=[(pattern_of(0), blind)]), expected)


# --- mistakes, on one family -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava() -> Any:
    return HookedMLLM(tiny.build("llava"))


def test_transformer_lens_manners(llava: Any):
    assert isinstance(llava, HookedRootModule)
    inputs = {name: tensor[:1] for name, tensor in tiny.batch("llava").items()}
    _, cache = llava.run_with_cache(inputs, remove_batch_dim=True, names_filter=lambda name: "z" in name)
    assert isinstance(cache, ActivationCache)
    assert cache["z", -1].shape == (33, 4, 16)
    llava.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    changed = llava(inputs)
    llava.reset_hooks()
    assert not torch.equal(llava(inputs), changed)
    assert [str(head) for head in llava.heads][:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
    assert llava.to(torch.float64).hf_model.dtype == torch.float64
    llava.to(torch.float32)
    assert sum(p.numel() for p in llava.parameters()) == llava.hf_model.num_parameters()


def test_an_unknown_hook_name_is_named_before_anything_runs(llava: Any):
    inputs = tiny.batch("llava")
    message = r"no hook point 'blocks.0.attn.hook_patern'; the nearest are blocks.0.attn.hook_pattern"
    with pytest.raises(ValueError, match=message):
        llava.run_with_hooks(inputs, fwd_hooks=[("blocks.0.attn.hook_patern", lambda x, hook: x)])
    with pytest.raises(ValueError, match=message):
        llava.run_with_cache(inputs, names_filter=["blocks.0.attn.hook_patern"])
    with pytest.raises(ValueError, match=message):
        llava.add_hook("blocks.0.attn.hook_patern", lambda x, hook: x)
    with pytest.raises(ValueError, match=r"blocks\.7\.hook_resid_pre"):
        llava.run_with_cache(inputs, names_filter="blocks.7.hook_resid_pre")
    assert not any(point.has_hooks() for point in llava.hook_points())


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (torch.ones(2, 5, dtype=torch.bool), r"queries has shape \(2, 5\), and the inputs have .* = \(2, 33\)"),
        (torch.ones(3, 33, dtype=torch.bool), r"queries has shape \(3, 33\)"),
    ],
)
def test_queries_of_the_wrong_shape(llava: Any, queries: Tensor, message: str):
    inputs = tiny.batch("llava")
    hooks = [(pattern_of(1), lambda pattern, hook: None)]
    with pytest.raises(ValueError, match=message):
        llava.run_with_cache(inputs, queries=queries)
    with pytest.raises(ValueError, match=message):
        llava.run_with_hooks(inputs, fwd_hooks=hooks, queries=queries)
    with pytest.raises(ValueError, match=message), llava.hooks(hooks, queries=queries):
        llava.generate(inputs, max_new_tokens=1)


def test_a_hook_that_returns_another_shape(llava: Any):
    with pytest.raises(ValueError, match=r"a hook on blocks.0.attn.hook_z returned shape \(2, 33, 4\)"):
        llava.run_with_hooks(tiny.batch("llava"), fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z[..., 0])])


def test_dropping_the_batch_axis_of_a_larger_batch(llava: Any):
    with pytest.raises(ValueError, match="needs a batch of one, and this one has 2"):
        llava.run_with_cache(tiny.batch("llava"), remove_batch_dim=True)


def test_models_that_cannot_be_wrapped(llava: Any):
    text_only = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(TypeError, match="LlamaForCausalLM takes no pictures"):
        HookedMLLM(text_only)
    with pytest.raises(TypeError, match="Linear is not a Hugging Face model"):
        HookedMLLM(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="wrap it before"):
        HookedMLLM(torch.compile(llava.hf_model))


@torch.no_grad()
@pytest.mark.parametrize("kind", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_run_alike_and_are_hooked_apart(kind: Callable[[HookedMLLM], HookedMLLM]):
    model = HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    model.cfg.model_name = "a name"
    inputs = model.prepare(random_picture(), "Which?")
    other = kind(model)
    ablation = ablate([Head(0, 1)])
    assert other.cfg.model_name == "a name"
    assert torch.equal(other.prepare(random_picture(), "Which?")["pixel_values"], inputs["pixel_values"])
    assert torch.equal(
        other.run_with_hooks(inputs, fwd_hooks=ablation), model.run_with_hooks(inputs, fwd_hooks=ablation)
    )
    with model.hooks(fwd_hooks=ablation):
        assert not any(point.has_hooks() for point in other.hook_points())
        with pytest.raises(ValueError, match="a model with hooks cannot be copied"):
            kind(model)
    _, cache = model.run_with_cache(inputs)
    assert torch.equal(copy.deepcopy(cache)["z", 0], cache["z", 0])


def test_what_is_no_input_is_said_to_be_none():
    # Directly, since here the annotations are checked first.
    with pytest.raises(TypeError, match=r"a str is no input; give what model\.prepare\(pictures, question\) returns"):
        input_mapping("which digit is red ?")
    with pytest.raises(TypeError, match="pass device_map='cuda', as in transformers"):
        HookedMLLM.from_pretrained("corelens/toy", device="cuda")
