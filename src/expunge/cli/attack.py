"""`expunge attack NAME[,NAME] RUN --suite NAME --data DIR --out DIR`, or `expunge attack ladder RUN ...` for all of them."""

from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict
from tyro.conf import Positional

from expunge.described import Described
from expunge.errors import ExpungeError
from expunge.models.load import DType
from expunge.records import Seed

if TYPE_CHECKING:
    from expunge.attacks.sweep import Sweep


class AttackFlags(Described):
    """Try to recover forgotten knowledge, and measure how much more is recovered than from a model that never knew it."""

    model_config = ConfigDict(frozen=True)

    attacks: Positional[str]
    """Names separated by commas, each optionally with a preset (`relearn:lucki`), or `ladder` for all."""
    model: Positional[str]
    """What to attack: a run, an artifact, a model folder or a hub id."""
    suite: str | None = None
    """A suite whose forget task is attacked, with its control and retain tasks: lab, tofu, ..."""
    data: str | None = None
    """The suite's data. In a lab the gold and the original model are found there too."""
    out: str | None = None
    """Folder for ATTACK.json, ATTACK.samples.jsonl and ladder.json; default: `attacks` in the run."""
    forget: str | None = None
    """Rows to recover instead of a suite's: a file, a folder or a hub id."""
    control: str | None = None
    """Rows of the same kind that the model never saw."""
    retain: str | None = None
    """Rows that were to be kept."""
    neutral: str | None = None
    """Text that is unrelated to the request."""
    gold: str | None = None
    """A model that never saw the forget set."""
    original: str | None = None
    """The model before unlearning; default: the base that the artifact records."""
    preset: str | None = None
    """Published settings of the named attacks, such as lucki or rtt for relearn."""
    budget: str = "small"
    """small (minutes on a CPU) or paper (as published)."""
    sweep: int | None = None
    """Search the settings of relearn and soft_prompt in N trials; the controls get the same trials. Needs expunge[sweep]."""
    utility_loss: float = 0.1
    """For a sweep: the share of recall on retained facts that an attack on the weights may cost."""
    disruption_budget: float | None = None
    """For a sweep: the most that an attack on the weights may change the model on `neutral` text, KL in nats per token."""
    options: tuple[str, ...] = ()
    """Settings of one attack as FIELD=VALUE, lists separated by commas: `--options steps=100 learning_rate=1e-4`."""
    limit: int | None = None
    """Only the first N facts of each set."""
    max_new_tokens: int = 24
    """Longest answer that is read."""
    seed: Seed = 0
    """Seed of all random draws."""
    dtype: DType = "auto"
    """auto (as stored), float32, bfloat16 or float16."""
    overwrite: bool = False
    """Replace attacks of another model or budget. Results of the same ones are always kept."""


def run(flags: AttackFlags) -> None:
    from expunge.attacks import named
    from expunge.attacks.results import table
    from expunge.attacks.run import attack
    from expunge.attacks.sources import sources
    from expunge.folders import check_apart, check_place, results_folder

    attacks = named(flags.attacks.split(","), preset=flags.preset, budget=flags.budget, fields=_fields(flags.options))
    out = results_folder(flags.model, flags.out, "attacks")
    check_place(out)
    files = (flags.forget, flags.control, flags.retain, flags.neutral, flags.gold, flags.original)
    check_apart(out, [flags.model, *(file for file in files if file)], also=("attacks",), wide=[flags.data] if flags.data else [])
    found = sources(
        flags.model,
        suite=flags.suite,
        data=flags.data,
        forget=flags.forget,
        control=flags.control,
        retain=flags.retain,
        neutral=flags.neutral,
        gold=flags.gold,
        original=flags.original,
    )
    records = attack(
        flags.model,
        attacks,
        found.limited(flags.limit),
        out=out,
        seed=flags.seed,
        sweep=_sweep(flags),
        dtype=flags.dtype,
        max_new_tokens=flags.max_new_tokens,
        overwrite=flags.overwrite,
    )
    print(f"{flags.model}: gain over the control, 95 % intervals\n{table(records)}\n{out}/ladder.json")


def _sweep(flags: AttackFlags) -> "Sweep | None":
    from expunge.attacks.sweep import Sweep

    if flags.sweep is None:
        if flags.disruption_budget is not None:
            raise ExpungeError("--disruption-budget bounds the trials of a sweep; give --sweep N too")
        return None
    return Sweep(flags.sweep, flags.utility_loss, flags.disruption_budget)


def _fields(options: tuple[str, ...]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for word in options:
        name, equals, value = word.partition("=")
        if not equals:
            raise ExpungeError(f"--options {word} is not FIELD=VALUE; write for example --options steps=50")
        fields[name] = value.split(",") if "," in value else value
    return fields
