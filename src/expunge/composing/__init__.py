"""Runs composed methods: several runs in subfolders of one run, and one artifact made from theirs."""

from expunge.composing.runner import RUNNER

__all__ = ["RUNNER"]
