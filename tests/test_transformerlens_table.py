"""Every row of the table of docs/transformerlens.md: its value, or its refusal."""

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import FactoredMatrix, SVDInterpreter, head_detector, patching, utilities

from corelens import HookedMLLM, toy
from corelens.hooks.refused import REFUSED, REFUSED_POINTS
from tests.helpers import tiny, transformerlens
from tests.helpers.transformerlens import CACHE, FACTORED, FUNCTIONS, MODEL, TABLES


class Case(SimpleNamespace):
    """The toy model, a prompt with a picture, its cache and its logits."""

    model: Any
    inputs: Any
    cache: Any
    logits: Tensor


@pytest.fixture(scope="module")
def case(toy_model: HookedMLLM) -> Case:
    (sample,) = toy.scenes(1, seed=0)
    inputs = toy_model.prepare(sample.images[0], "which digit is red ?")
    with torch.no_grad():
        logits, cache = toy_model.run_with_cache(inputs)
    return Case(model=toy_model, inputs=inputs, cache=cache, logits=logits)


@pytest.fixture(autouse=True)
def _no_grad(toy_model: HookedMLLM) -> Iterator[None]:
    with torch.no_grad():
        yield
    toy_model.reset_hooks(including_permanent=True)


def hf(case: Case, name: str, layer: int = 1) -> Tensor:
    """A parameter of a layer of the Hugging Face model."""
    return case.model.hf_model.get_decoder().layers[layer].get_parameter(name)


def by_head(case: Case, name: str, n_heads: int) -> Tensor:
    return hf(case, f"self_attn.{name}.weight").unflatten(0, (n_heads, -1)).mT


def counted(case: Case, add: Callable[[list[str]], object]) -> list[str]:
    """Names of the hook points at which hooks were called in a pass."""
    called: list[str] = []
    add(called)
    case.model(case.inputs)
    return called


def z_of(case: Case) -> Tensor:
    return case.cache["z", 1]


def same(left: Any, right: Any) -> bool:
    assert_close(torch.as_tensor(left), torch.as_tensor(right), atol=1e-4, rtol=1e-4, equal_nan=True)
    return True


def save(called: list[str]) -> Callable[..., None]:
    return lambda tensor, hook: called.append(hook.name)


Z = "blocks.1.attn.hook_z"
LAYER, HEAD = 2, 4
"""A head that the toy uses; the weights of others are zero."""


def kv_head(case: Case) -> int:
    return HEAD // (case.model.cfg.n_heads // case.model.cfg.n_key_value_heads)


def with_gain(case: Case, part: Any, weight: Tensor) -> Tensor:
    norm = case.model.blocks[LAYER].attn.hf_attention.norms.get(part)
    return weight if norm is None else weight * norm.weight


