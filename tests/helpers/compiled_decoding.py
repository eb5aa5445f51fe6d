"""Decode with a compiled model, and print the number of graphs and the difference of logits.

Run as a script, since functions with checked types do not compile.
"""

import json

import torch
from transformers import CompileConfig

from corelens.heads import HeadSet
from corelens.sparse import apply, hybrid
from tests.helpers.tiny import batch, build, generation_inputs


def main() -> None:
    graphs = []

    def record_graph(graph: torch.fx.GraphModule, example_inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = CompileConfig(fullgraph=True, backend=record_graph, mode=None)  # pyright: ignore[reportArgumentType]
    compiled._compile_all_devices = True
    model = build("qwen3_vl")
    settings = dict(max_new_tokens=10, min_new_tokens=10, output_logits=True, return_dict_in_generate=True)
    with apply(model, hybrid(HeadSet.parse("L0H1, L2H3"), 2, 5, granularity="query"), force=True):
        eager, static = (
            model.generate(**generation_inputs("qwen3_vl", batch("qwen3_vl")), **settings, **options)
            for options in ({}, dict(cache_implementation="static", compile_config=compiled))
        )
    difference = (torch.stack(eager.logits) - torch.stack(static.logits)).abs().max()
    print(json.dumps({"graphs": len(graphs), "difference": float(difference)}))


if __name__ == "__main__":
    main()
