"""Synthetic data sets with known evidence, drawn from a seed.

Sample n depends on the seed and n alone, not on the number of samples; its pictures are drawn on access.
"""
