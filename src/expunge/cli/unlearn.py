"""`expunge unlearn METHOD --model M --forget F --retain R --out DIR [--FIELD VALUE ...]`."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from expunge.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.cli.runs import Folder
    from expunge.methods import Spec
    from expunge.spec import Run


QUESTIONS = (
    "Without files: `--forget-question TEXT ...` asks the model itself for what to forget and, where no --retain is given, for "
    "what to keep, writes both to OUT.request, and goes on with these files."
)


def main(words: Sequence[str]) -> None:
    from expunge.cli.runs import going_on

    if words[:1] in (["-h"], ["--help"]):
        _help()
        return
    run, folder, questions = _parsed(words)
    from expunge.evaluation.alternates import draw_answers
    from expunge.evaluation.objectives import build_objective
    from expunge.run import execute

    out = Path(folder.out)
    with going_on(out):
        if questions:
            _ask(run, questions, out, resume=folder.resume, overwrite=folder.overwrite)
        outcome = execute(
            run,
            out,
            resume=folder.resume,
            overwrite=folder.overwrite,
            build_objective=build_objective,
            draw_answers=draw_answers,
            measures=not folder.no_check,
        )
    stopped = f" ({outcome.stopped})" if outcome.stopped else ""
    if outcome.steps == 0 and outcome.notes:  # nothing was trained: what was fitted is all there is to say
        print(outcome.notes.partition("\n\n")[0])
        print(f"{outcome.folder}: the artifact is in {outcome.artifact}")
    else:
        print(f"{outcome.folder}: {outcome.steps} steps{stopped}; the artifact is in {outcome.artifact}")
    if outcome.self_check is not None:
        print(*(f"  {line}" for line in outcome.self_check.said), sep="\n")


def _help() -> None:
    from expunge.methods import UNLEARNING

    print("usage: expunge unlearn METHOD --model M --forget F --retain R --out DIR [--FIELD VALUE ...]\n\nmethods:")
    for known, cls in UNLEARNING.items():
        print(f"  {known:<22} {cls.formula}")
    print("\n`expunge unlearn METHOD --help` lists the fields of a method.")
    print(QUESTIONS)


def _parsed(words: Sequence[str]) -> "tuple[Run, Folder, list[str]]":
    """Returns the run, its folder, and the texts after --forget-question."""
    from expunge.cli.nested import inner_choices, narrow, plain
    from expunge.cli.runs import Folder, parse_run, said_in_file
    from expunge.spec import Run
    from expunge.training.settings import Training

    name = words[0] if words and not words[0].startswith("-") else None
    flags, questions = _questions(list(words[1:] if name else words))
    said: Any = said_in_file(flags, "unlearn").get("method", {})
    spec = _spec(name, said)
    if isinstance(said, dict) and said.get("name", name) != spec.method_name():
        said = {}  # the word on the command line wins over the file, and the file's fields are another method's
    method = {**said, "name": spec.method_name()}
    explained = f"{inspect.getdoc(spec)}\n\n{QUESTIONS}"
    program = f"expunge unlearn {spec.method_name()}"
    if inner_choices(spec):
        inner = narrow(spec, method, flags)
        fields = {"training": (plain(Training), Training()), "method": (plain(inner.spec), ...), "folder": (plain(Folder), ...)}
        nested: Any = create_model("Unlearn", __base__=Run, __doc__=explained, **fields)  # type: ignore[call-overload]
        run, folder = parse_run(nested, Run, program, inner.words, {"method": inner.said}, prefixes=True)
    else:
        own = Field(description="The fields of the method.")  # said here, tyro need not search the sources for it
        form = create_model(
            "Unlearn", __base__=Run, __doc__=explained, method=(spec, own), folder=(Folder, Field(description=Folder.__doc__))
        )
        run, folder = parse_run(form, Run, program, flags, {"method": method})
    return run, folder, questions


def _spec(name: str | None, said: Any) -> "type[Spec]":
    """Returns the class of the method that the command line or else the file names; `said` is the file's field `method`."""
    from expunge.methods import UNLEARNING, method_class

    if name is None and not (isinstance(said, dict) and "name" in said):
        raise ExpungeError(
            "expunge unlearn needs a method: `expunge unlearn METHOD ...`, or a --config file with `method: {name: ...}`"
        )
    spec = method_class(name or str(said["name"]))
    if spec.method_name() not in UNLEARNING:
        raise ExpungeError(f"{spec.method_name()} merges models that exist already; use `expunge merge {spec.method_name()}`")
    return spec


def _questions(words: list[str]) -> tuple[list[str], list[str]]:
    """Returns the words with `--forget-question TEXT ...` replaced by the files that will be made, and the texts."""
    if not any(word.partition("=")[0] == "--forget-question" for word in words):
        return words, []
    left, questions, taking = list[str](), list[str](), False
    for word in words:
        if word.partition("=")[0] == "--forget-question":
            questions += [word.partition("=")[2]] if "=" in word else []
            taking = "=" not in word
        elif taking and not word.startswith("--"):
            questions.append(word)
        else:
            left, taking = [*left, word], False
    if not questions:
        raise ExpungeError("--forget-question needs the text of a question after it")
    if _value(left, "--forget") is not None:
        raise ExpungeError("--forget and --forget-question both say what to forget; give one of them")
    place = request_folder(Path(_value(left, "--out") or "-"))
    left += ["--forget", str(place / "forget.jsonl")]
    if _value(left, "--retain") is None:
        left += ["--retain", str(place / "retain.jsonl")]
    return left, questions


def request_folder(out: Path) -> Path:
    """Returns a folder beside the run's, so that `--overwrite` of the run does not touch it."""
    place = out if out.name not in ("", "..") else Path(os.path.abspath(out))
    return place.with_name(f"{place.name}.request")


def _value(words: Sequence[str], flag: str) -> str | None:
    for i, word in enumerate(words):
        if word == flag:
            return words[i + 1] if i + 1 < len(words) else ""
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _ask(run: "Run", questions: Sequence[str], out: Path, *, resume: bool, overwrite: bool) -> None:
    """Makes the files that the run names. A resumed run uses those that it was begun with."""
    from expunge.asking import ask
    from expunge.start import find_start

    folder = request_folder(out)
    if resume and (folder / "forget.jsonl").is_file():
        return
    if folder.exists() and not overwrite:
        raise ExpungeError(
            f"{folder} exists already; go on with its files by --forget and --retain, make them anew by --overwrite, or give "
            "another --out"
        )
    start = find_start(run.model, run.revision)
    tokenizer = start.tokenizer(trust_remote_code=run.trust_remote_code)
    model = start.load(run.dtype, trust_remote_code=run.trust_remote_code)
    with_retain = str(folder / "retain.jsonl") in run.retain
    for line in ask(model, tokenizer, questions, folder, with_retain=with_retain, seed=run.training.seed).lines():
        print(line)
