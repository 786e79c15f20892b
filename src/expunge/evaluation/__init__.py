"""Evaluates a model or artifact on a suite: scores with intervals, and one sample per example and metric."""
