"""Defines one run as one value (model, data, method, training), which reads and writes YAML.

`run.yaml` holds all of it, including the rendered template and its date, so that the same file later trains on the same tokens.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.data.neutral import neutral_texts
from expunge.data.paraphrases import with_paraphrases
from expunge.data.read import read_examples, read_request
from expunge.data.where import choose
from expunge.described import Described
from expunge.errors import ExpungeError, nearest
from expunge.methods import Method
from expunge.methods.composed.sku import Acquisition
from expunge.methods.training import FineTune
from expunge.models.load import DeviceMap, DType
from expunge.training.hardening import wrappers
from expunge.training.settings import Training

Value = TypeVar("Value", bound=BaseModel)


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Sources = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""Files, folders or hub ids; a single one need not be a list."""


Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""Several texts; a single one need not be a list."""


class _Common(Described):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    walked: ClassVar[str]
    """Name of the rows that the run iterates over, in messages and provenance.json."""

    model: str
    """Model to start from: a folder, a run of expunge, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DType = "float32"
    """Dtype in which the weights are loaded, trained and saved; small steps are lost in bfloat16 weights, so float32 is the
    default and `auto` (the checkpoint's own) has to be asked for."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off unless asked for."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of columns in the data files: `--columns prompt instruction response output`."""
    format: Format | None = None
    """How a prompt and a response become text; left out, the tokenizer's chat template or a plain one, frozen in run.yaml."""
    where: Texts = ()
    """Conditions on attributes, such as `severity > 3`: rows to forget (or to learn) for which one does not hold are left out."""
    only: str | None = None
    """File of rows, the place and the id of one a line, as SPUNGE writes it for its parts: other rows to forget (or to learn) are
    left out."""
    max_length: int = Field(512, ge=8)
    """Longest sequence in tokens; longer answers are cut at the end."""
    training: Training = Field(default_factory=Training)
    """How the weights are trained."""

    def sources(self) -> list[str]:
        """Returns everything that the run reads, and so must not write to."""
        raise TypeError(f"{type(self).__name__} says what it reads")

    def row_sets(self, request: Request) -> dict[str, tuple[Example, ...]]:
        """Returns the request's row sets that have rows, by name."""
        sets = {self.walked: request.forget, "retain": request.retain, "holdout": request.holdout, "neutral": request.neutral}
        return {name: rows for name, rows in sets.items() if rows}


class Run(_Common):
    """One unlearning run; `expunge unlearn --config run.yaml` repeats it."""

    walked: ClassVar[str] = "forget"

    forget: Sources
    """What to forget: JSONL, CSV, Parquet, a datasets folder, a hub id (`locuslab/TOFU:forget01`) or a corpus that a folder holds
    (`data/toxigen:annotated/train`), with conditions in brackets (`SOURCE[severity > 3]`); one source or several."""
    retain: Sources = ()
    """What to keep: data of the same kinds."""
    holdout: Sources = ()
    """Rows of the forget set's kind that the model never saw."""
    neutral: Sources = ()
    """Texts that have nothing to do with the others: how much the model changes on them (KL in nats per token) is measured after
    the run, and limited by --disruption-budget, for which WikiText is the default (in the folder that EXPUNGE_DATA names)."""
    paraphrases: bool = False
    """Forget every paraphrase of a forget row as a row of its own; a fact that was unlearned in one wording is often still known
    in the others. Holdout rows likewise. For methods that train."""
    refusals: str | None = None
    """Refusals, one a line, for the methods that teach one; left out, a built-in list."""
    device_map: DeviceMap | None = None
    """Spread the layers of a model that no single accelerator holds over several (auto, balanced, ...); for methods without
    gradient steps. Left out, the model is on one device; training is sharded by torchrun instead."""
    method: Method
    """The method, with its fields."""

    @model_validator(mode="after")
    def _paraphrases_are_trained_on(self) -> "Run":
        if self.paraphrases and self.method.family != "training":
            raise ValueError(f"{self.method.method_name()} does not train on the forget rows themselves; leave out --paraphrases")
        return self

    @model_validator(mode="after")
    def _wrappers_have_steps(self) -> "Run":
        trains = self.method.family == "training" or self.method.method_name() == "spunge"
        if (used := wrappers(self.training)) and not trains:
            raise ValueError(f"{self.method.method_name()} has no steps that forget; leave out {used[0].split()[0]}")
        measured = self.neutral or self.training.disruption_budget is not None
        if measured and self.method.family != "training":
            flag = "--neutral" if self.neutral else "--disruption-budget"
            raise ValueError(f"the change on neutral text is measured for methods that train; leave out {flag}")
        return self

    def sources(self) -> list[str]:
        refusals = [] if self.refusals is None else [self.refusals]
        return [self.model, *self.forget, *self.retain, *self.holdout, *self.neutral, *refusals]

    def read(self) -> Request:
        """Reads the data files."""
        columns = self.columns or None
        request = read_request(
            self.forget, self.retain, self.holdout, self.refusals, columns=columns, where=self.where, only=self.only
        )
        if self.neutral or self.training.disruption_budget is not None:
            request = replace(request, neutral=neutral_texts(self.neutral))
        return with_paraphrases(request) if self.paraphrases else request


