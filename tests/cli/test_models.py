"""The command models: errors; `tests/hf/test_support.py` has the rest."""

from tests.helpers.cli import invoke, text_of


def test_a_type_without_its_model_is_an_error():
    assert "qwen3_vl is a model type" in text_of(invoke("models", "qwen3_vl"))
