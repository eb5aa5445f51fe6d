"""Answers that cannot be appended."""

import pytest

from corelens import HookedMLLM, append_answers
from tests.helpers import tiny
from tests.helpers.prompts import family_model, two_prompts


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return family_model(request.param)


def test_answers_that_cannot_be_expected(model: HookedMLLM):
    with pytest.raises(ValueError, match="1 answers were given for 2 prompts"):
        append_answers(model, two_prompts(model), ["seven"])
    with pytest.raises(ValueError, match="the answer '' has no token"):
        append_answers(model, two_prompts(model), ["seven", ""])
