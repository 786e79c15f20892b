"""Runs the self-check of a composed run: measures a few rows before its first stage and after its last."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from expunge.data.example import Request
from expunge.data.never_seen import never_seen
from expunge.models.folder import folder_kind
from expunge.models.load import load_model
from expunge.models.reading import bounded
from expunge.records import SelfCheck
from expunge.runner import Context
from expunge.self_check import measure, measure_start, self_check

STRENGTHS = ("scale", "alpha")
"""Fields that set the strength of a composed method; if there are several values, the first is that of the artifact."""


@dataclass(frozen=True)
class Check:
    """The measurements of the start model, and their rows."""

    context: Context
    request: Request
    """With forget rows under other names as rows never seen, if the run has none."""
    before: dict[str, float]

    @classmethod
    def of(cls, context: Context) -> "Check":
        request = context.request
        if not request.holdout:
            made = never_seen(request.forget, request.retain, context.run.training.seed)
            request = dataclasses.replace(request, holdout=made)
        model = context.load()
        return cls(context, request, measure_start(model, bounded(context.encoder, model), request))

    def examine(self, folder: Path) -> SelfCheck:
        """Measures the artifact in the folder."""
        model = self._open(folder)
        after = measure(model, bounded(self.context.encoder, model), self.request)
        return self_check(self.before, after, self.request, None, knob=self._knob())

    def _open(self, folder: Path) -> PreTrainedModel:
        from peft import PeftModel

        run = self.context.run
        if folder_kind(folder) != "adapter":
            return load_model(str(folder), dtype=run.dtype, trust_remote_code=run.trust_remote_code)
        start = self.context.load()
        adapted: PreTrainedModel = PeftModel.from_pretrained(start, str(folder), autocast_adapter_dtype=False).eval()
        return adapted

    def _knob(self) -> tuple[str, float] | None:
        for name in STRENGTHS:
            value = getattr(self.context.run.method, name, None)
            value = value[0] if isinstance(value, tuple) else value
            if isinstance(value, int | float):
                return f"--{name}", float(value)
        return None
