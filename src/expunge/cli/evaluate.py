"""`expunge evaluate MODEL_OR_RUN --suite NAME[,NAME] --data DIR --out DIR`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

from pydantic import ConfigDict, Field
from tyro.conf import Positional

from expunge.described import Described
from expunge.errors import ExpungeError, Interrupted, nearest, reason
from expunge.folders import COMMAND, check_apart, check_place, kept_command, results_folder, unfinished
from expunge.models.load import DeviceMap, DType
from expunge.records import Evaluation, Score

if TYPE_CHECKING:
    from expunge.evaluation.suites import SuiteSpec
    from expunge.evaluation.task import Suite
    from expunge.loading import Opened


class Evaluate(Described):
    """Scores with 95 % intervals, and one row per sample, of a model on one or more suites."""

    model_config = ConfigDict(frozen=True)

    model: Positional[str]
    """What to score: a run, an artifact, a model folder or a hub id."""
    suite: str
    """Names of suites, separated by commas; `expunge suites` lists them."""
    data: str | None = None
    """The suite's data: a folder, or a hub id where the suite has one; not needed where --options name all files (memorization,
    membership)."""
    out: str | None = None
    """Folder that gets SUITE.json and SUITE.samples.jsonl (in `evaluation/` if it is a run); left out, the run that is scored."""
    limit: int | None = None
    """Score only the first N examples of each task."""
    forget: str | None = None
    """tofu: the split that was to be forgotten (forget01, forget05, forget10); lab, skills, mmlu: the tasks, with commas
    between them."""
    retain_scores: str | None = None
    """Evaluation of a model that never saw the forget set (for the lab: gold), for forget_quality."""
    compat: bool = False
    """tofu, membership: metrics as in the released code of open-unlearning, into SUITE_compat.json."""
    allow_code_execution: bool = False
    """skills: run the programs that the model writes, in a process without rights. Off unless asked for."""
    options: tuple[str, ...] = ()
    """Other options of the suite as FIELD=VALUE, lists with commas between: `--options tasks=bio,chem style=continuation`;
    `expunge suites NAME` lists them."""
    max_length: int = Field(1024, ge=8)
    """Longest prompt with its answer in tokens, as far as the model takes as many; longer answers lose their end. Verbatim tasks
    use all that the model takes."""
    dtype: DType = "auto"
    """auto (as stored), float32, bfloat16 or float16."""
    device_map: DeviceMap | None = None
    """Spread a model that no single accelerator holds over several."""
    base: str | None = None
    """For an adapter or a guard: the base model, if it is no longer at its recorded place; its hash is compared."""
    force: bool = False
    """Attach an adapter or a guard to a model with another hash than the one that it was made for."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off unless asked for."""
    show_forget_text: bool = False
    """Write prompts, responses and answers into the sample file, of the forget set too."""
    verify: bool = False
    """Compare every checksum of an artifact of more than 8 GB before anything is scored; of smaller ones that is always done."""
    ablation: bool = False
    """For a guard of embedding_corruption: score it under every corruption of ECO's released ablation, each into a folder of its
    name. The gate decides once, and prompts that it lets pass are scored once."""
    resume: bool = False
    """Go on with an evaluation that was killed: `--resume --out DIR` is enough. (The whole command again goes on too.)"""
    overwrite: bool = False
    """Replace the scores of an earlier evaluation. One that was killed goes on by itself, after the last finished task; of
    several suites, those that are done stay."""


def main(words: Sequence[str]) -> None:
    from expunge.cli.flags import parse

    begun = _begun(words) if "--resume" in words else list(words)
    run(parse(Evaluate, "expunge evaluate", begun), begun)


def _begun(words: Sequence[str]) -> list[str]:
    """Returns, for `--resume --out DIR`, the command that began the evaluation in DIR; any other command unchanged."""
    from expunge.cli.flags import value_of

    out, said = value_of(words, "--out"), [word for word in words if word != "--resume"]
    if out is None or len(said) > 2:
        return said
    for place in (Path(out), Path(out) / "evaluation"):
        for partial in sorted(place.glob("*.partial")):
            if (partial / COMMAND).is_file():
                return kept_command(partial)
    raise ExpungeError(f"there is no unfinished evaluation in {out}; give the model, --suite and --data")


def run(flags: Evaluate, words: Sequence[str] = ()) -> None:
    from expunge.loading import Loading, open_model
    from expunge.processes import join

    suites = _suites(flags)
    out = results_folder(flags.model, flags.out, "evaluation")
    check_place(out)
    check_apart(out, [flags.model], also=("evaluation",), wide=[flags.data] if flags.data else [])
    there = [file for suite in suites if (file := out / f"{suite.name}.json").exists() and not flags.ablation]
    if there and len(there) == len(suites) and not flags.overwrite:
        raise ExpungeError(f"{there[0]} exists; replace it with --overwrite, or give another --out")
    join()
    opened = open_model(
        flags.model,
        Loading(
            flags.dtype,
            device_map=flags.device_map,
            trust_remote_code=flags.trust_remote_code,
            base=flags.base,
            force=flags.force,
            verify=flags.verify,
        ),
    )
    try:
        if flags.ablation:
            _ablate(flags, opened, suites, out)
        else:
            _evaluate(flags, opened, suites, out, words, resume=bool(there))
    except KeyboardInterrupt as stop:
        raise Interrupted(unfinished(out)) from stop
    except OSError as error:
        if (said := unfinished(out)) is None:
            raise
        raise ExpungeError(f"{reason(error)}; make room; {said}") from error


