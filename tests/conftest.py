"""Fixtures. Nothing here imports corelens at module level: the shape checks must be in place first."""

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a core for each process, not all for each
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 else other tests starve Ray, which reads this name

if importlib.util.find_spec("torchvision"):
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # Built for another torch than this one, so its compiled operators are missing; its image transforms are not.
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")

import torch

from tests.helpers import tiny

# Whether a test passes says nothing of how busy the machine is, nor of luck: each run tries the same examples. New ones
# are looked for with `--hypothesis-profile search`.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeatable")


SLOW = ("test_train.py", "test_docs.py", "test_reproduce.py", "test_run.py", "test_ray.py", "test_resumable.py")
"""Files with tests of a minute or more."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow files first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(SLOW))


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _few_draws_of_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest draws of write-matched heads; how many more there is time for differs from machine to machine."""
    monkeypatch.setattr("corelens.experiments.throughput.DRAWS_SECONDS", 0.0)


@pytest.fixture(scope="session", params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def hf_model(family: str) -> Any:
    """Read-only by convention; `test_wrapping_and_exceptions_leave_no_trace` checks that wrapping leaves no trace."""
    return tiny.build(family)


@pytest.fixture(scope="session")
def eager(family: str) -> Any:
    return tiny.build(family, attention="eager")


@pytest.fixture(scope="session")
def model(hf_model: Any) -> Any:
    from corelens import HookedMLLM

    return HookedMLLM(hf_model)


@pytest.fixture(scope="session")
def toy_model() -> Any:
    from corelens import HookedMLLM

    return HookedMLLM.from_pretrained("corelens/toy")
