"""The report of a scan of key tokens has its numbers."""

from pathlib import Path

from corelens.experiments.key_token_results import read_key_tokens
from corelens.experiments.run_folder import RunFolder
from tests.helpers.reports import report_of, tables, text_of, titles


def test_the_report_of_key_tokens_holds_its_numbers(runs: Path):
    page = report_of(runs / "key-tokens", "key_tokens.html")
    key_tokens = read_key_tokens(RunFolder.load(runs / "key-tokens"))
    top = key_tokens.hit_rates(4)["top"]
    assert f"One of the first 4 heads of ranking 'top' has {100 * top.ratio:.1f} percent" in text_of(page)
    few, coverage, *_ = tables(page)
    rates = key_tokens.for_dataset("few").hit_rates(4)
    assert [[kind, *numbers] for kind, _, *numbers in few[1:]] == [
        [kind, f"{100 * rate.ratio:.1f}", f"{100 * rate.hits:.1f}"] for kind, rate in rates.items()
    ]
    assert few[1][1] == ", ".join(str(head) for head in key_tokens.rankings["top"][0])
    assert few[2][1] == "4 heads, 5 draws"
    curve = key_tokens.for_dataset("few").curve("top").mean
    assert [row[0] for row in coverage] == ["heads", "1", "2"]
    assert [row[1] for row in coverage[1:]] == [f"{100 * curve[0]:.1f}", f"{100 * curve[1]:.1f}"]
    assert len(titles(page)) == 4
