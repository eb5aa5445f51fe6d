"""Metrics of a scan against loops over whole patterns, and the cost of a pass."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import ActivationCache

from corelens import HookedMLLM, Sample, metrics, scan
from corelens.causal.answers import answer_positions, answer_targets, append_answers, greedy_answers
from corelens.experiments.head_metrics import OTHER_QUESTIONS
from corelens.experiments.layer_scores import DESCRIPTIVE_METRICS
from corelens.experiments.scan import scan_metrics
from corelens.inputs.prepare import PreparedInputs
from corelens.metrics import Metric
from tests.helpers import processors, tiny
from tests.helpers.questions import samples


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def vlm(request: pytest.FixtureRequest) -> HookedMLLM:
    """A tiny random model that reads pictures."""
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def full_pass(model: HookedMLLM, inputs: PreparedInputs) -> tuple[Tensor, ActivationCache]:
    """Logits and all activations of a pass, S x S patterns included."""
    with torch.no_grad():
        return model.run_with_cache(inputs)


def metric_by_loops(model: HookedMLLM, metric: Metric, sample: Sample, question: str | None = None) -> Tensor:
    """A metric of one sample from whole patterns, head by head, without its baseline.

    score[l, h] = mean over queries q of sum over evidence keys k of pattern[l, h, q, k] * weight[l, h, q, k], where the
    weight is 1, the norm of v[k] W_O[h], or its product with the unembedding of the token that q predicts.
    """
    inputs = model.prepare(list(sample.images), question or sample.question)
    evidence = torch.stack([inputs.tokens.in_box(region.box) for region in sample.evidence]).any(0)
    prompt_queries = inputs.tokens.question if metric.queries == "question" else inputs.tokens.last
    n = evidence.shape[1]
    generates = metric.queries in ("generated", "uncertain")
    full = append_answers(model, inputs, greedy_answers(model, inputs, 4) if generates else [sample.answer])
    logits, cache = full_pass(model, full)
    positions, targets = answer_positions(full.tokens), answer_targets(full)
    queries = torch.nn.functional.pad(prompt_queries, (0, full["input_ids"].shape[1] - n))
    if metric.queries in ("answer", "generated"):
        queries = positions
    if metric.queries == "uncertain":
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        queries = positions & (entropy == entropy[positions].max())
    scores = torch.zeros(3, 4)
    for layer in range(3):
        sinks = torch.zeros(1, n, dtype=torch.bool)
        if metric.sinks == "excluded":
            resid = cache["resid_pre", layer][:, :n]
            sinks = resid.abs().amax(-1) > 4 * resid.square().mean(-1).sqrt()
        for head in range(4):
            rows = []
            for query in queries[0].nonzero().flatten().tolist():
                total = torch.tensor(0.0)
                for key in (evidence & ~sinks)[0].nonzero().flatten().tolist():
                    weighted = cache["pattern", layer][0, head, query, key]
                    output = cache["v", layer][0, key, head // 2] @ model.blocks[layer].attn.W_O[head]
                    if metric.contribution == "write_size":
                        weighted = weighted * output.norm()
                    if metric.contribution == "write_answer":
                        token = targets[0, query] if targets[0, query] >= 0 else full["input_ids"][0, n]
                        weighted = weighted * (model.hf_model.get_output_embeddings().weight[token] @ output)
                    total = total + weighted
                rows.append(total)
            scores[layer, head] = torch.stack(rows).mean()
    return scores


AXES = [
    dict(queries="last"),
    dict(queries="question"),
    dict(queries="answer"),
    dict(queries="generated"),
    dict(queries="uncertain"),
    dict(contribution="write_size", queries="question"),
    dict(contribution="write_answer", queries="last"),
    dict(contribution="write_answer", queries="answer"),
    dict(contribution="write_answer", queries="question"),
    dict(baseline="minus_null", queries="question"),
    dict(baseline="over_generic", queries="last"),
    dict(sinks="excluded", queries="last"),
]


@torch.no_grad()
def test_every_axis_is_the_metric_on_whole_patterns(vlm: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    # The models are too narrow for a sink at the published threshold.
    find = metrics.attention_sinks
    monkeypatch.setattr(metrics, "attention_sinks", lambda resid: find(resid, 4))
    chosen = [Metric(f"m{number}", **axes) for number, axes in enumerate(AXES)]  # pyright: ignore
    scores = scan_metrics(vlm, samples(), chosen, batch_size=2, max_new_tokens=4)
    for metric in chosen:
        assert scores[metric.name].samples == ("s0", "s1", "s2", "s3", "s4")
        for index, sample in enumerate(samples()):
            expected = metric_by_loops(vlm, metric, sample)
            if metric.baseline == "minus_null":
                expected = expected - metric_by_loops(vlm, metric, sample, OTHER_QUESTIONS["minus_null"])
            if metric.baseline == "over_generic":
                expected = expected / metric_by_loops(vlm, metric, sample, OTHER_QUESTIONS["over_generic"])
            assert_close(scores[metric.name].values[index], expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_descriptions_are_their_functions_on_whole_patterns(vlm: HookedMLLM):
    scores = scan_metrics(vlm, samples(3), list(DESCRIPTIVE_METRICS), batch_size=3)
    for index, sample in enumerate(samples(3)):
        inputs = vlm.prepare(list(sample.images), sample.question)
        _, cache = full_pass(vlm, inputs)
        tokens = inputs.tokens

        for layer in range(3):
            rows = cache["pattern", layer]
            W_O: Tensor = vlm.blocks[layer].attn.W_O  # pyright: ignore
            write_norms = torch.einsum("bphd, hdm -> bphm", cache["z", layer], W_O).norm(dim=-1)
            expected = {
                "entropy": metrics.attention_entropy(rows, tokens.last),
                "concentration": metrics.concentration(rows, tokens.last),
                "distance": metrics.attention_distance(rows, tokens.last, torch.arange(rows.shape[-1])[None]),
                "visual_share": rows[:, :, -1, tokens.image[0]].sum(-1),
                "vision_heads": rows[:, :, tokens.question[0]][..., tokens.image[0]].sum(-1).mean(-1),
                "sink_share": torch.zeros(1, 4),
                "write_norm": write_norms[:, -1],
                "question_write_norm": write_norms[tokens.question].mean(0, keepdim=True),
                "spatial_entropy": metrics.spatial_entropy(tokens.grid(rows[0, :, -1]))[None],
            }
            for name, values in expected.items():
                assert_close(scores[name].values[index, layer], values[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_evidence_in_fractions(vlm: HookedMLLM):
    scores = scan(vlm, samples(2), rule="fraction")
    assert (scores.choices["rule"], scores.choices["queries"]) == ("fraction", "question")
    for index, sample in enumerate(samples(2)):
        inputs = vlm.prepare(list(sample.images), sample.question)
        _, cache = full_pass(vlm, inputs)
        covers = torch.stack([inputs.tokens.in_box(e.box, "fraction") for e in sample.evidence]).amax(0)
        expected = metrics.retrieval_attention_mass(cache["pattern", 1], covers, inputs.tokens.question)
        assert_close(scores.values[index, 1], expected[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("metrics", [["ram"], ["ram", "vrh", "locos", "entropy"]])
def test_one_pass_serves_all_measures_and_nothing_square_is_made(vlm: HookedMLLM, metrics: list[str]):
    """One forward pass, and no tensor with two axes as long as the sequence."""
    # Not the first: twice its query rows are as many as its positions.
    sample = samples(2)[1]
    n = vlm.prepare(list(sample.images), sample.question)["input_ids"].shape[1]

    class NoSquares(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, list | tuple) else [out]:
                if isinstance(tensor, torch.Tensor):
                    assert sum(n <= size <= n + 1 for size in tensor.shape) < 2, f"{func} made {tuple(tensor.shape)}"
            return out

    passes = []
    with vlm.hf_model.register_forward_pre_hook(lambda *args: passes.append(1)), NoSquares():
        scan_metrics(vlm, [sample], metrics)
    assert len(passes) == 1


def test_what_is_wrong_with_the_model_is_not_said_of_the_samples(vlm: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(vlm), "unembed", None)
    with pytest.raises(ValueError, match="has no unembedding, so no token has a direction"):
        scan(vlm, samples(2), "answer_ram")
