"""Checks whether a run's files belong together: unfinished runs, files changed later, outdated scores.

Only files newer than their manifest are hashed, so that a report over large models is fast; `expunge verify` hashes all.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from expunge.folders import unfinished
from expunge.report.read import Artifact, RunRecord

LATER = 2.0
"""Difference in seconds between two files of one artifact that is ignored."""


def broken_up(run: RunRecord) -> list[str]:
    """Returns one sentence for each inconsistency in a run's folder; empty for a folder of scores alone."""
    sentence = unfinished(run.folder)
    said = [f"{run.name} is not finished: {sentence}."] if sentence else []
    if run.artifact is None:
        return said
    manifest = run.folder / "artifact" / "expunge.json"
    return [
        *said,
        *_changed_files(run, run.artifact, manifest),
        *_older_scores(run, manifest),
        *_other_settings(run, run.artifact),
    ]


def _changed_files(run: RunRecord, artifact: Artifact, manifest: Path) -> list[str]:
    written = manifest.stat().st_mtime
    for name, expected in artifact.files.items():
        path = manifest.parent / name
        if path.is_file() and path.stat().st_mtime > written + LATER and _sha256(path) != expected:
            return [f"{run.name}: {name} was changed after the artifact was written; its scores may be of another model."]
    return []


def _older_scores(run: RunRecord, manifest: Path) -> list[str]:
    files = [run.folder / "evaluation" / f"{evaluation.suite}.json" for evaluation in run.evaluations]
    older = [f.stem for f in files if f.is_file() and f.stat().st_mtime < manifest.stat().st_mtime - LATER]
    if not older:
        return []
    return [f"{run.name}: its scores of {', '.join(older)} are older than its artifact; evaluate it again."]


def _other_settings(run: RunRecord, artifact: Artifact) -> list[str]:
    """Compares run.yaml with the artifact: if they differ, one of the two was edited."""
    try:
        settings: Any = yaml.safe_load(run.config or "")
    except yaml.YAMLError:
        return [f"{run.name}: its run.yaml is no YAML any more; it was edited after the run."]
    method = settings.get("method") if isinstance(settings, dict) else None
    if not isinstance(method, dict):
        return []
    other = [key for key, value in method.items() if key in artifact.method and _plain(value) != _plain(artifact.method[key])]
    if not other:
        return []
    return [f"{run.name}: its run.yaml and its artifact differ in {', '.join(other)}; one of them was edited after the run."]


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