def _suites(flags: Evaluate) -> "list[Suite]":
    """Builds the suites from their data, after a check of the options."""
    from expunge.evaluation.suites import built, suite_class

    classes = [suite_class(name) for name in flags.suite.split(",")]
    _check_options(classes, flags)
    specs = [_spec(cls, flags) for cls in classes]
    return [built(spec, flags.data) for spec in specs]


def _evaluate(
    flags: Evaluate, opened: "Opened", suites: "Sequence[Suite]", out: Path, words: Sequence[str], *, resume: bool
) -> None:
    """Scores the model on each suite, and prints the scores; `words` are those of the command line."""
    from expunge.evaluation.run import evaluate
    from expunge.processes import is_main

    fingerprint = opened.fingerprint()
    for suite in suites:
        evaluation = evaluate(
            opened.model,
            opened.tokenizer,
            suite=suite,
            out=out,
            limit=flags.limit,
            max_length=flags.max_length,
            artifact=flags.model,
            fingerprint=fingerprint,
            show_forget_text=flags.show_forget_text,
            overwrite=flags.overwrite,
            resume=resume,
            command=words,
        )
        if is_main():
            print(table(evaluation))


def _ablate(flags: Evaluate, opened: "Opened", suites: "Sequence[Suite]", out: Path) -> None:
    from expunge.evaluation.ablation import ablate

    if flags.max_length != Evaluate.model_fields["max_length"].default:
        raise ExpungeError("an ablation reads at most 1024 tokens of a prompt with its answer; leave --max-length out")
    if len(suites) != 1:
        raise ExpungeError("an ablation scores one suite at a time; give one --suite")
    found = ablate(
        opened.model,
        opened.tokenizer,
        suites[0],
        out=out / "ablation",
        limit=flags.limit,
        artifact=flags.model,
        fingerprint=opened.fingerprint(),
        show_forget_text=flags.show_forget_text,
        overwrite=flags.overwrite,
    )
    for evaluation in found.values():
        print(table(evaluation))


def _given(flags: Evaluate) -> dict[str, Any]:
    """Returns the suites' options among the given flags."""
    given: dict[str, Any] = {"forget": flags.forget, "retain_scores": flags.retain_scores, "compat": flags.compat or None}
    given |= {"allow_code_execution": flags.allow_code_execution or None}
    return {name: value for name, value in given.items() if value is not None}


def _check_options(classes: Sequence[type["SuiteSpec"]], flags: Evaluate) -> None:
    """Raises ExpungeError for an option that none of the suites has; each suite takes its own."""
    names = ", ".join(cls.suite_name() for cls in classes)
    known = list(dict.fromkeys(field for cls in classes for field in cls.model_fields if field != "name"))
    for name in _given(flags):
        if name not in known:
            raise ExpungeError(
                f"the suite {names} has no option --{name.replace('_', '-')}; leave it out (`expunge suites NAME` lists options)"
            )
    for word in flags.options:
        name, equals, _ = word.partition("=")
        if not equals or name not in known:
            fields = ", ".join(f"{field}=..." for field in known)
            raise ExpungeError(f"--options {word}: the suite {names} takes {fields}{nearest(name, known)}")


def _spec(cls: type["SuiteSpec"], flags: Evaluate) -> "SuiteSpec":
    """Makes the suite with its options."""
    from pydantic import ValidationError

    given = _given(flags) | {name: value for name, _, value in (word.partition("=") for word in flags.options)}
    given = {name: value for name, value in given.items() if name in cls.model_fields}
    for name, value in given.items():
        if get_origin(cls.model_fields[name].annotation) is tuple:
            given[name] = tuple(value.split(","))
    try:
        return cls(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        flag = f"--{name.replace('_', '-')} " if name in Evaluate.model_fields else f"--options {name}="
        raise ExpungeError(f"{flag}{first['input']}: {first['msg']}; `expunge suites {cls.suite_name()}` explains it") from None


def table(evaluation: Evaluation) -> str:
    """Formats the scores as aligned text: task, metric, value, interval, number of samples; then scores without a value, with
    the reason, and what values are not of."""
    lines = [f"{evaluation.suite}: {evaluation.artifact}, {evaluation.seconds:.1f} s"]
    numbers = [score for score in evaluation.scores if score.value is not None]
    tasks, metrics = (max([20, *map(len, names)]) for names in ([s.task for s in numbers], [s.metric for s in numbers]))
    lines += [f"  {score.task:<{tasks}} {score.metric:<{metrics}} {_number(score)}" for score in numbers]
    reasons: dict[str, list[str]] = {}
    for score in evaluation.scores:
        if score.unscored is not None:
            reasons.setdefault(score.unscored, []).append(f"{score.task} {score.metric}")
    lines += [f"  no {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    remarks: dict[str, list[str]] = {}
    for score in numbers:
        for remark in score.remarks():
            remarks.setdefault(remark, []).append(f"{score.task} {score.metric}")
    lines += [f"  {', '.join(names)}: {remark}" for remark, names in remarks.items()]
    return "\n".join(lines)


def _number(score: Score) -> str:
    interval = f"[{score.low:.4f}, {score.high:.4f}]" if score.low is not None and score.high is not None else ""
    return f"{score.value:>9.4g}   {interval:<18} n = {score.n}"
