"""Implements the parts of embedding-corrupted prompts (ECO): gate, text normalization, thresholds, token selection,
corruption, tuning."""
