"""Text, tables and titles of HTML reports."""

import html
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.cli import invoke


def text_of(page: str) -> str:
    """Text of an HTML page, in one line."""
    return " ".join(
        html.unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", page, flags=re.S)).split()
    )


def tables(page: str) -> list[list[list[str]]]:
    """Cells of all tables, row by row."""
    cells = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL)
    return [
        [[html.unescape(cell) for cell in cells.findall(row)] for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
        for table in re.findall(r"<table>.*?</table>", page, re.DOTALL)
    ]


def titles(page: str) -> list[str]:
    """Titles of all figures."""
    return [html.unescape(title) for title in re.findall(r"<h3>(.*?)</h3>", page)]


def report_of(folder: Path, file: str) -> str:
    """Write the report of a run by the command, and return its HTML."""
    result = invoke("report", folder)
    assert result.exit_code == 0, result.output or repr(result.exception)
    assert "".join(result.output.split()) == f"Report:{folder / file}"
    page = (folder / file).read_text()
    assert "<script src" not in page
    assert "<link" not in page
    assert page.count('<script type="application/json">') == len(titles(page))
    assert len(page) < 1_000_000
    return page


def model_code_of_a_report(folder: Path) -> set[str]:
    """Packages that load models and were imported while a process of its own wrote the report of a run."""
    code = (
        "import sys; from corelens.cli import app; app(['report', sys.argv[1]], standalone_mode=False); "
        "print(*{'transformers', 'transformer_lens', 'accelerate', 'corelens.model'} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    report, imported = ran.stdout.rsplit("\n", 2)[:2]
    assert report.startswith("Report: ")
    return set(imported.split())