class FineTuneRun(_Common):
    """A fine-tuning run by cross-entropy on `data`: makes the model to unlearn from, or a retain-only model."""

    walked: ClassVar[str] = "data"
    device_map: ClassVar[None] = None

    data: Sources
    """What to learn: JSONL, CSV, Parquet, a datasets folder or a hub id; one source or several."""
    parameters: str = ".*"
    """Regular expression; the weights whose full name it matches are trained, all others are frozen."""

    def sources(self) -> list[str]:
        return [self.model, *self.data]

    @property
    def method(self) -> FineTune:
        return FineTune(parameters=self.parameters)

    def read(self) -> Request:
        """Reads the data files."""
        examples = [e for source in self.data for e in read_examples(source, columns=self.columns or None)]
        return Request(tuple(examples[row] for row in choose(examples, self.where, self.only)))


class AcquisitionRun(_Common):
    """The first stage of SKU: makes the model whose difference to the start model is subtracted."""

    walked: ClassVar[str] = "forget"
    device_map: ClassVar[None] = None

    forget: Sources
    """Harmful prompts and answers."""
    retain: Sources = ()
    """Normal prompts and answers, on which the model should stay as it is."""
    acquisition: Acquisition = Field(default_factory=Acquisition)

    def sources(self) -> list[str]:
        return [self.model, *self.forget, *self.retain]

    @property
    def method(self) -> Acquisition:
        return self.acquisition

    def read(self) -> Request:
        """Reads the data files."""
        return read_request(self.forget, self.retain, columns=self.columns or None, where=self.where, only=self.only)


def to_yaml(value: BaseModel) -> str:
    """Writes every field, including defaults, which may change between versions."""
    import yaml

    return yaml.safe_dump(value.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping. Raises ExpungeError for any other file."""
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExpungeError(f"there is no file {path}; check the path after --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExpungeError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); give a YAML file") from error
    except yaml.YAMLError as error:
        raise ExpungeError(f"{path} is not YAML ({str(error).splitlines()[0]}); correct it") from error
    if not isinstance(value, dict):
        raise ExpungeError(f"{path} does not hold a mapping; a run has the fields model, forget, method, ...")
    return value


def build(cls: type[Value], value: dict[str, Any], where: str) -> Value:
    """Builds a value of `cls` from plain data. Raises ExpungeError that names the path of the first wrong field."""
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _fields_at(cls, value, first["loc"])
            raise ExpungeError(f"{where} has no field '{path}'{nearest(str(first['loc'][-1]), known)}") from None
        if first["type"] == "missing":
            raise ExpungeError(f"{where} needs the field '{path}'; give it in the file or as a flag") from None
        raise ExpungeError(f"{where}: {path or 'value'}: {first['msg']} (it is {first['input']!r})") from None


def _fields_at(cls: type[BaseModel], value: dict[str, Any], loc: tuple[str | int, ...]) -> list[str]:
    """Returns the field names of the innermost model on the way to `loc`, for a hint at the nearest one."""
    from expunge.methods import METHODS

    if len(loc) > 1 and loc[0] == "method":
        return list(METHODS[str(value["method"]["name"])].model_fields)
    if len(loc) > 1 and loc[0] == "training":
        return list(Training.model_fields)
    return list(cls.model_fields)
