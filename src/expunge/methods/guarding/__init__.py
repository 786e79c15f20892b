"""Methods that leave the weights alone and change what the model does: a new one is its file, its import and its place here."""

from expunge.methods.base import GuardingMethod
from expunge.methods.guarding.embedding_corruption import EmbeddingCorruption as EmbeddingCorruption
from expunge.methods.guarding.key_space import KeySpaceDetection as KeySpaceDetection
from expunge.methods.guarding.neuron_adjust import NeuronAdjust as NeuronAdjust

GUARDING: tuple[type[GuardingMethod], ...] = (NeuronAdjust, KeySpaceDetection, EmbeddingCorruption)
"""In reading order."""
