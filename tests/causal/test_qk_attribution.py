"""QK attribution against loops over parts with formulas of norms and rotation, and its sums on every architecture."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens import Head, HookedMLLM, ablate, qk_attribution, toy
from tests.helpers import tiny
from tests.helpers.prompts import QUESTION, family_model, random_picture, two_prompts

LAYER, HEAD, QUERY, KEYS = 2, 3, -1, (-6, -3, -2)


def first_sample(name: str) -> dict[str, Tensor]:
    """The first of the two samples of a batch."""
    batch = tiny.batch(name, padded=False)
    if len(batch.get("pixel_values", ())) == 1:  # minicpmv: patches of all pictures in one row
        batch["pixel_values"] = batch["pixel_values"].mT.chunk(2, -2)[0].mT
        return {name: value if name == "pixel_values" else value[:1] for name, value in batch.items()}
    return {name: value[: len(value) // 2] if value.ndim else value for name, value in batch.items()}


def masks(n: int) -> tuple[Tensor, Tensor]:
    query, keys = torch.zeros(2, 1, n, dtype=torch.bool)
    query[0, QUERY] = True
    keys[0, list(KEYS)] = True
    return query, keys


def rms(x: Tensor) -> Tensor:
    return (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2)
    return x * cos + torch.cat([-second, first]) * sin


class Loops:
    """The same by loops, of models with RMSNorms and rotary positions; Gemma's gains are one plus the weight."""

    def __init__(self, model: HookedMLLM, inputs: Any, layer: int):
        self.layers: list[Any] = [site.block for site in model.hf_layers]
        self.gemma = "Gemma" in type(self.layers[0]).__name__
        rotation = []
        handle = self.layers[layer].self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: rotation.append(kwargs["position_embeddings"]), with_kwargs=True
        )
        _, self.cache = model.run_with_cache(inputs)
        handle.remove()
        ((self.cos, self.sin),) = rotation
        self.attn, self.layer = self.layers[layer].self_attn, layer

    def gain(self, norm: Any) -> Tensor:
        return norm.weight + 1 if self.gemma else norm.weight

    def parts(self) -> dict[str, Tensor]:
        parts = {"embedding": self.cache["resid_pre", 0][0]}
        for number, layer in enumerate(self.layers[: self.layer]):
            z = self.cache["z", number][0]
            written = {}
            for head in range(z.shape[1]):
                columns = slice(head * z.shape[2], (head + 1) * z.shape[2])
                written[f"L{number}H{head}"] = z[:, head] @ layer.self_attn.o_proj.weight[:, columns].T
            if self.gemma:
                scale = rms(torch.stack([*written.values()]).sum(0))
                gain = self.gain(layer.post_attention_layernorm)
                written = {name: value / scale * gain for name, value in written.items()}
            parts |= written | {f"L{number} MLP": self.cache["mlp_out", number][0]}
            between = self.cache["resid_pre", number + 1][0] - self.cache["resid_post", number][0]
            if between.any():
                parts[f"after L{number}"] = between
        return parts

    def vector(self, part: Tensor | None, position: int, kind: str, head: int) -> Tensor:
        """Query or key of a part of the stream, or of the bias, at one position."""
        projection = getattr(self.attn, f"{kind}_proj")
        width = self.attn.head_dim
        rows = slice(head * width, (head + 1) * width)
        norm, whole = self.layers[self.layer].input_layernorm, self.cache["resid_pre", self.layer][0, position]

        def project(x: Tensor) -> Tensor:
            return projection.weight[rows] @ (x / rms(whole) * self.gain(norm))

        bias = 0 if projection.bias is None else projection.bias[rows]
        vector = project(part[position]) if part is not None else bias + torch.zeros(width)
        if hasattr(self.attn, f"{kind}_norm"):
            gain = self.gain(getattr(self.attn, f"{kind}_norm"))
            vector = vector / rms(project(whole) + bias) * gain
        return rotated(vector, self.cos[0, position], self.sin[0, position])


