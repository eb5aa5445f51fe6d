"""Fixtures of the tests of the study."""

import pytest


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty bootstrap draws."""
    monkeypatch.setattr("corelens.study.verdict.N_DRAWS", 40)