VALUES: dict[str, Callable[[Case], object]] = {
    "OV": lambda c: same(circuit(c).AB, c.model.W_V[LAYER, kv_head(c)] @ c.model.W_O[LAYER, HEAD]),
    "OV_for_attn_layers": lambda c: same(c.model.OV_for_attn_layers()[1][LAYER, HEAD].AB, circuit(c).AB),
    "QK": lambda c: same(
        c.model.QK[LAYER, HEAD].AB,
        with_gain(c, "q", c.model.W_Q[LAYER, HEAD]) @ with_gain(c, "k", c.model.W_K[LAYER, kv_head(c)]).T,
    ),
    "QK_for_attn_layers": lambda c: c.model.QK_for_attn_layers()[0] == [*range(c.model.cfg.n_layers)],
    "W_E": lambda c: same(c.model.W_E, c.model.hf_model.get_input_embeddings().weight),
    "W_K": lambda c: same(c.model.W_K[1], by_head(c, "k_proj", c.model.cfg.n_key_value_heads)),
    "W_O": lambda c: same(c.model.W_O[1].flatten(0, 1).T, hf(c, "self_attn.o_proj.weight")),
    "W_Q": lambda c: same(c.model.W_Q[1], by_head(c, "q_proj", c.model.cfg.n_heads)),
    "W_U": lambda c: same(c.model.W_U.T, c.model.hf_model.get_output_embeddings().weight),
    "W_V": lambda c: same(c.model.W_V[1], by_head(c, "v_proj", c.model.cfg.n_key_value_heads)),
    "W_gate": lambda c: same(c.model.W_gate[1].T, hf(c, "mlp.gate_proj.weight")),
    "W_in": lambda c: same(c.model.W_in[1].T, hf(c, "mlp.up_proj.weight")),
    "W_out": lambda c: same(c.model.W_out[1].T, hf(c, "mlp.down_proj.weight")),
    "accumulated_bias": lambda c: same(c.model.accumulated_bias(2), c.model.b_O[:2].sum(0) + c.model.b_out[:2].sum(0)),
    "add_caching_hooks": lambda c: (kept := c.model.add_caching_hooks(Z), c.model(c.inputs)) and same(kept[Z], z_of(c)),
    "add_hook": lambda c: counted(c, lambda called: c.model.add_hook(Z, save(called))) == [Z],
    "add_perma_hook": lambda c: (
        c.model.add_perma_hook(Z, lambda *_, hook: None),
        c.model.reset_hooks(),
        c.model.hook_dict[Z].has_hooks(),
    )[-1],
    "all_composition_scores": lambda c: same(
        c.model.all_composition_scores("V")[LAYER, HEAD, LAYER + 1, 7],
        utilities.composition_scores(circuit(c), c.model.OV[LAYER + 1, 7]),
    ),
    "all_head_labels": lambda c: c.model.all_head_labels == [str(head) for head in c.model.heads],
    "attn_head_labels": lambda c: c.model.attn_head_labels == [str(head) for head in c.model.heads],
    **{
        name: lambda c, name=name: not getattr(c.model, name).any()
        and getattr(c.model, name)[1].shape == getattr(c.model.blocks[1], part(name)).__getattribute__(name).shape
        for name in ("b_K", "b_O", "b_Q", "b_V", "b_in", "b_out")
    },
    "b_U": lambda c: same(c.model.b_U, torch.zeros(1)),
    "block_hooks": lambda c: c.model.block_hooks(1)
    == sorted(n.removeprefix("blocks.1.") for n in c.model.hook_dict if n.startswith("blocks.1.")),
    "block_submodules": lambda c: c.model.block_submodules(1) == ["attn", "ln1", "ln2", "mlp"],
    "blocks_with": lambda c: [layer for layer, _ in c.model.blocks_with("mlp")] == [*range(c.model.cfg.n_layers)],
    "cache_all": lambda c: (kept := {}, c.model.cache_all(kept), c.model(c.inputs)) and same(kept[Z], z_of(c)),
    "cache_some": lambda c: (kept := {}, c.model.cache_some(kept, lambda n: n == Z), c.model(c.inputs))
    and same(kept[Z], z_of(c)),
    "check_and_add_hook": lambda c: counted(
        c, lambda called: c.model.check_and_add_hook(c.model.hook_dict[Z], Z, save(called))
    ) == [Z],
    "check_hooks_to_add": lambda c: c.model.check_hooks_to_add(c.model.hook_dict[Z], Z, print) is None,
    "clear_contexts": lambda c: (c.model.hook_dict[Z].ctx.update(a=1), c.model.clear_contexts())
    and not c.model.hook_dict[Z].ctx,
    "composition_layer_indices": lambda c: c.model.composition_layer_indices() == [*range(c.model.cfg.n_layers)],
    "generate": lambda c: same(
        c.model.generate(c.inputs, max_new_tokens=1, do_sample=False)[0, -1], c.logits[0, -1].argmax()
    ),
    "get_caching_hooks": lambda c: (
        hooks := c.model.get_caching_hooks(Z),
        c.model.run_with_hooks(c.inputs, fwd_hooks=hooks[1]),
        same(hooks[0][Z], z_of(c)),
    ),
    "get_params": lambda c: [*c.model.get_params()] == [*c.model.tl_parameters()],
    "get_token_position": lambda c: c.model.get_token_position("red", c.inputs)
    == c.inputs["input_ids"][0].tolist().index(c.model.to_single_token("red")),
    "hook_dict": lambda c: c.model.hook_dict[Z] is c.model.blocks[1].attn.hook_z,
    "hook_points": lambda c: [*c.model.hook_points()] == [*c.model.hook_dict.values()],
    "hooks": lambda c: counted_in_block(c) == [Z],
    "layer_types": lambda c: c.model.layer_types() == ["attn+mlp"] * c.model.cfg.n_layers,
    "list_hooks": lambda c: (c.model.add_hook(Z, lambda *_, hook: None), [*c.model.list_hooks()])[-1] == [Z],
    "loss_fn": lambda c: same(
        c.model.loss_fn(c.logits, c.inputs, per_token=True)[0, 3],
        -c.logits[0, 3].log_softmax(-1)[c.inputs["input_ids"][0, 4]],
    ),
    "mod_dict": lambda c: c.model.mod_dict[Z] is c.model.hook_dict[Z],
    "n_params_total": lambda c: c.model.n_params_total == c.model.hf_model.num_parameters(),
    "remove_all_hook_fns": lambda c: (c.model.add_hook(Z, lambda *_, hook: None), c.model.remove_all_hook_fns())
    and not c.model.hook_dict[Z].has_hooks(),
    "reset_hooks": lambda c: (c.model.add_hook(Z, lambda *_, hook: None), c.model.reset_hooks())
    and not c.model.hook_dict[Z].has_hooks(),
    "run_with_cache": lambda c: same(c.model.run_with_cache(c.inputs, names_filter=Z)[1][Z], z_of(c)),
    "run_with_hooks": lambda c: same(
        c.model.run_with_hooks(c.inputs, fwd_hooks=[(last_stream(c), lambda stream, hook: -stream)]),
        c.model.unembed(c.model.ln_final(-c.cache["resid_post", -1])),
    ),
    "setup": lambda c: c.model.setup() is None and c.model.hook_dict[Z].name == Z,
    "stack_params_for": lambda c: same(c.model.stack_params_for("attn", "attn.W_Q")[1], c.model.W_Q.tensor()),
    "tl_named_parameters": lambda c: same(
        dict(c.model.tl_named_parameters())["blocks.1.mlp.W_in"], hf(c, "mlp.up_proj.weight").T
    ),
    "tl_parameters": lambda c: same(
        c.model.tl_parameters()["blocks.1.attn.W_V"],
        c.model.W_V[1].repeat_interleave(c.model.cfg.n_heads // c.model.cfg.n_key_value_heads, 0),
    ),
    "to_single_str_token": lambda c: c.model.to_single_str_token(c.model.to_single_token("red")) == "red",
    "to_single_token": lambda c: c.model.to_single_token("red") == c.model.tokenizer.convert_tokens_to_ids("red"),
    "to_str_tokens": lambda c: [word for word in c.model.to_str_tokens(c.inputs) if word.startswith("image")]
    == [f"image {row},{column}" for row in range(8) for column in range(8)],
    "to_string": lambda c: c.model.to_string(c.model.to_tokens("red digit", prepend_bos=False)[0]) == "red digit",
    "to_tokens": lambda c: same(c.model.to_tokens(c.inputs), c.inputs["input_ids"]),
    "tokenizer": lambda c: c.model.tokenizer is c.model.processor.tokenizer,
    "tokens_to_residual_directions": lambda c: same(
        c.model.tokens_to_residual_directions("red"), c.model.W_U[:, c.model.to_single_token("red")]
    ),
}  # fmt: skip


def last_stream(case: Case) -> str:
    return f"blocks.{case.model.cfg.n_layers - 1}.hook_resid_post"


def part(bias: str) -> str:
    return "mlp" if bias in ("b_in", "b_out") else "attn"


def counted_in_block(case: Case) -> list[str]:
    called: list[str] = []
    with case.model.hooks([(Z, save(called))]):
        case.model(case.inputs)
    case.model(case.inputs)
    return called


def sums_to_stream(parts: Tensor, case: Case) -> bool:
    """True at text: what DeepStack adds to visual tokens between layers is in no part."""
    return same(parts.sum(0)[~case.inputs.tokens.visual], case.cache["resid_post", -1][~case.inputs.tokens.visual])


RED = 5
CACHE_VALUES: dict[str, Callable[[Case], object]] = {
    "accumulated_resid": lambda c: same(c.cache.accumulated_resid(apply_ln=True)[-1] @ c.model.W_U, c.logits),
    "apply_ln_to_stack": lambda c: same(
        c.cache.apply_ln_to_stack(c.cache["resid_pre", 1][None], layer=1)[0],
        c.model.blocks[1].ln1(c.cache["resid_pre", 1]),
    ),
    "apply_slice_to_batch_dim": lambda c: same(c.cache.apply_slice_to_batch_dim([0])[Z], z_of(c)),
    "compute_head_results": lambda c: (c.cache.compute_head_results(), same(
        c.cache["result", 1, "attn"][0, :, 2], z_of(c)[0, :, 2] @ c.model.W_O[1, 2]
    )),
    "decompose_resid": lambda c: sums_to_stream(c.cache.decompose_resid(), c),
    "get_full_resid_decomposition": lambda c: sums_to_stream(c.cache.get_full_resid_decomposition(), c),
    "get_neuron_results": lambda c: same(
        c.cache.get_neuron_results(1)[0, 7, 3], c.cache["post", 1][0, 7, 3] * c.model.W_out[1, 3]
    ),
    "items": lambda c: dict(c.cache.items()) == c.cache.cache_dict,
    "keys": lambda c: [*c.cache.keys()] == [*c.cache.cache_dict],
    "logit_attrs": lambda c: same(
        c.cache.logit_attrs(c.cache.decompose_resid(), RED).sum(0)[~c.inputs.tokens.visual],
        c.logits[~c.inputs.tokens.visual][:, RED],
    ),
    "logit_lens": lambda c: same(c.cache.logit_lens(positions=None).values[-1], c.logits),
    "remove_batch_dim": lambda c: same(c.cache.apply_slice_to_batch_dim([0]).remove_batch_dim()[Z], z_of(c)[0]),
    "stack_activation": lambda c: same(c.cache.stack_activation("z")[1], z_of(c)),
    "stack_head_results": lambda c: sums_to_stream(c.cache.stack_head_results(incl_remainder=True), c),
    "stack_neuron_results": lambda c: same(
        c.cache.stack_neuron_results(2, apply_ln=True, project_output_onto=torch.ones(c.model.cfg.d_model)),
        c.cache.stack_neuron_results(2, apply_ln=True).sum(-1),
    ),
    "to": lambda c: c.cache.apply_slice_to_batch_dim([0]).to("cpu")[Z].device.type == "cpu",
    "toggle_autodiff": lambda c: (c.cache.toggle_autodiff(mode=True), torch.is_grad_enabled())[1],
    "values": lambda c: len([*c.cache.values()]) == len(c.cache.keys()),
}  # fmt: skip


def circuit(case: Case) -> FactoredMatrix:
    return case.model.OV[LAYER, HEAD]


def singular_values(case: Case) -> Tensor:
    return torch.linalg.svdvals(circuit(case).AB)[: case.model.cfg.d_head]


FACTORED_VALUES: dict[str, Callable[[Case], object]] = {
    "AB": lambda c: same(circuit(c).AB, circuit(c).A @ circuit(c).B),
    "BA": lambda c: same(circuit(c).BA, circuit(c).B @ circuit(c).A),
    "S": lambda c: same(circuit(c).S, singular_values(c)),
    "T": lambda c: same(circuit(c).T.AB, circuit(c).AB.T),
    "U": lambda c: same(circuit(c).U.T @ circuit(c).U, torch.eye(c.model.cfg.d_head)),
    "V": lambda c: same(circuit(c).V.T @ circuit(c).V, torch.eye(c.model.cfg.d_head)),
    "Vh": lambda c: same(circuit(c).Vh, circuit(c).V),
    "collapse_l": lambda c: same(circuit(c).collapse_l().norm(), circuit(c).AB.norm()),
    "collapse_r": lambda c: same(circuit(c).collapse_r().norm(), circuit(c).AB.norm()),
    "eigenvalues": lambda c: same(circuit(c).eigenvalues.sum().real, circuit(c).AB.trace()),
    "get_corner": lambda c: same(circuit(c).get_corner(), circuit(c).AB[:3, :3]),
    "make_even": lambda c: same(circuit(c).make_even().AB, circuit(c).AB),
    "ndim": lambda c: (c.model.OV.ndim, circuit(c).ndim) == (4, 2),
    "norm": lambda c: same(c.model.OV.norm()[LAYER, HEAD], circuit(c).AB.norm()),
    "pair": lambda c: same(circuit(c).pair[0], c.model.W_V[LAYER, kv_head(c)]),
    "svd": lambda c: same(c.model.OV.svd()[1][LAYER, HEAD], singular_values(c)),
    "unsqueeze": lambda c: same(circuit(c).unsqueeze(0).AB[0], circuit(c).AB),
}


def check(values: dict[str, Callable[[Case], object]], name: str, case: Case) -> None:
    assert values[name](case) is not False


@pytest.mark.parametrize("name", [name for name, row in MODEL.items() if row.state in ("works", "more")])
def test_members_of_a_model(case: Case, name: str):
    check(VALUES, name, case)


@pytest.mark.parametrize("name", [name for name, row in CACHE.items() if row.state in ("works", "more")])
def test_members_of_a_cache(case: Case, name: str):
    check(CACHE_VALUES, name, case)


@pytest.mark.filterwarnings("ignore:FactoredMatrix.Vh")
@pytest.mark.parametrize("name", FACTORED)
def test_members_of_a_factored_matrix(case: Case, name: str):
    check(FACTORED_VALUES, name, case)


def test_every_member_of_transformerlens_is_in_a_row():
    for kind, names in transformerlens.members().items():
        assert names == TABLES[kind].keys(), kind


def test_refused_names_raise_and_name_the_way_out(case: Case):
    refused = {name for name, row in MODEL.items() if row.state == "refused"}
    parts = {"embed", "pos_embed"}  # which TransformerLens's models have, and its classes do not
    assert refused | parts == REFUSED.keys()
    for name in REFUSED:
        assert not hasattr(case.model, name)
        with pytest.raises(AttributeError, match=rf"HookedMLLM has no {name}: \w+.*no-member"):
            getattr(case.model, name)
    streamed: list[Tensor] = []
    streamer = SimpleNamespace(put=streamed.append, end=lambda: None)
    answer = case.model.generate(case.inputs, streamer=streamer, max_new_tokens=2, do_sample=False)
    assert same(torch.cat([tokens.flatten() for tokens in streamed[1:]]), answer[0, -2:])


@pytest.mark.parametrize("point", REFUSED_POINTS)
def test_refused_hook_points_raise_and_name_the_way_out(case: Case, point: str):
    norm = ("ln1",) if point == "hook_normalized" else ()
    name = utilities.get_act_name(point.removeprefix("hook_"), 1, *norm)
    empty = type(case.cache)({}, case.model)
    for read in (case.model.check_hook_name, empty.__getitem__):
        with pytest.raises((ValueError, KeyError), match=re.escape(REFUSED_POINTS[point])):
            read(name)


def test_refused_functions_of_caches_raise_and_name_the_way_out(case: Case):
    for name in [name for name, row in CACHE.items() if row.state == "refused"]:
        refused = getattr(case.cache, name)
        with pytest.raises(ValueError, match=r"cache\['resid_mid', layer\].*no-parts"):
            refused()


@pytest.fixture(scope="module")
def small() -> HookedMLLM:
    return HookedMLLM(tiny.build("llava"))


def last_logit(logits: Tensor) -> Tensor:
    return logits[0, -1, RED]


@pytest.mark.parametrize("name", [n.partition(".")[2] for n in FUNCTIONS if n.startswith("patching.get_act")])
def test_patching_of_texts_runs_on_token_ids(small: HookedMLLM, name: str):
    text, other = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 8, 7]])
    _, cache = small.run_with_cache(other)
    function: Any = getattr(patching, name)
    if FUNCTIONS[f"patching.{name}"].state == "refused":
        one_head = {} if name.endswith("sources") else {"src_layer": 1, "src_head": 2}
        with pytest.raises(AttributeError, match=r"cl\.path_patch"):
            function(small, text, cache, cache, last_logit, **one_head)
        return
    result = function(small, text, cache, last_logit)
    before, after = last_logit(small(text)), last_logit(small(other))
    assert result.isfinite().all()
    assert not torch.isclose(result, before).all()
    if name.endswith("resid_pre"):
        # The whole stream of the word that differs, in the first layer; nothing differs before it.
        assert_close(result[0, 1], after)
        assert_close(result[0, 0], before)


