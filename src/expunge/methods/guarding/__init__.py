"""Lists the guards: methods that leave the weights unchanged and alter the forward pass. A new one is its file, an import and
an entry here."""

from expunge.methods.base import GuardingMethod
from expunge.methods.guarding.embedding_corruption import EmbeddingCorruption as EmbeddingCorruption
from expunge.methods.guarding.instruction import Instruction as Instruction
from expunge.methods.guarding.key_space import KeySpaceDetection as KeySpaceDetection
from expunge.methods.guarding.neuron_adjust import NeuronAdjust as NeuronAdjust

GUARDING: tuple[type[GuardingMethod], ...] = (NeuronAdjust, KeySpaceDetection, EmbeddingCorruption, Instruction)
"""In the order in which `expunge methods` shows them."""