@pytest.mark.parametrize("name", ["corelens/toy", "corelens/toy-natural", "llava", "qwen2_vl", "qwen3_vl", "gemma3"])
def test_shares_are_those_of_a_loop_and_sum_to_the_logit(name: str):
    if name.startswith("corelens/"):
        model = HookedMLLM.from_pretrained(name)
        sample = next(toy.scenes(1, seed=0))
        inputs: Any = model.prepare(sample.images[0], sample.question)
    else:
        model, inputs = HookedMLLM(tiny.build(name)), first_sample(name)
    query, keys = masks(inputs["input_ids"].shape[1])
    found = qk_attribution(model, inputs, Head(LAYER, HEAD), query, keys)
    with torch.no_grad():
        loops = Loops(model, inputs, LAYER)
        parts: dict[str, Tensor | None] = {**loops.parts()}
        group = loops.attn.num_key_value_groups
        queries = parts | {"b_Q": None} if loops.attn.q_proj.bias is not None else parts
        scaling = loops.attn.scaling
        assert found.query_parts == tuple(queries)
        expected = torch.zeros_like(found.values)
        for i, query_part in enumerate(queries.values()):
            of_query = loops.vector(query_part, QUERY, "q", HEAD)
            for k, key in enumerate(KEYS):
                for j, name_of_key in enumerate(found.key_parts):
                    of_key = loops.vector(parts.get(name_of_key), key, "k", HEAD // group)
                    expected[i, k, j] = scaling * (of_query @ of_key)
    assert len(found.query_parts) > 6
    assert_close(found.values, expected, atol=1e-5, rtol=1e-4)
    logits = loops.cache["attn_scores", LAYER][0, HEAD, QUERY, list(KEYS)]
    assert_close(found.values.sum((0, 2)), logits, atol=1e-5, rtol=1e-4)
    assert_close(found.scores, logits, atol=1e-5, rtol=1e-4)


REFUSED = {
    "chameleon": "gain of its own for every head",
    **dict.fromkeys(("gemma3n", "glm5_next", "hy_v4_vl"), "it is no one sum"),
    "pi0": "positions, which are not the",
    "mllama": "attends to an encoder",
    **dict.fromkeys(
        ("blip-2", "instructblip", "instructblipvideo", "inkling2", "kosmos-2", "kosmos-2.5", "nemotron_h_omni",
         "pix2struct", "pp_formulanet", "qwen4_exp", "t5gemma2", "udop"),
        "which norm of .* stands before its attention is not known"
    ),
}  # fmt: skip
"""Architectures whose last layer's logits are not divided, and the reason that the error names."""


@pytest.mark.filterwarnings("ignore:the indexer of minimax", "ignore:transformers runs the vision encoder of phi4")
@pytest.mark.parametrize("name", [name for name in tiny.ARCHITECTURES if name not in tiny.NOT_HOOKED])
def test_shares_sum_to_the_logits_of_every_architecture_or_the_error_says_why_not(name: str):
    model, inputs = HookedMLLM(tiny.build(name)), first_sample(name)
    head = [head for head in model.heads if head.head == 1][-1]
    query, keys = torch.zeros(2, *inputs.get("decoder_input_ids", inputs.get("input_ids")).shape, dtype=torch.bool)
    query[:, -1] = True
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            qk_attribution(model, inputs, head, query, query)
        return
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=model.attn_names("pattern"))
    # The keys of diffusion_gemma begin with those of its prompt, which are another sequence.
    keys[0, cache["pattern", head.layer][0, 1, -1, -keys.shape[1] :].topk(3).indices] = True
    found = qk_attribution(model, inputs, head, query, keys)
    size = found.values.abs().sum((0, 2))
    assert_close(found.values.sum((0, 2)) / size, found.scores / size, atol=1e-5, rtol=1e-4)
    assert len(found.query_parts) >= 2