def test_functions_of_a_text(case: Case, capsys: pytest.CaptureFixture[str]):
    text = "which digit is red ?"
    ids = case.model.to_tokens(text)
    _, cache = case.model.run_with_cache(ids)
    scores = head_detector.detect_head(case.model, text, "previous_token_head")
    one_back = cache["pattern", 1][0, 5].diagonal(-1).sum() / ids.shape[1]
    assert_close(scores[1, 5], one_back)
    _, with_picture = case.model.run_with_cache(case.inputs, remove_batch_dim=True)
    scores = head_detector.detect_head(case.model, case.inputs, "previous_token_head", cache=with_picture)
    assert_close(scores[1, 5], with_picture["pattern", 1][5].diagonal(-1).sum() / case.inputs.shape[1])
    utilities.test_prompt("which digit is", "red", case.model, prepend_space_to_answer=False)
    ranks = case.model(case.model.to_tokens("which digit is"))[0, -1].argsort(descending=True).tolist()
    assert f"('red', {ranks.index(case.model.to_single_token('red'))})" in capsys.readouterr().out
    assert utilities.move_to_and_update_config(case.model, torch.float32, False) is case.model
    assert case.model.cfg.dtype == case.model.hf_model.dtype == torch.float32


def test_singular_vectors(case: Case):
    interpreter = SVDInterpreter(case.model)
    for kind, matrix in {
        "OV": circuit(case).AB,
        "w_out": case.model.W_out[LAYER],
        "w_in": case.model.W_in[LAYER].T * case.model.blocks[LAYER].ln2.weights.gain,
    }.items():
        vectors = interpreter.get_singular_vectors(kind, LAYER, 2, head_index=HEAD if kind == "OV" else None)
        expected = torch.linalg.svd(matrix).Vh[:2] @ case.model.W_U
        assert_close(vectors[:, 0].abs(), expected.T.abs(), atol=1e-4, rtol=1e-4)


