"""Attempts to bring the knowledge back."""
