"""`expunge verify ARTIFACT`."""

from pydantic import BaseModel, ConfigDict
from tyro.conf import Positional


class Verify(BaseModel):
    """Recompute every checksum of an artifact."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    artifact: Positional[str]
    """Folder of a run or of an artifact."""


def run(flags: Verify) -> None:
    from expunge.artifact import verify

    manifest = verify(flags.artifact)
    print(f"{flags.artifact}: {manifest.kind} by {manifest.method['name']}, {len(manifest.files)} files, every checksum agrees")
