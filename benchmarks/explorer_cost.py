"""How long the explorer takes to show what was chosen, and how much it sends.

`seconds`: medians over ten scenes of the shipped model, each view computed for the first time: a head chosen, a token,
a head ablated, a region hidden, another scene, and the effect of every head. What was shown before comes from memory
and is not counted. `page` is one of these, a head ablated, from request to answer through the page's server.

`bytes`: messages, as JSON, of a random model with the shipped one's parts but 32 layers of 32 heads, about a picture
of 4,096 visual tokens, with the attention of one head and of as many as are shown at a time.

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
"""Of the large picture: 64 x 64 visual tokens of 16 pixels."""


def seconds() -> dict[str, float]:
    """Median time of the first view of each kind."""
    explorer = Explorer(HookedMLLM.from_pretrained("corelens/toy"), toy.scenes(12, seed=0))
    client = TestClient(create_app(explorer, "token"), base_url="http://127.0.0.1/token/")
    first = explorer.first()
    explorer.view(replace(first, sample="scene-test-0-11"))  # what only the very first view costs
    found: dict[str, list[float]] = {}

    def timed(name: str, show: Callable[[], object]) -> None:
        began = time.perf_counter()
        show()
        found.setdefault(name, []).append(time.perf_counter() - began)

    for sample in list(explorer.samples.values())[:10]:
        state = replace(first, sample=sample.id)
        timed("another scene", lambda state=state: (explorer.view(state), explorer.prompt(state)))
        for name, change in {
            "a head chosen": {"heads": (Head(3, 14),)},
            "a token chosen": {"token": 70},
            "a head ablated": {"ablated": (Head(2, 4),)},
            "a region hidden": {"regions": (Evidence(sample.evidence[0].box),)},
            "effect of every head": {"metric": "effect"},
        }.items():
            timed(name, lambda state=state, change=change: explorer.view(replace(state, **change)))
        asked = {"state": replace(state, ablated=(Head(3, 0),)).json()}
        timed("page", lambda asked=asked: client.post("view", json=asked).raise_for_status())
    return {name: round(statistics.median(times), 4) for name, times in found.items()}


def sizes() -> dict[str, int]:
    """Bytes of the messages of a large model."""
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
    six = explorer.view(replace(first, heads=model.heads[:MAX_MAPS]))
    assert len(six["maps"][0]["cells"]) == 4096
    messages = {
        "about": explorer.about(),
        "prompt": explorer.prompt(first),
        "view of one head": explorer.view(first),
        f"view of {MAX_MAPS} heads": six,
    }
    return {name: len(json.dumps(message, separators=(",", ":"))) for name, message in messages.items()}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(json.dumps({"seconds": seconds(), "bytes": sizes()}))
