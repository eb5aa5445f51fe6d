"""Hooks and caches, tested as TransformerLens tests its own, on HookedMLLM and on TransformerLens's bridge."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import ActivationCache

from corelens import HookedMLLM
from tests.helpers import tiny
from tests.helpers.bridges import bridge_of

Z, RESID = "blocks.1.attn.hook_z", "blocks.1.hook_resid_pre"
TOKENS = torch.tensor([[1, 5, 6, 7, 8]])
TWO = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 3, 4, 5]])


@pytest.fixture(scope="module")
def models(toy_model: HookedMLLM) -> dict[str, Any]:
    return {"corelens": HookedMLLM(tiny.build("llava")), "TransformerLens": bridge_of("llava", toy_model.tokenizer)}


@pytest.fixture(params=["corelens", "TransformerLens"])
def model(request: pytest.FixtureRequest, models: dict[str, Any]) -> Iterator[Any]:
    model = models[request.param]
    yield model
    model.reset_hooks(including_permanent=True)


class Counter:
    """A hook that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tensor: Tensor, hook: Any) -> None:
        self.calls += 1


def zero(tensor: Tensor, hook: Any) -> Tensor:
    return torch.zeros_like(tensor)


def named(model: Any, names: Iterable[str]) -> set[str]:
    """Names of hook points under which we have them: TransformerLens's bridge has most twice."""
    twice = set() if isinstance(model, HookedMLLM) else {name for name in names if ".hook_in" in name or ".o." in name}
    return {*names} - twice


def counts_in(model: Any, add: Callable[[Counter], object]) -> int:
    """Calls of a hook in a pass, once it was added."""
    add(count := Counter())
    model(TOKENS)
    return count.calls


# Hooks


def test_hooks_of_a_context_act_in_it_alone(model: Any):
    count = Counter()
    with model.hooks(fwd_hooks=[(Z, count)]):
        model(TOKENS)
        model(TOKENS)
    model(TOKENS)
    assert count.calls == 2
    assert not model.hook_dict[Z].has_hooks()


def test_hooks_are_removed_when_a_context_fails(model: Any):
    with pytest.raises(RuntimeError, match="on purpose"), model.hooks(fwd_hooks=[(Z, Counter())]):
        raise RuntimeError("on purpose")
    assert not model.hook_dict[Z].has_hooks()


def test_a_hook_that_fails_stops_the_pass_and_is_removed(model: Any):
    def fail(tensor: Tensor, hook: Any) -> None:
        raise RuntimeError(hook.name)

    with pytest.raises(RuntimeError, match=r"blocks\.1\.attn"):
        model.run_with_hooks(TOKENS, fwd_hooks=[(Z, fail)])
    assert not model.hook_dict[Z].has_hooks()


def test_contexts_nest(model: Any):
    outer, inner = Counter(), Counter()
    with model.hooks(fwd_hooks=[(Z, outer)]):
        with model.hooks(fwd_hooks=[(Z, inner)]):
            model(TOKENS)
        model(TOKENS)
    assert (outer.calls, inner.calls) == (2, 1)


def test_a_context_leaves_hooks_that_were_there(model: Any):
    count = Counter()
    model.add_hook(Z, count)
    with model.hooks(fwd_hooks=[(Z, Counter())]):
        model(TOKENS)
    model(TOKENS)
    assert count.calls == 2


def test_hooks_stay_where_they_are_not_to_be_reset(model: Any):
    count = Counter()
    model.run_with_hooks(TOKENS, fwd_hooks=[(Z, count)], reset_hooks_end=False)
    model(TOKENS)
    assert count.calls == 2
    model.reset_hooks()
    model(TOKENS)
    assert count.calls == 2


def test_permanent_hooks_stay_until_they_are_named(model: Any):
    count = Counter()
    model.add_perma_hook(Z, count)
    model.reset_hooks()
    model.run_with_hooks(TOKENS, fwd_hooks=[(Z, Counter())])
    model(TOKENS)
    assert count.calls == 2
    model.reset_hooks(including_permanent=True)
    model(TOKENS)
    assert count.calls == 2


