"""Reports of finished runs: one page each, with what was run, its numbers, figures, and limits."""

from corelens.reports.writing import write_report as write_report
