"""Versions of transformers: the supported range, and the name of the cache."""

import subprocess
import sys
import warnings

import pytest
import torch
from transformers import DynamicCache

from corelens.hf.versions import CACHE, TESTED, check_transformers, given_cache
from corelens.model import HookedMLLM
from tests.helpers import tiny

OLDEST, NEWEST = (".".join(map(str, version)) for version in TESTED)


def test_tested_versions_pass_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for version in (OLDEST, f"{OLDEST}.3", NEWEST, f"{NEWEST}.0.dev0"):
            check_transformers(version)


def test_older_versions_are_refused_and_newer_ones_are_announced():
    for version in ("4.57.6", "5.9.0", f"{TESTED[0][0]}.{TESTED[0][1] - 1}.9"):
        with pytest.raises(ImportError, match=f"transformers {OLDEST} or newer, and {version} is installed"):
            check_transformers(version)
    for version in (f"{TESTED[1][0]}.{TESTED[1][1] + 1}.0", "6.0.0"):
        with pytest.warns(UserWarning, match=f"tested with transformers {OLDEST} to {NEWEST}, and {version}"):
            check_transformers(version)


def test_the_model_cannot_be_imported_with_an_older_version():
    program = (
        "import importlib.metadata as m; old = m.version; "
        "m.version = lambda name: '5.9.0' if name == 'transformers' else old(name); from corelens import HookedMLLM"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1].startswith("ImportError: corelens needs transformers"), ran.stderr


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_the_cache_is_found_under_both_names_and_continues_a_pass():
    cache = DynamicCache()
    assert given_cache({"cache": cache}) is given_cache({"past_key_values": cache}) is cache
    assert given_cache({"cache": None, "past_key_values": None}) is given_cache({}) is None
    model = HookedMLLM(tiny.build("llava"))
    ids = torch.arange(8, 18)[None]
    whole = model(input_ids=ids)
    for name in {CACHE, "past_key_values"}:
        cache = DynamicCache(config=model.hf_model.config)
        first, last = (model(input_ids=part, use_cache=True, **{name: cache}) for part in (ids[:, :6], ids[:, 6:]))
        torch.testing.assert_close(torch.cat([first, last], 1), whole, rtol=1e-4, atol=1e-5)
