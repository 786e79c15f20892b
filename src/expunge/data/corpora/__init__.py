"""Corpora of the field: one module each, with where it comes from and how its fields become examples."""

from expunge.data.corpora import tofu

CORPORA = {"tofu": tofu}
"""Name -> module: the closed list."""
