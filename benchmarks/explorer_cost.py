"""Latency of the explorer from a choice to its view, and size of its messages.

`seconds`: medians over ten scenes of the shipped model, each view computed for the first time: a head chosen, a token,
a head ablated, a region hidden, another scene, and the effect of every head. Views that were shown before are cached
and not counted. `page` is one of these, a head ablated, from request to response through the page's server.

`bytes`: JSON messages of a random model like the shipped one, but with 32 layers of 32 heads, for a picture of 4,096
visual tokens, with the attention of one head and of as many as are shown at a time.

The last line is JSON; only sizes carry over to other machines.

    python benchmarks/explorer_cost.py
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

from corelens import Evidence, Head, HookedMLLM, Sample, toy
from corelens.explorer.server import create_app
from corelens.explorer.view import MAX_MAPS, Explorer
from corelens.hf.loading import SHIPPED

SIDE = 1024
"""Side of the large picture in pixels: 64 x 64 visual tokens of 16 pixels."""


def latencies() -> dict[str, float]:
    """Median seconds of the first view of each kind."""
    explorer = Explorer(HookedMLLM.from_pretrained("corelens/toy"), toy.scenes(12, seed=0))
    client = TestClient(create_app(explorer, "token"), base_url="http://127.0.0.1/token/")
    first = explorer.first()
    explorer.view(replace(first, sample="scene-test-0-11"))  # warm-up
    times: dict[str, list[float]] = {}

    def measure(name: str, show: Callable[[], object]) -> None:
        start = time.perf_counter()
        show()
        times.setdefault(name, []).append(time.perf_counter() - start)

    for sample in list(explorer.samples.values())[:10]:
        state = replace(first, sample=sample.id)
        measure("another scene", lambda state=state: (explorer.view(state), explorer.prompt(state)))
        for name, change in {
            "a head chosen": {"heads": (Head(3, 14),)},
            "a token chosen": {"token": 70},
            "a head ablated": {"ablated": (Head(2, 4),)},
            "a region hidden": {"regions": (Evidence(sample.evidence[0].box),)},
            "effect of every head": {"metric": "effect"},
        }.items():
            measure(name, lambda state=state, change=change: explorer.view(replace(state, **change)))
        request = {"state": replace(state, ablated=(Head(3, 0),)).json()}
        measure("page", lambda request=request: client.post("view", json=request).raise_for_status())
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def message_sizes() -> dict[str, int]:
    """Size in bytes of the messages of a large model."""
    config: Any = AutoConfig.from_pretrained(SHIPPED["corelens/toy"])
    text = config.text_config
    text.num_hidden_layers = text.num_attention_heads = 32
    text.max_position_embeddings = 8192
    torch.manual_seed(0)
    processor = HookedMLLM.from_pretrained("corelens/toy").processor
    processor.image_processor.size = {"longest_edge": SIDE**2, "shortest_edge": SIDE**2}
    model = HookedMLLM(AutoModelForImageTextToText.from_config(config).eval(), processor)
    noise = np.random.default_rng(0).integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
    picture = Image.fromarray(noise).resize((SIDE, SIDE))
    explorer = Explorer(model, [Sample("large", "what colour is the 7 ?", "", (picture,))])
    first = explorer.first()
    view_of_most = explorer.view(replace(first, heads=model.heads[:MAX_MAPS]))
    assert len(view_of_most["maps"][0]["cells"]) == 4096
    messages = {
        "about": explorer.about(),
        "prompt": explorer.prompt(first),
        "view of one head": explorer.view(first),
        f"view of {MAX_MAPS} heads": view_of_most,
    }
    return {name: len(json.dumps(message, separators=(",", ":"))) for name, message in messages.items()}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(json.dumps({"seconds": latencies(), "bytes": message_sizes()}))
