"""Artifact x suite -> scores with intervals."""