def test_the_same_hook_twice_acts_twice(model: Any):
    assert counts_in(model, lambda count: (model.add_hook(Z, count), model.add_hook(Z, count))) == 2


def test_hooks_act_in_the_order_in_which_they_were_added_but_for_prepended_ones(models: dict[str, Any]):
    """As in TransformerLens's `HookedRootModule`; its bridge does not prepend."""
    model = models["corelens"]
    called: list[int] = []
    for number, prepend in ((0, False), (1, False), (2, True)):
        model.add_hook(Z, lambda tensor, hook, number=number: called.append(number), prepend=prepend)
    model(TOKENS)
    model.reset_hooks()
    assert called == [2, 0, 1]


def test_a_hook_sees_what_the_one_before_returned(model: Any):
    seen: list[Tensor] = []
    model.run_with_hooks(TOKENS, fwd_hooks=[(Z, zero), (Z, lambda tensor, hook: seen.append(tensor.clone()))])
    assert not seen[0].any()


def test_hooks_that_return_none_change_nothing_and_others_replace(model: Any):
    plain = model(TOKENS)
    assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=[(Z, Counter())]), plain)
    assert not torch.allclose(model.run_with_hooks(TOKENS, fwd_hooks=[(Z, zero)]), plain, atol=1e-3)
    assert torch.equal(model(TOKENS), plain)


def test_names_are_strings_or_filters(model: Any):
    everywhere = lambda name: name.endswith("attn.hook_z")  # noqa: E731
    assert counts_in(model, lambda count: model.add_hook(everywhere, count)) == model.cfg.n_layers
    model.reset_hooks()
    called: list[str] = []
    model.run_with_hooks(TOKENS, fwd_hooks=[(everywhere, lambda tensor, hook: called.append(hook.layer()))])
    assert called == [*range(model.cfg.n_layers)]


def test_hooks_know_their_point_and_keep_a_context(model: Any):
    def keep(tensor: Tensor, hook: Any) -> None:
        hook.ctx["shape"] = tensor.shape

    with model.hooks(fwd_hooks=[(Z, keep)], clear_contexts=True):
        model(TOKENS)
        assert model.hook_dict[Z].ctx["shape"] == (1, 5, model.cfg.n_heads, model.cfg.d_head)
    assert "shape" not in model.hook_dict[Z].ctx


def test_lists_of_hooks_have_those_that_are_attached(model: Any):
    assert not model.list_hooks()
    model.add_hook(Z, Counter())
    assert len(named(model, model.list_hooks())) == 1
    model.remove_all_hook_fns()
    assert not model.list_hooks()


# Backward hooks


def test_backward_hooks_get_the_gradient_and_leave_with_their_context(model: Any):
    gradients: list[Tensor] = []
    with model.hooks(bwd_hooks=[(RESID, lambda gradient, hook: gradients.append(gradient.clone()))]):
        model(TOKENS)[0, -1, 7].backward()
    model(TOKENS)[0, -1, 7].backward()
    assert len(gradients) == 1
    assert gradients[0].shape == (1, 5, model.cfg.d_model)
    assert gradients[0].any()


def test_forward_hooks_of_a_direction_are_removed_alone(model: Any):
    forward, backward = Counter(), Counter()
    model.add_hook(RESID, forward)
    model.add_hook(RESID, backward, dir="bwd")
    model.reset_hooks(direction="fwd")
    model(TOKENS)[0, -1, 7].backward()
    assert (forward.calls, backward.calls) == (0, 1)


def test_caches_hold_gradients_of_the_loss(model: Any):
    _, cache = model.run_with_cache(TOKENS, return_type="loss", incl_bwd=True, names_filter=RESID)
    assert named(model, cache.keys()) == {RESID, f"{RESID}_grad"}
    gradients: list[Tensor] = []
    with model.hooks(bwd_hooks=[(RESID, lambda gradient, hook: gradients.append(gradient.clone()))]):
        model(TOKENS, return_type="loss").backward()
    assert_close(cache[f"{RESID}_grad"], gradients[0])


