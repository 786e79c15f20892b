"""Composed methods, carried out: runs of other methods in folders inside the run's own, and one artifact made of theirs."""

from expunge.composing.runner import RUNNER

__all__ = ["RUNNER"]