def test_stacks_of_hybrid_models_say_which_layers_they_have():
    model = HookedMLLM(tiny.build("qwen3_5"))
    with pytest.warns(UserWarning, match=r"W_Q is that of layers 1, 3, in this order"):
        stack = model.W_Q
    assert stack.layers == [1, 3]
    assert same(stack[1], model.blocks[3].attn.W_Q)  # pyright: ignore
    assert model.all_head_labels == [str(head) for head in model.heads]
    assert model.layer_types() == ["mlp", "attn+mlp"] * 2
    _, cache = model.run_with_cache(tiny.batch("qwen3_5"))
    for run in (cache.stack_head_results, cache.compute_head_results, cache.get_full_resid_decomposition):
        with pytest.raises(ValueError, match="layer 0 has no softmax attention"):
            run()
    with pytest.raises(KeyError, match="layer 0 has no softmax attention"):
        _ = cache["pattern", 0]
    with pytest.raises(KeyError, match="names_filter that left it out"):
        _ = model.run_with_cache(tiny.batch("qwen3_5"), names_filter="hook_embed")[1]["z", 1]


def test_mixtures_of_experts_have_no_neurons():
    model, inputs = HookedMLLM(tiny.build("qwen3_vl_moe")), tiny.batch("qwen3_vl_moe")
    experts = r"layer 0 \(Qwen3VLMoeTextSparseMoeBlock\) is a mixture of experts"
    with pytest.raises(ValueError, match=experts):
        _ = model.W_in
    with pytest.raises(ValueError, match=experts):
        model.run_with_cache(inputs, names_filter="blocks.0.mlp.hook_pre")
    _, cache = model.run_with_cache(inputs)
    for run in (cache.get_full_resid_decomposition, lambda: cache.get_neuron_results(0)):
        with pytest.raises(ValueError, match=rf"{experts}.*blocks\.0\.mlp\.hook_expert_weights"):
            run()
    assert model.layer_types() == ["attn+mlp"] * model.cfg.n_layers
    assert cache["blocks.0.mlp.hook_expert_weights"].shape == (*inputs["input_ids"].shape, 4)


def test_token_ids_without_their_pictures_or_padding_are_refused(case: Case):
    with pytest.raises(ValueError, match=r"hold placeholders of pictures \(image_token_id=\d+\).*model\.prepare"):
        case.model(case.inputs["input_ids"])
    ids = case.model.to_tokens(["which digit is red ?", "red ?"])
    with pytest.raises(ValueError, match="are padded"):
        case.model(ids)
    alone = case.model(case.model.to_tokens("red ?"))
    mask = (ids != case.model.tokenizer.pad_token_id).long()
    assert_close(case.model({"input_ids": ids, "attention_mask": mask})[1, -1], alone[0, -1])
