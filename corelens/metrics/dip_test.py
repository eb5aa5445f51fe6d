"""Dip test: does a distribution have one peak?"""

from typing import Any

import numpy as np
from jaxtyping import Float

SMALLEST_P = 1e-5
"""Smallest p-value in the table of the test; beyond it, the package returns zero."""


def dip_test(values: Float[np.ndarray, "value"]) -> tuple[float, float]:
    """Compute the distance of a distribution from the nearest with one peak, and its p-value.

    Returns:
        The dip, and the probability of such a one, or a larger one, if there were one peak: at least `SMALLEST_P`.

    Raises:
        ModuleNotFoundError: If diptest is not installed.

    Source:
        Hartigan and Hartigan 1985, by the package diptest.
    """
    try:
        from diptest import diptest
    except ModuleNotFoundError as cause:
        message = f"{cause.name} is not installed: pip install 'corelens[app]'."
        raise ModuleNotFoundError(message, name=cause.name) from cause
    # Any: the package does not annotate that it returns a pair.
    dip_and_p_value: Any = diptest(values)
    dip, p_value = dip_and_p_value
    return float(dip), max(float(p_value), SMALLEST_P)
