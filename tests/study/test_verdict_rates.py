"""The rules on made-up models of which a claim is true or false: a short form of benchmarks/verdict_rates.py."""

import runpy
from pathlib import Path

import pytest

SIMULATION = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "verdict_rates.py"))


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("claim", SIMULATION["CLAIMS"])
def test_what_is_false_is_not_supported_and_what_is_true_is_not_denied(claim: str):
    false, true = (SIMULATION["verdict_rates"](claim, is_true, 80, 3) for is_true in (False, True))
    assert false.get("supported", 0) == 0, false
    assert true.get("not supported", 0) == 0, true
    assert true["supported"] > 0, true
