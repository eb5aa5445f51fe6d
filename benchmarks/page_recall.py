"""How well heads retrieve the picture with the answer, out of many: Recall@k, on shipped models.

On prompts of many pictures, one of which holds the answer, pictures are ranked by the attention of some heads to them,
minus that under the question "N/A" (`rank_pages`): of the top 5 percent by `ram` and by `ram_last`, ranked on other
prompts of fewer pictures; of as many random heads, several draws; and of all heads. Each with the question's tokens and
with the last token of the prompt.

No time is measured. The last line is JSON, and the numbers carry over to other machines.

    python benchmarks/page_recall.py [--samples 40] [--pictures 16] [--draws 5]
"""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any, get_args

from transformers.utils import logging

from corelens import HeadSet, HookedMLLM, Sample, metrics, rank_pages, scan_metrics, toy
from corelens.experiments.page_ranking import PageQueries
from corelens.metrics.page_ranking import PageRanking

MODELS: dict[str, Callable[..., Iterator[Sample]]] = {
    "corelens/toy-haystack": toy.haystacks,
    "corelens/toy-worlds": toy.mixtures,
}
"""Models, and the prompts that they were trained on."""

COUNTS = (1, 3)
"""Numbers of pictures that are retrieved."""


def head_sets(model: HookedMLLM, samples: Iterator[Sample], n_draws: int) -> dict[str, HeadSet]:
    """The top heads by each metric, random heads outside the top by `ram_last`, and all heads."""
    scores = scan_metrics(model, samples, ("ram", "ram_last"), batch_size=8)
    draws = {f"random {seed}": scores["ram_last"].random(seed=seed) for seed in range(n_draws)}
    return {name: of_metric.top(0.05) for name, of_metric in scores.items()} | draws | {"all": HeadSet(model.heads)}


def recalls(ranking: PageRanking, name: str) -> dict[str, Any]:
    """Recall@k of a head set, with its 95 % interval."""
    result = {}
    for k in COUNTS:
        recall = ranking.recall(name, k)
        low, high = metrics.bootstrap_interval(recall[:, None, None], groups=ranking.groups)
        result[f"recall@{k}"] = [round(float(value.squeeze()), 3) for value in (recall.mean(), low, high)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    results: dict[str, Any] = {}
    for name, draw in MODELS.items():
        model = HookedMLLM.from_pretrained(name)
        sets = head_sets(model, draw(60, 1, 4), arguments.draws)
        print(f"\n{name}: ram {sets['ram']}; ram_last {sets['ram_last']}")
        for queries in get_args(PageQueries):
            ranking = rank_pages(model, draw(arguments.samples, 2, arguments.pictures), sets, queries, batch_size=4)
            for kind in sets:
                results[f"{name}, {queries}, {kind}"] = found = recalls(ranking, kind)
                print(f"{queries:>10} {kind:>10} {found}", flush=True)
    print(json.dumps({"benchmark": "page_recall", "results": results}))


if __name__ == "__main__":
    main()
