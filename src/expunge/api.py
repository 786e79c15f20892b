"""Defines `unlearn`, `finetune` and `attack`, the public functions that make and attack models.

The other public functions, `evaluate`, `load`, `report` and `verify`, are imported from the modules that define them
(`expunge.__init__` lists these), so that each loads only what it needs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from expunge.data.format import Format
from expunge.methods import Method
from expunge.models.load import DeviceMap, DType
from expunge.records import Attack
from expunge.run import execute
from expunge.runner import Outcome
from expunge.spec import FineTuneRun, Run
from expunge.training.settings import Training

Data = str | Path | Sequence[str | Path]
"""One or several sources of examples: files, folders, hub ids."""


DEFAULT = Training()


def unlearn(
    method: Method,
    *,
    model: str | Path,
    forget: Data,
    out: str | Path,
    retain: Data = (),
    holdout: Data = (),
    neutral: Data = (),
    refusals: str | Path | None = None,
    where: str | Sequence[str] = (),
    paraphrases: bool = False,
    training: Training = DEFAULT,
    dtype: DType = "float32",
    columns: Mapping[str, str] | None = None,
    format: Format | None = None,
    max_length: int = 512,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: DeviceMap | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Makes `model` forget: one run of `method`, written to the folder `out` (run.yaml, metrics.jsonl, artifact/).

    model        folder, run of expunge or hub id; revision: branch, tag or commit of a hub model
    forget       what to forget; retain: what to keep; holdout: rows that the model never saw; each a source or several: files,
                 `datasets` folders, hub ids, sets of a corpus
    neutral      texts on which it is measured how much the run changes the model (KL in nats per token)
    refusals     file of refusals, one per line, for methods that teach one
    where        conditions on attributes, such as `severity > 3`, that leave forget rows out
    paraphrases  forget each paraphrase of a forget row as a row of its own
    training     how the weights are trained; dtype: in which they are loaded, trained and saved
    columns      field -> column, if the names in the files differ
    format       how text is rendered; default: the model's chat template, or a plain one
    max_length   longest row in tokens; longer answers lose their end
    device_map   spreads the layers over several GPUs, for methods without gradient steps
    resume       continues a run that was killed; overwrite: replaces one
    quiet        no progress bar; trust_remote_code: run Python code that comes with a hub model

    Raises ExpungeError, before anything is written, if the input is wrong.
    """
    from expunge.evaluation.alternates import draw_answers
    from expunge.evaluation.objectives import build_objective

    run = Run(
        model=str(model),
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        columns=dict(columns or {}),
        format=format,
        max_length=max_length,
        training=training,
        forget=_sources(forget),
        retain=_sources(retain),
        holdout=_sources(holdout),
        neutral=_sources(neutral),
        refusals=None if refusals is None else str(refusals),
        where=(where,) if isinstance(where, str) else tuple(where),
        paraphrases=paraphrases,
        device_map=device_map,
        method=method,
    )
    return execute(
        run,
        Path(out),
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
        build_objective=build_objective,
        draw_answers=draw_answers,
    )


def finetune(
    *,
    model: str | Path,
    data: Data,
    out: str | Path,
    training: Training = DEFAULT,
    dtype: DType = "float32",
    columns: Mapping[str, str] | None = None,
    format: Format | None = None,
    max_length: int = 512,
    revision: str | None = None,
    trust_remote_code: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Fine-tunes by cross-entropy on `data`: makes the model to unlearn from, or the retain-only model.

    data  what to learn: a source or several. The other arguments, model, out, training, dtype, columns, format, max_length,
          revision, trust_remote_code, resume, overwrite and quiet, are those of `unlearn`

    Raises ExpungeError, before anything is written, if the input is wrong.
    """
    run = FineTuneRun(
        model=str(model),
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        columns=dict(columns or {}),
        format=format,
        max_length=max_length,
        training=training,
        data=_sources(data),
    )
    return execute(run, Path(out), resume=resume, overwrite=overwrite, quiet=quiet)


def attack(
    model: str | Path,
    attacks: str | Sequence[str] = "ladder",
    *,
    out: str | Path,
    suite: str | None = None,
    data: str | Path | None = None,
    forget: str | Path | None = None,
    control: str | Path | None = None,
    retain: str | Path | None = None,
    gold: str | None = None,
    original: str | None = None,
    budget: str = "small",
    seed: int = 0,
    limit: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> tuple[Attack, ...]:
    """Tries to bring forgotten knowledge back, and returns what each attack brought back beyond its control.

    model    a run, an artifact, a model folder or a hub id
    attacks  names such as `relearn` or `relearn:lucki`, or `ladder` for all of them
    out      folder for ATTACK.json, ATTACK.samples.jsonl and ladder.json; attacks that it holds already are not run again
    suite    a suite whose forget, control and retain tasks are attacked, with its data in the folder `data`
    forget   facts to recover instead of the suite's; control: facts that the model never saw; retain: facts that were kept
    gold     a model that never saw the forget set; original: the model before it forgot (in a lab both are found)
    budget   `small` (minutes on a CPU) or `paper` (as published)
    limit    only the first `limit` facts of each set
    seed     of all random draws; overwrite: replaces records of other models or budgets; quiet: no progress bar

    Raises ExpungeError, before anything is written, if the input is wrong.
    """
    from expunge.attacks import named
    from expunge.attacks.run import attack as run_attacks
    from expunge.attacks.sources import sources

    names = [attacks] if isinstance(attacks, str) else list(attacks)
    found = sources(
        str(model), suite=suite, data=data, forget=forget, control=control, retain=retain, gold=gold, original=original
    )
    return run_attacks(
        model, named(names, budget=budget), found.limited(limit), out=out, seed=seed, overwrite=overwrite, quiet=quiet
    )


def _sources(data: Data) -> tuple[str, ...]:
    return (str(data),) if isinstance(data, str | Path) else tuple(map(str, data))
