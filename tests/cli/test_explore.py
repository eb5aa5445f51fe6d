"""The command explore: errors before a model is loaded; `tests/explorer/test_server.py` has the rest."""

from tests.helpers.cli import invoke_on_toy, text_of


def test_a_question_without_its_picture_is_an_error():
    assert "the question needs a picture" in text_of(invoke_on_toy("explore", "--question", "which digit is red ?"))
