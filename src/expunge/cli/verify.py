"""`expunge verify ARTIFACT`."""

from pydantic import ConfigDict
from tyro.conf import Positional

from expunge.described import Described
from expunge.folders import ARTIFACT


class Verify(Described):
    """Recompute every checksum of an artifact, and say what the records beside it support."""

    model_config = ConfigDict(frozen=True)

    artifact: Positional[str]
    """Folder of a run or of an artifact."""


def run(flags: Verify) -> None:
    from expunge.artifact import artifact_folder, verify

    manifest = verify(flags.artifact)
    print(f"{flags.artifact}: {manifest.kind} by {manifest.method['name']}, {len(manifest.files)} files, every checksum agrees")
    folder = artifact_folder(flags.artifact)
    if folder is not None and folder.name == ARTIFACT:
        from expunge.report.claims import claim
        from expunge.report.read import read_run

        found = claim(read_run(folder.absolute().parent), None, None)
        print(f"  claim, by the scores and attacks of the run: {found.shown} ({found.why})")
