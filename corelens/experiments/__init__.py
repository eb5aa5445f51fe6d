"""Scans, sweeps, ablations and sparse inference over many samples; each can be interrupted and resumed."""
