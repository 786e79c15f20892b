"""`expunge merge METHOD --base B --models A C ... --out DIR [--FIELD VALUE ...]`, or `expunge merge --config FILE --out DIR`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, create_model

from expunge.cli.merge_pairs import merge_pairs
from expunge.described import Described
from expunge.errors import ExpungeError, Interrupted, nearest
from expunge.folders import COMMAND, beside_of, kept_command, unfinished

if TYPE_CHECKING:
    from expunge.merging import MergeRequest
    from expunge.methods.editing.base import EditingMethod
    from expunge.methods.editing.factors import AdapterMethod


class Work(Described):
    """How the merge is run."""

    model_config = ConfigDict(frozen=True)

    out: str
    """Folder of the result; it must not exist, unless --overwrite is given."""
    shard_gb: float = Field(5.0, gt=0)
    """Largest weight file of the result."""
    threads: int | None = Field(None, ge=1)
    """Default: torch's number of threads. It does not change the result."""
    dry_run: bool = False
    """Print what would be read, written and held in memory, and exit."""
    resume: bool = False
    """Resume an interrupted merge."""
    overwrite: bool = False
    """Start again, and replace the result of an earlier merge when the new one is complete."""
    quiet: bool = False
    """No progress bar."""


class FromMergekit(Work):
    """Merge as a mergekit YAML file says."""

    config: str
    """The file: models, base_model, merge_method, parameters with filters and gradients, dtype."""


class Merge(Work):
    """Merge models into a base; memory use does not depend on their size."""

    base: str
    """Model folder, run of expunge or hub id: the weights to start from, and the tokenizer of the result."""
    models: tuple[str, ...]
    """What to merge, in order: model folders, LoRA folders, files of differences."""
    write: Literal["weights", "delta", "adapter"] = "weights"
    """A complete model; only the differences of changed tensors; or, from LoRA folders, a LoRA of rank --rank."""
    rank: int | None = Field(None, ge=1)
    """Rank of the adapter that is written."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the result; auto: each tensor's own. Sums are in float32 and rounded once."""
    vocabulary: Literal["refuse", "base"] = "refuse"
    """For models with another number of tokens: refuse them, or merge the rows that both have and keep the base's for the
    rest."""


class Adapters(Described):
    """Make one adapter from two, by their factors: seconds on a CPU, no base model needed."""

    model_config = ConfigDict(frozen=True)

    models: tuple[str, str]
    """EXPERT and ANTI_EXPERT, in this order: PEFT folders (LoRA, (IA)^3, prefix), runs with --lora, or hub ids."""
    out: str
    """Folder of the result; it must not exist, unless --overwrite is given. The adapter is in OUT/artifact."""
    base: str | None = None
    """The base model of both, if their configurations do not name the same; ethos needs it."""
    rank: int | None = Field(None, ge=1)
    """Largest rank of the result, by singular values, with the error reported; default: the sum of both ranks, exactly."""
    resume: bool = False
    """Repeat a merge that was interrupted: `--resume --out DIR` is enough. It takes seconds, so nothing of it was kept."""
    overwrite: bool = False
    """Replace the result of an earlier merge when the new one is complete."""


def _begun(out: Path) -> list[str]:
    """Returns the command that began the unfinished merge into `out`. Raises ExpungeError if there is none."""
    work = beside_of(out, "partial")
    if not (work / COMMAND).is_file():
        raise ExpungeError(f"there is no unfinished merge into {out}; give the whole command")
    return kept_command(work)


def _help() -> None:
    from expunge.methods.editing import ADAPTER_MERGING, MERGING

    print(f"usage: {__doc__.removesuffix('.').replace('`', '')}\n\nmethods:")
    for cls in MERGING:
        print(f"  {cls.method_name():<20} {cls.formula}")
    print("\nmethods that make one adapter of two, `--models EXPERT ANTI_EXPERT`:")
    for adapter_cls in ADAPTER_MERGING:
        print(f"  {adapter_cls.method_name():<20} {adapter_cls.formula}")
    print(
        "\n`expunge merge METHOD --help` lists the fields of a method; --config takes a YAML file of mergekit,\n"
        "and with a method for adapters a file of pairs:\n"
        "`expunge merge ext_sub --config behavior/ext_sub_published --out DIR`."
    )


