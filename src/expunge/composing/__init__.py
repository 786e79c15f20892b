"""Composed methods, carried out: runs of other methods in folders inside the run's own, and one artifact made of theirs.

A stage is a run like any other, with its own run.yaml, and is taken up or skipped by `--resume` like any other. What belongs to
the composition alone (the scale of a negation, how parts are merged) may change between the two.
"""

from pathlib import Path

from expunge.composing.negation import negate
from expunge.composing.parts import unlearn_parts
from expunge.composing.stages import Stages
from expunge.data.example import Request
from expunge.fitted import Made
from expunge.methods.composed.spunge import Spunge
from expunge.methods.composed.task_vector_negation import TaskVectorNegation
from expunge.run import model_source
from expunge.spec import Run

__all__ = ["compose"]


def compose(run: Run, request: Request, out: Path, *, resume: bool, overwrite: bool, quiet: bool) -> Made:
    """Runs the stages of a composed method below `out`; the artifact is made when `Made.write` is called."""
    stages = Stages(run, model_source(run.model), out, resume, overwrite, quiet)
    if isinstance(run.method, TaskVectorNegation):
        return negate(run.method, stages)
    assert isinstance(run.method, Spunge)
    return unlearn_parts(run.method, request, stages)
