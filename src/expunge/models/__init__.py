"""Loads models, finds their parts, and computes log-probabilities, activations and checkpoints."""
