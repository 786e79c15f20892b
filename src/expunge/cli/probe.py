"""`expunge probe MODEL --forget F --retain R --out DIR [--analysis]`; under torchrun the processes share the passes."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field
from tyro.conf import Positional

from expunge.described import Described
from expunge.errors import ExpungeError
from expunge.folders import check_apart, check_place, check_room, filled
from expunge.models.load import DeviceMap, DType


class Probe(Described):
    """Compute activation statistics of all layers for sets of texts, and their differences; with --analysis plots of key
    space."""

    model_config = ConfigDict(frozen=True)

    model: Positional[str]
    """What to probe: a model folder, a run, or a hub id."""
    forget: str
    """Texts of the skill to forget: JSONL, CSV, Parquet, a datasets folder or a hub id."""
    retain: str | None = None
    """Texts to keep."""
    also: dict[str, str] = Field(default_factory=dict)
    """Further sets: `--also arithmetic a.jsonl strings s.jsonl`."""
    out: str
    """Folder for the statistics; it must not exist."""
    tokens: Literal["all", "last_prompt", "generated"] = "all"
    """Tokens that count: all, the last of each prompt, or those of the answers."""
    skip_start: bool = False
    """Leave the start token out."""
    analysis: bool = False
    """Also analysis.json, containment.svg, geometry.svg, neurons.svg and index.html with all of them; two more passes."""
    layer: int = -1
    """The layer whose containment is drawn; -1 is the last."""
    limit: int | None = Field(None, ge=2)
    """Only the first N texts of each set."""
    max_length: int = Field(512, ge=8)
    """Longest text in tokens; the rest is cut off."""
    dtype: DType = "auto"
    """auto (as stored), float32, bfloat16 or float16."""
    device_map: DeviceMap | None = None
    """Spread a model that no single accelerator holds over several."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of columns in the data files."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless asked for."""


def run(flags: Probe) -> None:
    from expunge.data.encode import Encoder
    from expunge.data.format import default_format
    from expunge.data.read import read_examples
    from expunge.loading import load
    from expunge.models.reading import bounded, check_reading
    from expunge.probing import analyse, probe_bytes, probe_sets, write_analysis, write_probes
    from expunge.processes import is_main, join

    out = Path(flags.out)
    check_place(out)
    check_apart(out, [flags.model, flags.forget, *([flags.retain] if flags.retain else []), *flags.also.values()])
    if is_main() and out.exists() and any(out.iterdir()):
        raise ExpungeError(f"{out} exists already; give another --out")
    named = {"forget": flags.forget, **({"retain": flags.retain} if flags.retain else {}), **flags.also}
    if flags.analysis and len(named) < 2:
        raise ExpungeError("--analysis compares sets of texts; give --retain or --also beside --forget")
    sets = {name: read_examples(source, columns=flags.columns or None)[: flags.limit] for name, source in named.items()}
    if flags.analysis and (short := [name for name, rows in sets.items() if len(rows) < 6]):
        raise ExpungeError(f"--analysis fits a box to half of the texts, and the set {short[0]} has fewer than 6; give more")
    join()
    model, tokenizer = load(
        flags.model, dtype=flags.dtype, device_map=flags.device_map, trust_remote_code=flags.trust_remote_code
    )
    check_reading(model)  # before its parts are looked for, which such a model may not have
    check_room(out, probe_bytes(model, len(sets)), "the probe")
    encoder = bounded(Encoder(tokenizer, default_format(tokenizer), max_length=flags.max_length), model)
    probes = probe_sets(model, encoder, sets, tokens=flags.tokens, skip_start=flags.skip_start)
    found = analyse(model, encoder, sets, probes, name=flags.model, sources=named, layer=flags.layer) if flags.analysis else None
    if not is_main():
        return
    with filled(out):
        write_probes(out, probes, sets, {"model": flags.model, "tokens": flags.tokens, "skip_start": str(flags.skip_start)})
        if found is not None:
            write_analysis(out, found)
    for name, probed in probes.items():
        print(f"{name:<20} {len(sets[name])} texts, {probed.n} tokens -> {out / name}.safetensors")
    if flags.analysis:
        print(f"figures -> {out / 'index.html'}")
