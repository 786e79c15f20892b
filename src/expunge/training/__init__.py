"""Trains a model with a training method: encoded rows in, trained weights or an adapter out."""