def test_against_takes_off_the_mean_of_other_keys(toy_model: HookedMLLM):
    sample = next(toy.scenes(1, seed=1))
    inputs = toy_model.prepare(sample.images[0], sample.question)
    box = inputs.tokens.in_box(sample.evidence[0].box)
    others = inputs.tokens.image & ~box
    found = qk_attribution(toy_model, inputs, Head(3, 14), "last", box, others)
    of_box, of_others = (qk_attribution(toy_model, inputs, Head(3, 14), "last", keys) for keys in (box, others))
    assert_close(found.values, of_box.values - of_others.values.mean(1, keepdim=True), atol=1e-4, rtol=1e-4)
    assert_close(found.scores, of_box.scores - of_others.scores.mean(), atol=1e-4, rtol=1e-4)


def test_the_table_has_the_largest_pairs_by_name(toy_model: HookedMLLM):
    inputs = toy_model.prepare(next(toy.scenes(1, seed=1)).images[0], "what digit is red ?")
    found = qk_attribution(toy_model, inputs, Head(2, 10), "last", inputs.tokens.image)
    rows = found.table(5)
    assert [abs(row["share"]) for row in rows] == sorted(found.values.abs().flatten().tolist())[:-6:-1]
    words: Any = toy_model.to_str_tokens(inputs)
    names = {f"{part} at {words[position]}" for part in found.key_parts for position in found.positions.tolist()}
    assert {row["key"] for row in rows} <= names
    assert all(row["query"].endswith(f" at {words[-1]!r}") for row in rows)
    assert found.to_frame(5).to_dict("records") == rows


def test_under_an_intervention_it_is_of_the_pass_with_it(toy_model: HookedMLLM):
    inputs = toy_model.prepare(next(toy.scenes(1, seed=1)).images[0], "what digit is red ?")
    plain = qk_attribution(toy_model, inputs, Head(2, 10), "last", inputs.tokens.image)
    with toy_model.hooks(fwd_hooks=ablate([Head(0, 12)], positions="last")):
        found = qk_attribution(toy_model, inputs, Head(2, 10), "last", inputs.tokens.image)
    part = found.query_parts.index("L0H12")
    assert not found.values[part].any()
    assert plain.values[part].any()
    assert_close(found.values.sum((0, 2)), found.scores, atol=1e-4, rtol=1e-4)


def test_bfloat16_has_a_part_for_its_rounding():
    model = HookedMLLM(tiny.build("llava", dtype=torch.bfloat16))
    inputs = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in first_sample("llava").items()
    }
    found = qk_attribution(model, inputs, Head(2, 1), *masks(inputs["input_ids"].shape[1]))
    assert found.query_parts[-1] == "rounding"
    assert_close(found.values.sum((0, 2)), found.scores, atol=0.05, rtol=0.05)


def test_what_is_not_one_query_of_one_prompt_is_refused():
    model = family_model("llava")
    inputs = model.prepare(random_picture(0), QUESTION)
    image = inputs.tokens.image
    first = image & (image.cumsum(-1) == 1)
    with pytest.raises(ValueError, match=r"query selects \d+ positions, and an attribution is of one"):
        qk_attribution(model, inputs, Head(1, 0), "question", image)
    with pytest.raises(ValueError, match="keys selects no position"):
        qk_attribution(model, inputs, Head(1, 0), "last", image & ~image)
    with pytest.raises(ValueError, match=r"L1H0 cannot attend from position \d+ to position \d+, which `against`"):
        qk_attribution(model, inputs, Head(1, 0), first, first, inputs.tokens.question)
    with pytest.raises(ValueError, match="L9H0 does not exist"):
        qk_attribution(model, inputs, Head(9, 0), "last", image)
    two = two_prompts(model)
    with pytest.raises(ValueError, match="of one whole prompt, and these are 2"):
        qk_attribution(model, two, Head(1, 0), "last", two.tokens.image)
