"""`expunge merge METHOD --config FILE --out DIR`: several pairs of adapters, the result of each in DIR/NAME."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, create_model

from expunge.described import Described
from expunge.errors import ExpungeError, Interrupted
from expunge.folders import beside_of
from expunge.recipes import recipe

if TYPE_CHECKING:
    from expunge.methods.editing.factors import AdapterMethod


class Pairs(Described):
    """Make one adapter from each of several pairs."""

    model_config = ConfigDict(frozen=True)

    config: str
    """A YAML file or recipe with `merges: {NAME: [EXPERT, ANTI_EXPERT], ...}`."""
    out: str
    """Folder of the results, one below it for each name. What is complete there is not made again."""
    rank: int | None = Field(None, ge=1)
    """Largest rank of each result; default: the sum of both ranks, exactly."""
    overwrite: bool = False
    """Make results again that are there already."""


def merge_pairs(chosen: "type[AdapterMethod]", words: Sequence[str]) -> None:
    """Makes one adapter of each pair. Raises ExpungeError if the file does not list pairs or another method made what is there,
    and what `merge_adapters` raises."""
    from expunge.artifact import read_manifest
    from expunge.cli.flags import parse
    from expunge.merging import merge_adapters

    several = create_model("Pairs", __base__=Pairs, __doc__=Pairs.__doc__, method=(chosen, chosen()))
    given = parse(several, f"expunge merge {words[0]}", words[1:])
    for name, models in pairs_of(given.config).items():
        out = Path(given.out) / name
        if (out / "merge.json").is_file() and not given.overwrite:
            made_by, asked = read_manifest(out / "artifact").method, given.method.model_dump(mode="json")  # type: ignore[attr-defined]
            if made_by != asked:
                raise ExpungeError(f"{out} was made by {made_by}, and {asked} is asked for; give --overwrite or another --out")
            print(f"{name}: {out} is there already (--overwrite makes it again)")
            continue
        try:
            made = merge_adapters(
                given.method,  # type: ignore[attr-defined]
                models=models,
                out=out,
                rank=given.rank,
                resume=beside_of(out, "partial").exists() and not given.overwrite,
                overwrite=given.overwrite,
                command=[words[0], "--models", *models, "--out", str(out)],
            )
        except KeyboardInterrupt as stop:
            raise Interrupted("the same command goes on with the pairs that are missing") from stop
        print(f"{name}: {made.sentences()}\n  the adapter is in {out / 'artifact'}")


def pairs_of(config: str) -> dict[str, tuple[str, str]]:
    """Reads the pairs of a file or recipe, by name."""
    from expunge.spec import read_yaml

    path = Path(config)
    said = read_yaml(path) if path.exists() else recipe(config)
    merges: Any = said.get("merges")
    if not isinstance(merges, dict) or not merges or set(said) != {"merges"}:
        raise ExpungeError(f"{config} lists no pairs of adapters; write only `merges: {{NAME: [EXPERT, ANTI_EXPERT]}}`")
    for name, pair in merges.items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise ExpungeError(f"{config}: {name} is not a pair; write [EXPERT, ANTI_EXPERT]")
        if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
            raise ExpungeError(f"{config}: '{name}' cannot be the name of a folder; give a plain one")
    return {name: (pair[0], pair[1]) for name, pair in merges.items()}
