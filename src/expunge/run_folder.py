"""Manages the folder of a run in progress: locks it, prepares it once, and compares its inputs with the recorded ones.

run.yaml     the run as one value      inputs.json   hashes of the data, of the start model and of its tokenizer
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from expunge.data.example import Request, fingerprint
from expunge.errors import ExpungeError, reason
from expunge.folders import ARTIFACT, MANIFEST, holds_something, locked, remove_made, resume_command
from expunge.processes import is_main
from expunge.records import Inputs, write_json, write_text
from expunge.runner import AnyRun
from expunge.spec import read_yaml, to_yaml
from expunge.start import Start


class RunFolder:
    """`with RunFolder(...) as folder`: `prepare` locks and fills the folder, and leaving the block releases the lock.

    fresh     remove what an earlier run left, except for its artifact, which stays until the new one is complete
    restaged  an artifact made from the same stages with other fields counts as incomplete until the new one exists
    before    called before the folder is made: for a stage, makes the folder of the whole run
    """

    def __init__(
        self,
        run: AnyRun,
        request: Request,
        start: Start,
        out: Path,
        *,
        fresh: bool,
        restaged: bool,
        before: Callable[[], None],
    ) -> None:
        self.run, self.request, self.start, self.out = run, request, start, out
        self.fresh, self.restaged, self.before = fresh, restaged, before
        self._stack = ExitStack()
        self._ready = False
        self._was_there = holds_something(out)

    def __enter__(self) -> "RunFolder":
        if self._was_there and is_main():
            self._stack.enter_context(locked(self.out))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self) -> None:
        """Prepares the folder, after the last check of the input and before the first file; may be called again. Raises
        ExpungeError if the folder cannot be written, or another command has made it."""
        if self._ready:
            return
        self.before()
        self._ready = True
        if not self.fresh:
            self.check_inputs()
        inputs = self.inputs()
        if not is_main():
            return
        try:
            if not self._was_there:
                self._stack.enter_context(locked(self.out))
                if (self.out / "run.yaml").is_file() and not self.restaged:
                    raise ExpungeError(f"another command has made {self.out} meanwhile; give another --out")
            if self.fresh:
                remove_made(self.out)
            if self.fresh or self.restaged:
                (self.out / "provenance.json").unlink(missing_ok=True)
            write_text(self.out / "run.yaml", to_yaml(self.run))
            write_json(self.out / "inputs.json", inputs)
        except OSError as error:
            if not self._was_there:  # the same command works again once there is room
                (self.out / "run.yaml").unlink(missing_ok=True)
            raise ExpungeError(f"{self.out} cannot be written to ({reason(error)}); make room, or give another --out") from error

    def note_choices(self, settings: Mapping[str, object]) -> None:
        """Writes what the stages of the run chose for `auto` below its fields in run.yaml, as comments."""
        lines = [f"#   {name}: {value}\n" for name, value in settings.items()]
        text = f"{to_yaml(self.run)}# auto: each stage chose its own, as in its run.yaml\n{''.join(lines)}"
        write_text(self.out / "run.yaml", text)

    def inputs(self) -> Inputs:
        """Returns the hashes of the run's inputs. The start model's files must be on this machine."""
        return self._inputs

    @cached_property
    def _inputs(self) -> Inputs:
        from expunge import __version__

        return Inputs(
            base=self.start.place,
            base_sha256=self.start.fingerprint(),
            tokenizer_sha256=self.start.tokenizer_fingerprint(),
            data=self._data,
            counts={name: len(rows) for name, rows in self.run.row_sets(self.request).items()},
            folder=os.getcwd(),
            run_sha256=_hash(without_memory(self.run.model_dump(mode="json"))),
            expunge=__version__,
        )

    @cached_property
    def _data(self) -> dict[str, str]:
        refusals = {"refusals": _hash(self.request.refusals)} if self.request.refusals else {}
        return {name: fingerprint(rows) for name, rows in self.run.row_sets(self.request).items()} | refusals

    def check_inputs(self) -> None:
        """Raises ExpungeError if the data, the settings, the start model or its tokenizer differ from those that it was begun
        with, whatever their paths; warns about another version of expunge."""
        from expunge import __version__

        path = self.out / "inputs.json"
        if not path.is_file():
            if any(self.out.glob("checkpoint-*")) or (self.out / ARTIFACT / MANIFEST).is_file():
                raise ExpungeError(
                    f"{self.out} has lost its inputs.json, so that nobody knows what it was begun with; start anew with "
                    "--overwrite or another --out"
                )
            return  # nothing was made yet
        try:
            before = Inputs.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ExpungeError(f"{path} cannot be read ({str(error).splitlines()[0]}); start anew with --overwrite") from error
        if not self.restaged and before.run_sha256 not in (None, _hash(without_memory(read_yaml(self.out / "run.yaml")))):
            self._refuse("its run.yaml was edited after it was begun")
        if before.expunge not in (None, __version__):
            warnings.warn(
                f"{self.out} was begun by expunge {before.expunge} and goes on with {__version__}: its steps may differ from "
                "those of either alone",
                UserWarning,
                stacklevel=3,
            )
        for name in dict.fromkeys([*before.data, *self._data]):
            if before.data.get(name) != self._data.get(name):
                self._refuse(f"the {name} set holds other rows than when it was begun")
        if not self.start.at_hand():
            return  # a hub model is compared when it is there
        now = self.inputs()
        if before.base_sha256 != now.base_sha256:
            self._refuse(f"the start model {self.start.place} has other weights than when it was begun")
        if before.tokenizer_sha256 != now.tokenizer_sha256:
            self._refuse(f"the tokenizer of {self.start.place} is another than when it was begun")

    def _refuse(self, what: str) -> None:
        raise ExpungeError(
            f"{self.out} cannot go on: {what}; put the old one back and repeat `{resume_command(self.out)}`, or start anew with "
            "--overwrite or another --out"
        )


def without_memory(run: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a run without those that only change its memory use."""
    training = {k: v for k, v in (run.get("training") or {}).items() if k not in ("micro_batch_size", "gradient_checkpointing")}
    return run | {"training": training}


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
