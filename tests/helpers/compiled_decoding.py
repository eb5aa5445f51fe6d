"""Decodes with a compiled model; run by itself, since checked types do not compile. Prints graphs and differences."""

import json

import torch
from transformers import CompileConfig

from corelens.heads import HeadSet
from corelens.sparse import apply, hybrid
from tests.helpers.tiny import batch, build, generation_inputs


def main() -> None:
    graphs = []

    def compiler(graph: torch.fx.GraphModule, example_inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = CompileConfig(fullgraph=True, backend=compiler, mode=None)  # pyright: ignore[reportArgumentType]
    compiled._compile_all_devices = True
    model = build("qwen3_vl")
    settings = dict(max_new_tokens=10, min_new_tokens=10, output_logits=True, return_dict_in_generate=True)
    with apply(model, hybrid(HeadSet.parse("L0H1, L2H3"), 2, 5, granularity="query"), force=True):
        one, other = (
            model.generate(**generation_inputs("qwen3_vl", batch("qwen3_vl")), **settings, **more)
            for more in ({}, dict(cache_implementation="static", compile_config=compiled))
        )
    off = (torch.stack(one.logits) - torch.stack(other.logits)).abs().max()
    print(json.dumps({"graphs": len(graphs), "difference": float(off)}))


if __name__ == "__main__":
    main()
