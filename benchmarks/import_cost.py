"""Cost of importing corelens, and of the first use of HookedMLLM, beside what they import from elsewhere.

Each line is run in processes of its own, in turn with the others. Times are processor time, start of Python taken off;
the ratios are medians over repetitions, beside the classes of transformers by which one would load a model without
corelens. The last line is JSON.

    python benchmarks/import_cost.py [--repetitions 10]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys

LINES = {
    "transformers": "from transformers import AutoProcessor, PreTrainedModel",
    "with TransformerLens": "from transformers import AutoProcessor, PreTrainedModel; import transformer_lens",
    "corelens": "import corelens",
    "HookedMLLM": "from corelens import HookedMLLM",
}


def seconds(line: str) -> float:
    """Processor time of a Python that runs one line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-W", "ignore", "-c", line], check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    repetitions = parser.parse_args().repetitions
    for line in LINES.values():
        seconds(line)  # reads files, and compiles what was never imported
    times = [{name: seconds(line) - seconds("") for name, line in LINES.items()} for _ in range(repetitions)]
    results = {
        name: {
            "seconds": statistics.median(row[name] for row in times),
            "ratio": statistics.quantiles((row[name] / row["transformers"] for row in times), n=4),
        }
        for name in LINES
    }
    for name, result in results.items():
        low, ratio, high = result["ratio"]
        print(f"{name:>20} {result['seconds']:>6.2f} s {ratio:>6.2f} ({low:.2f} to {high:.2f})")
    print(json.dumps({"benchmark": "import_cost", "results": results}))


if __name__ == "__main__":
    main()
