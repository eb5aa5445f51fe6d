"""Pages of reports."""

from corelens.reports.page import Page


def test_text_in_a_page_is_escaped():
    page = Page("<b>", "a & b")
    page.table(["<i>"], [["<u>"]], strong=0)
    assert "&lt;b&gt;" in page.html()
    assert "<td>&lt;u&gt;</td>" in page.html()
