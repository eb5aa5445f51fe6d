"""Hugging Face models: architecture, weights, module outputs and caches."""

from importlib.metadata import version

from corelens.hf.versions import check_transformers

# Before any module imports names that older versions lack.
check_transformers(version("transformers"))
