"""Reads data files into examples, and examples into batches of tokens."""
