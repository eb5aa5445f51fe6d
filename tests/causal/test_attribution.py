"""Attribution patching against patches that come ever nearer to the target."""

import pytest
import torch

from corelens import Head, HookedMLLM, append_answers, attribution_patch, patch, sweep, toy
from corelens.causal import AnswerLogProbs, log_prob, logit_margin
from corelens.causal.effects import PatchingMetric
from tests.helpers import processors, tiny
from tests.helpers.prompts import QUESTION, random_picture


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


@pytest.mark.parametrize("metric", [logit_margin, log_prob])
def test_attribution_is_patching_to_first_order(model: HookedMLLM, metric: PatchingMetric):
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
        estimates = attribution_patch(model, cache, source.tokens, inputs, metric)
        patches = sweep(
            model, inputs, lambda heads, c=cache: patch(c, source.tokens, inputs.tokens, heads=heads), metric
        )
        exact = -patches.drop[0]
        errors.append((estimates.flatten() - exact).abs().max() / exact.abs().max())
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.05


def test_the_default_metric_does_not_saturate_where_the_model_is_sure():
    model = HookedMLLM.from_pretrained("corelens/toy")
    samples, n_near = list(toy.scenes(8, seed=3)), 0
    for here, there in zip(samples[::2], samples[1::2], strict=True):
        inputs, source = (
            append_answers(model, model.prepare(sample.images[0], here.question), [sample.answer])
            for sample in (here, there)
        )
        names = model.attn_names("z")
        with torch.no_grad():
            _, cache = model.run_with_cache(source, names_filter=names)
        estimates = attribution_patch(model, cache, source.tokens, inputs, positions="last")[0]
        # The strongest of all heads by the estimate does move the margin by about as much.
        head = Head(*divmod(int(estimates.abs().argmax()), estimates.shape[1]))
        with torch.no_grad():
            clean = AnswerLogProbs.of(model(inputs), inputs)
            hooks = patch(cache, source.tokens, inputs.tokens, "z", heads=[head], positions="last")
            patched = AnswerLogProbs.of(model.run_with_hooks(inputs, fwd_hooks=hooks), inputs)
        change = float(logit_margin(patched, clean) - logit_margin(clean, clean))
        n_near += 1 / 5 < float(estimates[head]) / change < 5
        assert abs(float(estimates[head])) > 0.1
    assert n_near >= 3
