"""Gates on head outputs."""

import torch
from torch.testing import assert_close

from training import build
from training.gates import HeadGates


def test_gates_close_the_heads_that_matter_least_for_good():
    model = build.model(0)
    gates = HeadGates(model)
    inputs = {"input_ids": torch.randint(7, 40, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    expected = model(**inputs).logits
    with gates.applied():
        logits = model(**inputs).logits
        assert torch.equal(logits, expected)
        logits.square().sum().backward()
    assert (gates.importance > 0).all()
    lowest = gates.importance.flatten().argsort()[:90]
    gates.close_to(6)
    assert gates.open.flatten()[lowest].sum() == 0
    assert gates.open.sum() == 6
    with gates.applied(), torch.no_grad():
        gated = model(**inputs).logits
    gates.make_permanent()
    with torch.no_grad():
        assert_close(model(**inputs).logits, gated, atol=1e-5, rtol=1e-5)