# Caches


FILTERS: dict[str, Any] = {
    "a name": Z,
    "a list": [Z, RESID],
    "a function": lambda name: name in (Z, RESID),
}


@pytest.mark.parametrize("kind", FILTERS)
def test_caches_hold_what_a_filter_names(model: Any, kind: str):
    logits, cache = model.run_with_cache(TOKENS, names_filter=FILTERS[kind])
    assert named(model, cache.keys()) == ({Z} if kind == "a name" else {Z, RESID})
    assert torch.equal(logits, model(TOKENS))
    assert not model.hook_dict[Z].has_hooks()


def test_caches_are_read_by_short_names_and_count_layers_from_the_end(model: Any):
    _, cache = model.run_with_cache(TOKENS)
    last = model.cfg.n_layers - 1
    assert isinstance(cache, ActivationCache)
    assert cache["z", 1] is cache[Z]
    assert cache["resid_post", -1] is cache["resid_post", last]
    assert cache["embed"] is cache["hook_embed"]
    assert Z in cache.keys()  # noqa: SIM118
    assert len(cache) == len(cache.keys()) == len([*cache.values()]) == len([*cache.items()])


def test_caching_hooks_do_what_run_with_cache_does(model: Any):
    _, cache = model.run_with_cache(TOKENS, names_filter=[Z, RESID])
    kept, forward, backward = model.get_caching_hooks([Z, RESID])
    model.run_with_hooks(TOKENS, fwd_hooks=forward)
    assert not backward
    assert_close(kept, cache.cache_dict)
    added = model.add_caching_hooks([Z, RESID])
    model(TOKENS)
    assert_close(added, cache.cache_dict)
    model.reset_hooks()
    model(TWO)
    assert len(added[Z]) == 1


def test_a_cache_is_taken_under_the_hooks_of_a_context(model: Any):
    with model.hooks(fwd_hooks=[(RESID, zero)]):
        _, cache = model.run_with_cache(TOKENS)
        assert not cache[RESID].any()
        assert model.hook_dict[RESID].has_hooks()
    _, cache = model.run_with_cache(TOKENS)
    assert cache[RESID].any()


def test_caches_keep_no_graph(model: Any):
    _, cache = model.run_with_cache(TOKENS)
    assert not any(value.requires_grad for value in cache.values())


def test_batch_axes_are_dropped_at_once_or_later(model: Any):
    _, dropped = model.run_with_cache(TOKENS, remove_batch_dim=True)
    _, cache = model.run_with_cache(TOKENS)
    assert cache.has_batch_dim
    assert not dropped.has_batch_dim
    assert torch.equal(dropped[Z], cache[Z][0])
    assert torch.equal(cache.remove_batch_dim()[Z], dropped[Z])


def test_batch_axes_of_several_samples_are_not_dropped(models: dict[str, Any]):
    _, cache = models["corelens"].run_with_cache(TWO)
    with pytest.raises(AssertionError):
        cache.remove_batch_dim()
    with pytest.raises(ValueError, match="needs a batch of one, and this one has 2 samples"):
        models["corelens"].run_with_cache(TWO, remove_batch_dim=True)


def test_caches_move(model: Any):
    _, cache = model.run_with_cache(TOKENS, device="cpu", names_filter=Z)
    assert cache.to("meta")[Z].is_meta


POSITIONS: dict[str, Any] = {"one": -1, "a list": [0, 2], "a slice": (1, 4)}


@pytest.mark.parametrize("kind", POSITIONS)
def test_caches_hold_some_positions(model: Any, kind: str):
    _, cache = model.run_with_cache(TOKENS, names_filter=[Z, RESID])
    _, sliced = model.run_with_cache(TOKENS, names_filter=[Z, RESID], pos_slice=POSITIONS[kind])
    rows = {"one": [4], "a list": [0, 2], "a slice": [1, 2, 3]}[kind]
    for name in (Z, RESID):
        assert torch.equal(sliced[name], cache[name][:, rows])


