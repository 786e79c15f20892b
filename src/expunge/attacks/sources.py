"""Finds the inputs of an attack: the facts to recover, their controls, retained facts, text, and other models."""

from dataclasses import dataclass, replace
from pathlib import Path

from expunge.artifact import artifact_folder, find_base, read_manifest
from expunge.data.example import Example
from expunge.data.read import read_examples
from expunge.errors import ExpungeError
from expunge.evaluation.suites import built, suite_class
from expunge.evaluation.suites.base import SuiteSpec
from expunge.records import Role


@dataclass(frozen=True)
class Sources:
    """The inputs of an attack, without the attacked model."""

    forget: tuple[Example, ...]
    """Facts to be forgotten: questions with answers."""
    control: tuple[Example, ...] = ()
    """Facts of the same kind that the model never saw."""
    retain: tuple[Example, ...] = ()
    neutral: tuple[Example, ...] = ()
    gold: str | None = None
    """A model that never saw the forget set: a run, a folder or a hub id."""
    original: str | None = None
    """The model before unlearning."""

    def limited(self, most: int | None) -> "Sources":
        """Returns the first `limit` facts of each set."""
        if most is None:
            return self
        if most < 2:
            raise ExpungeError(f"--limit {most} leaves nothing to compare; give a number from 2 on")
        return replace(self, forget=self.forget[:most], control=self.control[:most], retain=self.retain[:most])


def sources(
    artifact: str,
    *,
    suite: str | SuiteSpec | None = None,
    data: str | Path | None = None,
    forget: str | Path | None = None,
    control: str | Path | None = None,
    retain: str | Path | None = None,
    neutral: str | Path | None = None,
    gold: str | None = None,
    original: str | None = None,
) -> Sources:
    """Reads them from a suite's tasks by their roles, and from files; a file replaces the suite's task.

    In a lab gold, original and the neutral text are found in its folder. Elsewhere the original is the base that the artifact
    records.
    """
    by_role: dict[Role, tuple[Example, ...]] = {}
    if suite is not None:
        spec = suite_class(suite)() if isinstance(suite, str) else suite
        if data is None:
            raise ExpungeError(f"the suite {spec.suite_name()} needs its data: {spec.layout}; give the folder with --data")
        for task in built(spec, data).tasks:
            asked = tuple(example for example in task.examples if example.prompt is not None)
            if asked:
                by_role.setdefault(task.role, asked)
    lab = Path(data) if data is not None and (Path(data) / "world.json").is_file() else None
    found = Sources(
        forget=_read(forget) or by_role.get("forget", ()),
        control=_read(control) or by_role.get("control", ()),
        retain=_read(retain) or by_role.get("retain", ()),
        neutral=_read(neutral) or (_read(lab / "data/general/corpus.jsonl") if lab else ()),
        gold=gold or _beside(lab, "gold"),
        original=original or _beside(lab, "original") or _base(artifact),
    )
    if not found.forget:
        raise ExpungeError(
            "there are no facts to bring back; name a suite with a forget task (--suite), or a file (--forget FILE)"
        )
    return found


def _read(file: str | Path | None) -> tuple[Example, ...]:
    return tuple(read_examples(file)) if file is not None else ()


def _beside(lab: Path | None, name: str) -> str | None:
    folder = lab / "models" / name if lab is not None else None
    return str(folder) if folder is not None and folder.is_dir() else None


def _base(artifact: str) -> str | None:
    """Returns the start model of a run; None for a plain model, or if it is not on this machine."""
    folder = artifact_folder(artifact)
    if folder is None:
        return None
    try:
        return find_base(folder, read_manifest(folder), None)[0]
    except ExpungeError:
        return None
