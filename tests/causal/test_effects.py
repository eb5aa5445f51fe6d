"""Metrics of answers against loops over samples and tokens."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from corelens import HookedMLLM
from corelens.causal import AnswerLogProbs, kl_div, logit_diff, logit_margin, rank
from tests.helpers import tiny
from tests.helpers.prompts import answered_prompts, family_model


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return family_model(request.param)


def kl_divergence(p: torch.Tensor, q: torch.Tensor, positions: list[int]) -> float:
    """Sum over positions and tokens of p log(p / q), from probabilities [position vocabulary]."""
    return sum(float((p[position] * (p[position] / q[position]).log()).sum()) for position in positions)


@torch.no_grad()
def test_effects_in_loops(model: HookedMLLM):
    inputs = answered_prompts(model)
    clean_logits = model(inputs)
    patched_logits = model.run_with_hooks(inputs, fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x * 0.5)])
    patched, clean = AnswerLogProbs.of(patched_logits, inputs), AnswerLogProbs.of(clean_logits, inputs)
    for sample in range(2):
        positions = inputs.tokens.answer[sample].nonzero().flatten().tolist()
        ids = inputs["input_ids"][sample]
        assert inputs.tokens.last[sample].nonzero().item() == positions[0] - 1
        expected = kl_divergence(
            clean_logits[sample].softmax(-1), patched_logits[sample].softmax(-1), [i - 1 for i in positions]
        )
        assert_close(kl_div(patched, clean)[sample].item(), expected, atol=1e-3, rtol=1e-3)
        first = patched_logits[sample, positions[0] - 1]
        assert rank(patched, clean)[sample] == 1 + int((first > first[ids[positions[0]]]).sum())
        difference = logit_diff(torch.tensor([5, 6]))(patched, clean)[sample]
        assert_close(difference, first[ids[positions[0]]] - first[5 + sample], atol=1e-4, rtol=1e-4)
        margin = 0.0
        for position in positions:
            others = clean_logits[sample, position - 1].clone()
            others[ids[position]] = -torch.inf
            logits = patched_logits[sample, position - 1]
            margin += float(logits[ids[position]] - logits[others.argmax()])
        assert_close(logit_margin(patched, clean)[sample].item(), margin, atol=1e-3, rtol=1e-3)
    assert_close(kl_div(clean, clean), torch.zeros(2))
    assert rank(replace(patched, log_probs=patched.log_probs * torch.nan), clean).isnan().all()
