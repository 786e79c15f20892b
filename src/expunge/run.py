"""One run from beginning to end: check everything, then load, train, write the artifact and where it came from.

    run/  run.yaml  metrics.jsonl  provenance.json  artifact/

Whatever can be wrong with the input is found before the folder is made. A run that was killed is taken up again by the
same call with resume=True: from the last checkpoint, or, when the artifact is complete, not at all.
"""

import os
import platform
import shutil
import time
import warnings
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from expunge.artifact import Base, Kind, artifact_folder, read_manifest, save_artifact, verify
from expunge.data.encode import Encoded, Encoder, default_format, save_format
from expunge.data.example import Example, Request, fingerprint
from expunge.data.read import read_examples, read_request
from expunge.data.refusals import REFUSALS
from expunge.data.where import choose
from expunge.errors import ExpungeError
from expunge.fitted import Made, carry_out
from expunge.methods import Method, TrainingMethod
from expunge.methods.base import ComposedMethod, GuardingMethod, InPlaceEditing
from expunge.methods.training import FineTune
from expunge.models.load import DeviceMap, load_model, load_tokenizer, model_fingerprint
from expunge.processes import is_main
from expunge.records import Provenance, write_json, write_text
from expunge.spec import FineTuneRun, Run, to_yaml
from expunge.training.loop import Trained, chosen_weights, train
from expunge.training.reference import Rows


class Outcome(NamedTuple):
    """What a run gives back."""

    folder: Path
    artifact: Path
    steps: int
    stopped: str | None
    notes: str = ""
    """What was made, in a few sentences, as the artifact's card says it; empty when the run was complete already."""


def execute(run: Run | FineTuneRun, out: Path, *, resume: bool = False, overwrite: bool = False, quiet: bool = False) -> Outcome:
    """Carries out `run` into the folder `out`.

    resume     goes on in an existing folder whose run.yaml says the same run
    overwrite  replaces an existing folder; its artifact stays until the new one is complete
    """
    method: Method | FineTune = FineTune(parameters=run.parameters) if isinstance(run, FineTuneRun) else run.method
    _check_out(out, resume, overwrite)
    spread = run.device_map if isinstance(run, Run) else None
    _check_device_map(spread, method)
    request = _request(run, method)
    source = model_source(run.model)
    tokenizer = load_tokenizer(str(source), revision=run.revision, trust_remote_code=run.trust_remote_code)
    run = run if run.format is not None else run.model_copy(update={"format": default_format(tokenizer)})
    assert run.format is not None
    encoder = Encoder(tokenizer, run.format, max_length=run.max_length)
    rows = _encode(request, method, encoder) if isinstance(method, TrainingMethod) else None
    composed = isinstance(method, ComposedMethod)  # its stages check themselves whether they can be taken up again
    if resume and not (composed and _differs(run, out)) and _finished(run, out):
        return Outcome(out, out / "artifact", 0, "the run was complete already")
    if resume and not composed:
        _check_same(run, out)
    began = time.perf_counter()
    if isinstance(method, ComposedMethod):
        from expunge.composing import compose

        assert isinstance(run, Run)
        made = compose(run, request, out, resume=resume, overwrite=overwrite, quiet=quiet)
        base = Base(path=str(source), sha256=model_fingerprint(str(source), revision=run.revision), revision=run.revision)
        (out / "provenance.json").unlink(
            missing_ok=True
        )  # of an artifact with other fields: incomplete until the new one is there
        _prepare_folder(run, out, fresh=overwrite and not resume)
        return _end(run, method, request, base, made, out, began)
    model = load_model(
        str(source), dtype=run.dtype, revision=run.revision, device_map=spread, trust_remote_code=run.trust_remote_code
    )
    base = Base(path=str(source), sha256=model_fingerprint(str(source), revision=run.revision), revision=run.revision)
    began = time.perf_counter()
    if isinstance(method, TrainingMethod):
        assert rows is not None
        chosen_weights(model, method)
        _prepare_folder(run, out, fresh=overwrite and not resume)
        made = _made(run, request, train(model, method, rows, run.training, out, quiet=quiet), tokenizer)
    else:
        made = carry_out(method, model, request, encoder)
        _prepare_folder(run, out, fresh=overwrite and not resume)
    return _end(run, method, request, base, made, out, began)


def _end(
    run: Run | FineTuneRun, method: Method | FineTune, request: Request, base: Base, made: Made, out: Path, began: float
) -> Outcome:
    if is_main():
        _write(run, method, request, base, made, out, time.perf_counter() - began)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # no process goes on to read an artifact that is still being written
    return Outcome(out, out / "artifact", made.steps, made.stopped, made.notes)


