"""Hugging Face models: architecture, weights, module outputs and caches."""
