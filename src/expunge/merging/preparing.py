"""Makes the hidden folder of a streamed merge, with its files at full size, and recognizes one that is complete."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from expunge.errors import ExpungeError
from expunge.folders import keep_command
from expunge.merging.journal import Findings, Journal
from expunge.merging.output import Output
from expunge.merging.report import MergeResult
from expunge.merging.storage import reserve


def finished_merge(out: Path, fingerprint: str) -> MergeResult | None:
    """Returns the result of this very merge, if it exists."""
    try:
        result = MergeResult.model_validate_json((out / "merge.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.plan == fingerprint else None


def is_complete(output: Output, work: Path) -> bool:
    """Returns whether all files that a journal mentions exist."""
    files = [(work / "weights" / shard.file, shard.nbytes) for shard in output.shards]
    return all(file.is_file() and file.stat().st_size == nbytes for file, nbytes in files)


def prepare(
    output: Output, work: Path, journal: Journal, fingerprint: str, findings: Findings, command: Sequence[str] = ()
) -> None:
    try:
        shutil.rmtree(work, ignore_errors=True)
        (work / "weights").mkdir(parents=True)
        for shard in output.shards:
            reserve(work / "weights" / shard.file, shard)
        if command:
            keep_command(work, command)
        journal.done.clear()
        journal.begin(fingerprint, findings)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise ExpungeError(f"{work} could not be made ({error}); choose another --out, or make room") from error
