"""`expunge export RUN --out DIR`."""

from pydantic import ConfigDict
from tyro.conf import Positional

from expunge.described import Described


class Export(Described):
    """Write a guard of embedding_corruption as files for a proxy, which embeds prompts itself and hands a server embeddings."""

    model_config = ConfigDict(frozen=True)

    guard: Positional[str]
    """The guard: a run or an artifact."""
    out: str
    """Folder for the files; it must be new or empty."""
    base: str | None = None
    """The base model, if it is no longer at its recorded place; its hash is compared."""


def run(flags: Export) -> None:
    from expunge.guarding.proxy import export_guard

    folder = export_guard(flags.guard, flags.out, base=flags.base)
    print(f"{folder}: embeddings, gate and corruption; load it with expunge.guarding.proxy.Embedder")
