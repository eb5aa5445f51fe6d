"""Attribution patching against patches that come ever nearer to the target."""

import pytest
import torch

from corelens import HookedMLLM, append_answers, attribution_patch, patch, sweep
from tests.helpers import processors, tiny
from tests.helpers.prompts import QUESTION, random_picture


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def test_attribution_is_patching_to_first_order(model: HookedMLLM):
    """The error falls faster than the estimates."""
    inputs = append_answers(model, model.prepare(random_picture(1), QUESTION), ["seven"])
    with torch.no_grad():
        source = append_answers(model, model.prepare(random_picture(0), QUESTION), ["seven"])
        names = model.attn_names("z")
        _, source_cache = model.run_with_cache(source, names_filter=names)
        _, target_cache = model.run_with_cache(inputs, names_filter=names)
    errors = []
    for share in (1e-1, 1e-2):
        cache = {name: target_cache[name] + share * (source_cache[name] - target_cache[name]) for name in names}
        estimates = attribution_patch(model, cache, source.tokens, inputs)
        patches = sweep(model, inputs, lambda heads, c=cache: patch(c, source.tokens, inputs.tokens, heads=heads))
        exact = -patches.drop[0]
        errors.append((estimates.flatten() - exact).abs().max() / exact.abs().max())
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.05