def _merge_adapters(chosen: "type[AdapterMethod]", words: Sequence[str]) -> None:
    """Makes one adapter of two. Raises what `merge_adapters` raises."""
    from expunge.cli.flags import parse

    two = create_model("Adapters", __base__=Adapters, __doc__=chosen.__doc__, method=(chosen, chosen()))
    given = parse(two, f"expunge merge {words[0]}", words[1:])
    from expunge.merging import merge_adapters

    try:
        made = merge_adapters(
            given.method,  # type: ignore[attr-defined]
            models=given.models,
            out=given.out,
            base=given.base,
            rank=given.rank,
            resume=given.resume,
            overwrite=given.overwrite,
            command=[word for word in words if word not in ("--resume", "--overwrite")],
        )
    except KeyboardInterrupt as stop:
        raise Interrupted(unfinished(given.out) or "nothing was put in place") from stop
    print(f"{made.sentences()}\n  the adapter is in {Path(given.out) / 'artifact'}")


def main(words: Sequence[str]) -> None:
    from expunge.cli.flags import value_of
    from expunge.methods.editing import ADAPTER_MERGING, MERGING

    methods = {cls.method_name(): cls for cls in MERGING}
    of_adapters = {cls.method_name(): cls for cls in ADAPTER_MERGING}
    if not words or words[0] in ("-h", "--help"):
        _help()
        return
    if "--resume" in words and len(words) <= 3 and (out_said := value_of(words, "--out")) is not None:
        words = [*_begun(Path(out_said)), "--resume"]
    if words[0].startswith("-"):
        _merge(*_of_mergekit(words), words)
    elif words[0] in of_adapters and value_of(words, "--config") is not None:
        merge_pairs(of_adapters[words[0]], words)
    elif words[0] in of_adapters:
        _merge_adapters(of_adapters[words[0]], words)
    elif words[0] in methods:
        _merge(*_asked(methods[words[0]], words), words)
    else:
        raise ExpungeError(
            f"there is no merge method '{words[0]}'{nearest(words[0], [*methods, *of_adapters])}; "
            "`expunge merge --help` lists them all"
        )


def _of_mergekit(words: Sequence[str]) -> "tuple[MergeRequest, Work]":
    """Returns the merge that a file of mergekit describes, and the other flags."""
    from expunge.cli.flags import parse

    flags = parse(FromMergekit, "expunge merge", words)
    from expunge.merging.mergekit import read_mergekit

    return read_mergekit(Path(flags.config), shard_bytes=round(flags.shard_gb * 1e9)), flags


def _asked(spec: "type[EditingMethod]", words: Sequence[str]) -> "tuple[MergeRequest, Work]":
    """Returns the merge that the flags of a method describe, and the other flags."""
    from expunge.cli.flags import parse

    form = create_model("Merge", __base__=Merge, __doc__=spec.__doc__, method=(spec, spec()))
    flags = parse(form, f"expunge merge {words[0]}", words[1:])
    from expunge.merging import make_request

    request = make_request(
        flags.method,  # type: ignore[attr-defined]
        base=flags.base,
        models=flags.models,
        write=flags.write,
        rank=flags.rank,
        dtype=flags.dtype,
        vocabulary=flags.vocabulary,
        shard_bytes=round(flags.shard_gb * 1e9),
    )
    return request, flags


def _merge(request: "MergeRequest", flags: Work, words: Sequence[str]) -> None:
    """Runs the merge and prints its result, or what it would do."""
    from expunge.merging import dry_run, execute

    out = Path(flags.out)
    if flags.dry_run:
        print(dry_run(request, out, flags.threads), end="")
        return
    try:
        result = execute(
            request,
            out,
            threads=flags.threads,
            resume=flags.resume,
            overwrite=flags.overwrite,
            quiet=flags.quiet,
            command=[word for word in words if word not in ("--resume", "--overwrite")],
        )
    except KeyboardInterrupt as stop:
        raise Interrupted(unfinished(out) or "nothing was put in place") from stop
    print(f"{result.sentences()}\n  the result is in {out}")