def test_a_pass_that_stops_returns_the_stream_and_caches_no_later_layer(model: Any):
    _, whole = model.run_with_cache(TOKENS)
    stream, cache = model.run_with_cache(TOKENS, stop_at_layer=1)
    assert torch.equal(stream, whole["resid_pre", 1])
    assert torch.equal(cache["resid_post", 0], whole["resid_post", 0])
    assert not any(name.startswith(("blocks.1.attn", "blocks.2.", "ln_final")) for name in cache.keys())  # noqa: SIM118
    assert torch.equal(model(TOKENS, stop_at_layer=-1), whole["resid_pre", model.cfg.n_layers - 1])


def test_return_types(model: Any):
    logits, loss = model(TOKENS, return_type="both")
    assert torch.equal(model(TOKENS, return_type="logits"), logits)
    assert model(TOKENS, return_type=None) is None
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], TOKENS[0, 1:])
    assert_close(loss, expected)
    assert_close(model(TOKENS, return_type="loss"), expected)


def test_samples_of_a_batch_are_sliced(model: Any):
    _, cache = model.run_with_cache(TWO)
    one = cache.apply_slice_to_batch_dim(1)
    assert not one.has_batch_dim
    assert torch.equal(one[Z], cache[Z][1])
    assert torch.equal(cache.apply_slice_to_batch_dim(slice(0, 1))[Z], cache[Z][:1])


@pytest.mark.parametrize(("incl_mid", "mlp_input"), [(False, False), (True, False), (True, True)])
def test_accumulated_streams_have_labels(model: Any, incl_mid: bool, mlp_input: bool):
    _, cache = model.run_with_cache(TOKENS)
    streams, labels = cache.accumulated_resid(layer=1, incl_mid=incl_mid, mlp_input=mlp_input, return_labels=True)
    middle = ["0_mid"] if incl_mid else []
    assert labels == ["0_pre", *middle, "1_pre", *(["1_mid"] if mlp_input else [])]
    assert torch.equal(streams[0], cache["resid_pre", 0])
    assert torch.equal(streams[-1], cache["resid_mid" if mlp_input else "resid_pre", 1])


def test_parts_of_the_stream_are_chosen(model: Any):
    _, cache = model.run_with_cache(TOKENS)
    for mode, parts in (("all", 1 + 2 * 2), ("attn", 1 + 2), ("mlp", 1 + 2)):
        assert len(cache.decompose_resid(layer=2, mode=mode)) == parts
    assert_close(cache.decompose_resid(layer=2).sum(0), cache["resid_pre", 2])
    assert_close(cache.decompose_resid(layer=2, pos_slice=-1), cache.decompose_resid(layer=2)[:, :, -1])


def test_heads_add_up_to_what_attention_writes(model: Any):
    _, cache = model.run_with_cache(TOKENS)
    heads, labels = cache.stack_head_results(layer=1, return_labels=True)
    assert labels == [f"L0H{head}" for head in range(model.cfg.n_heads)]
    assert_close(heads.sum(0), cache["attn_out", 0])


# Names that do not exist


def test_names_that_do_not_exist_raise_an_error(models: dict[str, Any]):
    """TransformerLens takes filters and lists that select nothing, and caches nothing."""
    model = models["corelens"]
    for add in (
        lambda: model.add_hook("blocks.9.attn.hook_z", zero),
        lambda: model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_z", zero)]),
        lambda: model.run_with_cache(TOKENS, names_filter="hook_z"),
        lambda: model.run_with_cache(TOKENS, names_filter=[Z, "hook_z"]),
    ):
        with pytest.raises(ValueError, match="there is no hook point"):
            add()
    with pytest.raises(ValueError, match="the filter of names selects none"):
        model.run_with_cache(TOKENS, names_filter=lambda name: name == "hook_z")
    assert not model.list_hooks()
