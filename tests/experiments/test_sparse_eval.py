"""Accuracy and attention recall under plans."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from corelens import HookedMLLM, toy
from corelens.experiments.sparse_eval import attention_recall, run_sparse_eval
from corelens.heads import Head, HeadSet
from corelens.interventions.token_pruning import TokenPruning
from corelens.reports import write_report
from corelens.sparse import Full, HeadPlan, Off, Streaming, StreamingBlocks, hybrid
from tests.helpers.reports import tables


def test_attention_recall_is_that_of_a_loop(toy_model: HookedMLLM):
    samples = list(toy.scenes(2, seed=3))
    inputs = toy_model.prepare([sample.images for sample in samples], [sample.question for sample in samples])
    plans = [hybrid(HeadSet.parse("L1H3, L4H0"), 2, 9, granularity="query"), hybrid([], 0, 3, keep_text=True)]
    plans += [HeadPlan({Head(0, 0): Off()}, Full()), HeadPlan({Head(0, 0): Full()}, StreamingBlocks(1, 2, 8), "query")]
    _, cache = toy_model.run_with_cache(
        inputs, queries=inputs.tokens.last, names_filter=toy_model.attn_names("pattern")
    )
    n = inputs["input_ids"].shape[1]
    for plan, recall in zip(plans, attention_recall(toy_model, inputs, plans), strict=True):
        for sample in range(2):
            masses = []
            real = [k for k in range(n) if not inputs.tokens.padding[sample, k]]
            for head in toy_model.heads:
                rule = plan.rule(head)
                row = cache["pattern", head.layer][sample, head.head, 0]
                if isinstance(rule, Streaming):
                    visual = inputs.tokens.visual[sample]
                    visible = [
                        k
                        for k in real
                        if k >= n - rule.window or k in real[: rule.sink] or (rule.keep_text and not visual[k])
                    ]
                    masses.append(sum(row[k].item() for k in visible))
                elif isinstance(rule, StreamingBlocks):
                    last = (len(real) - 1) // 8
                    visible = [k for place, k in enumerate(real) if place // 8 < 1 or place // 8 > last - 2]
                    masses.append(sum(row[k].item() for k in visible))
                else:
                    masses.append(float(isinstance(rule, Full)))
            assert_close(recall[sample].item(), sum(masses) / len(masses), atol=1e-5, rtol=0)


def test_plans_are_compared_part_by_part_and_again(toy_model: HookedMLLM, tmp_path: Path):
    samples, core = list(toy.scenes(18, seed=3)), HeadSet.parse("L3H14, L3H0, L2H10, L2H4, L2H6")
    plans = {"core": [hybrid(core, 4, 16, granularity="query")], "none": [hybrid([], 4, 16)]}
    plans |= {"tokens": [TokenPruning(1, 0.05)]}
    results = run_sparse_eval(toy_model, samples, plans, max_new_tokens=4, out=tmp_path)
    plain, core_accuracy, none = (results.accuracies(name, "")[0] for name in ("plain", "core", "none"))
    assert plain >= 0.9
    assert core_accuracy >= plain - 0.1
    assert none < plain - 0.3
    assert results.accuracies("tokens", "")[0] < plain
    assert results.attention_recall("plain") == 1
    assert 0 < results.attention_recall("none") < results.attention_recall("core") < 1
    resumed = run_sparse_eval(toy_model, samples, plans, max_new_tokens=4, out=tmp_path)
    assert all(torch.equal(resumed.values[name], results.values[name]) for name in results.values)
    page = write_report(tmp_path).read_text()
    changes = [results.paired_difference(name, "").mean for name in plans]
    assert [row[2] for row in tables(page)[0][2:]] == [f"{100 * change:+.1f}" for change in changes]
    assert "Speed was not measured" in page
    with pytest.raises(ValueError, match=r"holds another run: plans\.core was"):
        run_sparse_eval(toy_model, samples, {"core": [hybrid(core, 4, 17)]}, max_new_tokens=4, out=tmp_path)
