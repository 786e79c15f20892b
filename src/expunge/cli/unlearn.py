"""`expunge unlearn METHOD --model M --forget F --retain R --out DIR [--FIELD VALUE ...]`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import create_model

from expunge.errors import ExpungeError


def main(words: Sequence[str]) -> None:
    from expunge.cli.nested import inner_choices, narrow, plain
    from expunge.cli.runs import Folder, _config, parse_run
    from expunge.methods import UNLEARNING, method_class
    from expunge.run import execute
    from expunge.spec import Run
    from expunge.training.settings import Training

    name = words[0] if words and not words[0].startswith("-") else None
    if name is None and words[:1] in (["-h"], ["--help"]):
        print("usage: expunge unlearn METHOD --model M --forget F --retain R --out DIR [--FIELD VALUE ...]\n\nmethods:")
        for known, cls in UNLEARNING.items():
            print(f"  {known:<22} {cls.formula}")
        print("\n`expunge unlearn METHOD --help` lists the fields of a method.")
        return
    flags = list(words[1:] if name else words)
    said: Any = _config(flags).get("method", {})
    if name is None and not (isinstance(said, dict) and "name" in said):
        raise ExpungeError(
            "expunge unlearn needs a method: `expunge unlearn METHOD ...`, or a --config file with `method: {name: ...}`"
        )
    spec = method_class(name or str(said["name"]))
    if spec.method_name() not in UNLEARNING:
        raise ExpungeError(f"{spec.method_name()} merges models that exist already; use `expunge merge {spec.method_name()}`")
    if isinstance(said, dict) and said.get("name", name) != spec.method_name():
        said = {}  # the word on the command line wins over the file, and the file's fields are another method's
    method = {**said, "name": spec.method_name()}
    program = f"expunge unlearn {spec.method_name()}"
    if inner_choices(spec):
        inner = narrow(spec, method, flags)
        fields = {"training": (plain(Training), Training()), "method": (plain(inner.spec), ...), "folder": (plain(Folder), ...)}
        nested: Any = create_model("Unlearn", __base__=Run, __doc__=spec.__doc__, **fields)  # type: ignore[call-overload]
        run, folder = parse_run(nested, Run, program, inner.words, {"method": inner.said}, prefixes=True)
    else:
        form = create_model("Unlearn", __base__=Run, __doc__=spec.__doc__, method=(spec, ...), folder=(Folder, ...))
        run, folder = parse_run(form, Run, program, flags, {"method": method})
    outcome = execute(run, Path(folder.out), resume=folder.resume, overwrite=folder.overwrite)
    stopped = f" ({outcome.stopped})" if outcome.stopped else ""
    if outcome.steps == 0 and outcome.notes:  # nothing was trained: what was fitted is all there is to say
        print(outcome.notes.partition("\n\n")[0])
        print(f"{outcome.folder}: the artifact is in {outcome.artifact}")
    else:
        print(f"{outcome.folder}: {outcome.steps} steps{stopped}; the artifact is in {outcome.artifact}")