def _check_out(out: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ExpungeError("--resume goes on with a run and --overwrite starts it anew; give one of them")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not (resume or overwrite) and is_main():
        raise ExpungeError(f"{out} exists already; go on with it by --resume, replace it by --overwrite, or give another --out")


def _check_device_map(spread: DeviceMap | None, method: Method | FineTune) -> None:
    if spread is None:
        return
    if not isinstance(method, GuardingMethod | InPlaceEditing):
        raise ExpungeError(f"--device-map is for methods without gradient steps; shard {method.method_name()} with torchrun")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ExpungeError("--device-map and several processes both spread the work over the accelerators; give one of them")


def _request(run: Run | FineTuneRun, method: Method | FineTune) -> Request:
    columns = run.columns or None
    if isinstance(run, FineTuneRun):
        examples = [e for source in run.data for e in read_examples(source, columns=columns)]
        return Request(tuple(examples[row] for row in choose(examples, run.where, run.only)))
    request = read_request(run.forget, run.retain, run.holdout, run.refusals, columns=columns, where=run.where, only=run.only)
    check_request(run, run.method, request)
    return request


def check_request(run: Run, method: Method, request: Request) -> None:
    """Raises where the request lacks what the method needs."""
    if not isinstance(method, TrainingMethod):
        method.require(request)
        return
    if request.retain and not method.uses_retain:
        warnings.warn(f"{method.method_name()} makes no use of the retain set", UserWarning, stacklevel=2)
    if method.uses_retain and not request.retain:
        raise ExpungeError(
            f"{method.method_name()} needs a retain set; give --retain, or --retain-loss none where the method has it"
        )
    if run.training.stop_when_unknown and not request.holdout:
        raise ExpungeError("--stop-when-unknown compares with rows that the model never saw; give them as --holdout")
    if method.uses_refusals and any(e.prompt is None for e in request.forget):
        raise ExpungeError(
            f"{method.method_name()} answers prompts with a refusal, and the forget set has raw text; give prompt and response"
        )


def model_source(model: str) -> Path | str:
    """A run or artifact of expunge stands for the weights inside it."""
    folder = artifact_folder(model)
    if folder is None:
        return model
    if (kind := read_manifest(folder).kind) != "weights":
        raise ExpungeError(f"{folder} is an artifact of kind {kind}; only weights can be trained further, so give a full model")
    return folder


def _encode(request: Request, method: TrainingMethod, encoder: Encoder) -> Rows:
    refusals = (request.refusals or REFUSALS) if method.uses_refusals else ()

    @cache
    def alternative(row: int, refusal: int) -> Encoded:
        return encoder.encode_answer(request.forget[row].prompt, refusals[refusal])

    return Rows(
        forget=encoder.encode_many(request.forget),
        ids=[e.id for e in request.forget],
        pad_id=encoder.pad_id,
        retain=encoder.encode_many(request.retain) if method.uses_retain else [],
        holdout=encoder.encode_many(request.holdout),
        refusals=len(refusals),
        alternative=alternative if refusals else None,
        parts=method.forget_parts(request),
    )


def _finished(run: Run | FineTuneRun, out: Path) -> bool:
    """The artifact is whole and was made by this very run."""
    if not (out / "provenance.json").is_file() or artifact_folder(out) is None:
        return False
    _check_same(run, out)
    verify(out)
    return True


def _differs(run: Run | FineTuneRun, out: Path) -> bool:
    path = out / "run.yaml"
    return path.is_file() and path.read_text(encoding="utf-8") != to_yaml(run)


def _check_same(run: Run | FineTuneRun, out: Path) -> None:
    if _differs(run, out):
        raise ExpungeError(
            f"{out / 'run.yaml'} describes another run; --resume goes on with the same fields only, so give them again or "
            "another --out"
        )


def _prepare_folder(run: Run | FineTuneRun, out: Path, *, fresh: bool) -> None:
    if not is_main():
        return
    out.mkdir(parents=True, exist_ok=True)
    if fresh:
        for old in [*out.glob("checkpoint-*"), out / "evaluation", out / "attacks", out / "report"]:
            shutil.rmtree(old, ignore_errors=True)
        for name in ("metrics.jsonl", "provenance.json"):
            (out / name).unlink(missing_ok=True)
    write_text(out / "run.yaml", to_yaml(run))


def _sets(run: Run | FineTuneRun, request: Request) -> dict[str, tuple[Example, ...]]:
    forget = "data" if isinstance(run, FineTuneRun) else "forget"
    return {forget: request.forget, "retain": request.retain, "holdout": request.holdout}


def _made(run: Run | FineTuneRun, request: Request, trained: Trained, tokenizer: PreTrainedTokenizerBase) -> Made:
    notes = "Trained for {} steps on {}.{}".format(
        trained.steps,
        ", ".join(f"{len(v)} {k} examples" for k, v in _sets(run, request).items() if v),
        f" Stopped early: {trained.stopped}." if trained.stopped else "",
    )
    kind: Kind = "adapter" if run.training.lora else "weights"
    return Made(kind, "L1", notes, partial(_save, trained, tokenizer, run), *trained[2:])


def _write(
    run: Run | FineTuneRun,
    method: Method | FineTune,
    request: Request,
    base: Base,
    made: Made,
    out: Path,
    wall_seconds: float,
) -> None:
    save_artifact(out / "artifact", made.kind, method, base, made.write, claim=made.claim, notes=made.notes)
    write_json(out / "provenance.json", _provenance(run, base, _sets(run, request), made, wall_seconds))
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    made.done()


def _save(trained: Trained, tokenizer: PreTrainedTokenizerBase, run: Run | FineTuneRun, folder: Path) -> None:
    """A complete Hugging Face folder, or PEFT's two files, with the tokenizer and the format beside it."""
    trained.model.save_pretrained(folder, state_dict=trained.gathered)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT writes an empty card
    tokenizer.save_pretrained(folder)
    assert run.format is not None
    save_format(folder, run.format)


def _provenance(
    run: Run | FineTuneRun, base: Base, sets: dict[str, tuple[Example, ...]], made: Made, wall_seconds: float
) -> Provenance:
    from importlib.metadata import version

    from expunge import __version__

    return Provenance(
        expunge=__version__,
        base=base.path,
        base_sha256=base.sha256,
        data={k: fingerprint(v) for k, v in sets.items() if v},
        counts={k: len(v) for k, v in sets.items() if v} | dict(made.counts),
        seed=run.training.seed,
        versions={"python": platform.python_version()} | {n: version(n) for n in ("torch", "transformers", "peft", "accelerate")},
        host=f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        threads=torch.get_num_threads(),
        processes=made.processes,
        wall_seconds=round(wall_seconds, 3),
        device_seconds=round(made.device_seconds, 3),
        peak_memory_bytes=made.peak_memory_bytes,
        stopped=made.stopped,
    )
