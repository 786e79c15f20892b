"""ECO: a gate detects prompts that ask for forgotten content, and the model reads their embeddings corrupted.

Shape suffixes: B rows, T positions, D width, N prompts, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self
from weakref import WeakKeyDictionary

from pydantic import Field, model_validator

from expunge.data.encode import Encoder
from expunge.data.example import Request
from expunge.errors import ExpungeError
from expunge.guarding.embedding_corruption.kinds import WITH_STRENGTH, Kind, Level, Rule
from expunge.guarding.embedding_corruption.selection import Finder, own_entities
from expunge.guarding.embedding_corruption.tuning import dims_search, strength_search
from expunge.methods.base import NOTHING, GuardingMethod, Objective, Resources, State
from expunge.models.load import causal_model
from expunge.records import Seed, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from expunge.guarding.embedding_corruption.corrupter import Edit
    from expunge.guarding.embedding_corruption.entities import EntityFinder
    from expunge.guarding.embedding_corruption.judge import Judge
    from expunge.guarding.embedding_corruption.making import Making
    from expunge.guarding.forward_pass import Counts


NAMES, ENTITIES = "names.json", "entities"


class EmbeddingCorruption(GuardingMethod):
    """Embedding-corrupted prompts (ECO). Before the model reads a prompt, a gate scores how likely it asks for what was to be
    forgotten. The embeddings of chosen tokens of a flagged prompt are corrupted; all other prompts are unchanged:

        e'_t = corrupt(e_t; strength, dims) for chosen t, if p(forget | prompt) > threshold

    The gate is trained here, its threshold is calibrated on retain prompts that it was not trained on, and the strength is tuned
    without gradients until the guarded model scores what a model that never saw the forget set would.

    Only prompt tokens are corrupted, in scoring too (the released code also corrupts the answer that it scores). Noise is keyed
    by seed, prompt and position: a prompt is corrupted in the same way alone, in a batch, as a beam, with a cache and without. In
    a plain forward pass the end of the prompt is unknown, so the whole row counts as the prompt.
    """

    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2406.07933 (ECO)"
    formula: ClassVar[str] = "e'_t = corrupt(e_t; strength, dims) for chosen t of prompts with p(forget | prompt) > threshold"
    cost: ClassVar[str] = "the gate once per prompt; no cost per generated token; some tens of scorings of the forget set to fit"
    purpose: ClassVar[str] = "facts or a domain, at run time: prompts that ask for it are read with corrupted embeddings"
    weakness: ClassVar[str] = "a guard; a prompt that the gate misses gets the full answer"

    name: Literal["embedding_corruption"] = "embedding_corruption"
    gate: Literal["hidden", "text", "encoder", "classifier"] = "hidden"
    """hidden: logistic regression on hidden states of an early block of the model. text: logistic regression on hashed
    character n-grams. encoder: fine-tune `gate_model` as a classifier (published: roberta-base). classifier: use `gate_model`
    as it is."""
    gate_model: str | None = None
    """Folder or hub id of the encoder to fine-tune, or of a ready classifier."""
    gate_layer: int | None = None
    """hidden: block whose output is read, counted from 0; default: a quarter of the depth."""
    gate_epochs: int = Field(30, ge=1)
    """encoder: epochs of fine-tuning."""
    negatives: str = "general"
    """Prompts that a gate learns to let pass beside the retain prompts: general (everyday questions and instructions that come
    with expunge), none, or rows of your own, read like those of --retain. One in four is not trained on: the threshold is
    calibrated on these too."""
    spelling: bool = True
    """Also read a prompt with names of the forget set that are one letter off corrected; keeps the words of these names in the
    artifact."""
    mentions: Level = "parts"
    """Names with which a prompt is flagged, whatever the gate says, such as in a statement to be completed. names: what only
    forget prompts name. parts: also a part of such a name by itself, such as a first name, unless a retain prompt has it so.
    none: the gate alone decides (published). Fewer are taken where too many retain prompts would be flagged."""
    threshold: Rule = "simple"
    """fixed: flag above `threshold_value`. simple, conformal, class_conditional: calibrated to flag at most the share
    `false_positive_rate` of the retain prompts, and of the general ones among the negatives."""
    threshold_value: float = Field(0.99, ge=0, lt=1)
    """fixed: the score above which a prompt is flagged (published: 0.99 to 0.9999)."""
    false_positive_rate: float = Field(0.05, gt=0, lt=1)
    """For calibration: the share of retain prompts, and of general prompts, that may be flagged."""
    cautious: bool = False
    """For the conformal rules: also flag a prompt that could be of either class, or of none."""
    held_out: float = Field(0.5, gt=0, lt=1)
    """Share of the retain prompts that calibrate the threshold and do not train the gate."""
    tokens: Literal["all_but_last", "entities", "spans"] = "all_but_last"
    """Which tokens of a flagged prompt are corrupted: all but the last (published), those of names, or those of `spans`."""
    entity_model: str | None = None
    """entities: folder or hub id of a token classifier of transformers (published for TOFU: dslim/bert-base-NER), or folder or
    name of a spaCy pipeline, that finds names in flagged prompts; default: names found in the forget set."""
    spans: tuple[str, ...] = ()
    """Texts whose tokens are corrupted, with tokens spans; with tokens entities, further names."""
    corruption: Kind = "rand_noise_first_n"
    """How an embedding is corrupted."""
    dims: int | None = Field(None, ge=1)
    """Number of coordinates of an embedding that change (published: 1 for noise, all for the others); default: all."""
    strength: float = Field(1.0, gt=0)
    """Standard deviation of the noise, or the number that is added or subtracted; the tuning starts from it."""
    relative: bool = True
    """Measure strength in root mean squares of the embedding matrix; otherwise in units of the embeddings (published)."""
    tune: Literal["strength", "dims", "nothing"] = "strength"
    """What is tuned so that the guarded model's score reaches the surrogate."""
    surrogate: float | None = Field(None, ge=0, le=1)
    """Mean answer probability expected of a model that never saw the forget set, or chance level; default: that of the holdout
    set, measured on the model itself."""
    surrogate_model: str | None = None
    """Folder or hub id of a model that never saw the forget set: its own answer probability is what is tuned to."""
    noise_seed: Seed = 0
    """Seed of the noise."""
    split_seed: Seed = 0
    """Seed of the choice of calibration prompts and of fine-tuning."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.gate_model is None) != (self.gate in ("hidden", "text")):
            raise ValueError("gates encoder and classifier need gate_model, and the others take none")
        if self.surrogate is not None and self.surrogate_model is not None:
            raise ValueError("surrogate and surrogate_model both say what is tuned to; give one of them")
        if self.tune == "strength" and self.corruption not in WITH_STRENGTH:
            raise ValueError(f"{self.corruption} has no strength to tune; tune dims, or nothing")
        if self.tune == "dims" and self.corruption in ("reverse_order", "shuffle"):
            raise ValueError(f"{self.corruption} exchanges whole embeddings, so there are no dims to tune")
        if self.entity_model is not None and self.tokens != "entities":
            raise ValueError("entity_model finds names; give it with tokens entities")
        if self.tokens == "spans" and not self.spans:
            raise ValueError("give the texts to corrupt as spans")
        return self

    @property
    def needs_objective(self) -> bool:
        return self.tune != "nothing"

    def require(self, request: Request) -> None:
        if not request.retain:
            raise ExpungeError("embedding_corruption trains and calibrates its gate on retain prompts too; give --retain")
        given = self.surrogate is not None or self.surrogate_model is not None
        if self.needs_objective and not given and not request.holdout:
            raise ExpungeError(
                "embedding_corruption tunes its strength to what an untaught model would score; give --holdout (prompts of the "
                "same kind that the model never saw), --surrogate, --surrogate-model, or --tune nothing"
            )

    def fit(self, model: nn.Module, request: Request, encoder: Encoder, resources: Resources = NOTHING) -> State:
        import torch

        from expunge.models.embeddings import embedding_matrix

        table = embedding_matrix(model).detach().float()
        state = State(self._fit_gate(model, request, encoder, resources.assets), resources.assets)
        if self.tokens != "all_but_last":
            own = self.tokens == "entities" and self.entity_model is None
            if resources.assets is None:
                raise ExpungeError("names are kept in a file; fit the guard with a folder for assets")
            write_json(resources.assets / NAMES, [*self.spans, *(own_entities(request.forget, request.retain) if own else [])])
            if self.entity_model is not None:
                from expunge.guarding.embedding_corruption.entities import recognizer

                recognizer(self.entity_model).save(resources.assets / ENTITIES)
        width = table.shape[1]
        state = state.having(
            {
                "rms": table.square().mean().sqrt(),
                "strength": torch.tensor(self.strength, dtype=torch.float64),
                "dims": torch.tensor(self.dims or width),
            }
        )
        if resources.objective is None or self.tune == "nothing":
            return state
        state = self._tuned(state, resources.objective, width)
        if resources.reported is None:
            return state
        return state.having({"tuning.reported": torch.tensor(resources.reported(state))})

    def _tuned(self, state: State, objective: Objective, width: int) -> State:
        import torch

        if self.tune == "strength":
            found = strength_search(
                lambda s: objective(state.having({"strength": torch.tensor(s, dtype=torch.float64)})),
                self.strength,
                low=1e-2 * self.strength,
                high=1e3 * self.strength,
            )
            chosen = {"strength": torch.tensor(found.setting, dtype=torch.float64)}
        else:
            found = dims_search(lambda n: objective(state.having({"dims": torch.tensor(int(n))})), width)
            chosen = {"dims": torch.tensor(int(found.setting))}
        return state.having(chosen | {"tuning.distance": torch.tensor(found.distance), "tuning.tried": torch.tensor(found.tried)})

    def _making(self, model: nn.Module, encoder: Encoder, assets: Path | None) -> Making:
        from expunge.guarding.embedding_corruption.making import Making, reader

        read = reader(model, encoder, self.gate_layer) if self.gate == "hidden" else None
        return Making(self.gate, read, assets, self.gate_model, self.gate_epochs, self.split_seed)

    def _fit_gate(self, model: nn.Module, request: Request, encoder: Encoder, assets: Path | None) -> dict[str, Tensor]:
        from expunge.guarding.embedding_corruption.fitting import Calibration, fit_gate

        how = Calibration(
            rule=self.threshold,
            fixed=self.threshold_value,
            rate=self.false_positive_rate,
            cautious=self.cautious,
            held_out=self.held_out,
            negatives=self.negatives,
            spelling=self.spelling,
            mentions=self.mentions,
            seed=self.split_seed,
        )
        return fit_gate(self._making(model, encoder, assets), how, request, encoder)

    @contextmanager
    def attach(self, model: nn.Module, state: State, encoder: Encoder) -> Iterator[Counts]:
        from expunge.guarding.embedding_corruption.corrupter import Corrupter
        from expunge.guarding.session import open_session, replaced

        root = causal_model(model)
        table = root.get_input_embeddings()
        with ExitStack() as stack:
            session = stack.enter_context(open_session(model, encoder.tokenizer))
            corrupter = Corrupter(self.edit(state), session, self.judge(model, state, encoder))
            session.before_prefill.append(corrupter.decide)
            stack.enter_context(replaced(root, "generate", corrupter.generate))
            stack.callback(table.register_forward_hook(corrupter.corrupt).remove)
            yield corrupter.counts

    def judge(self, model: nn.Module, state: State, encoder: Encoder) -> Judge:
        """Returns what decides about prompts. States that differ only in the corruption share it, so that each prompt is decided
        about once."""
        from expunge.guarding.embedding_corruption.gate import Scores
        from expunge.guarding.embedding_corruption.judge import Judge
        from expunge.guarding.embedding_corruption.mentions import Mentions
        from expunge.guarding.embedding_corruption.spelling import Spelling

        known = _JUDGES.setdefault(state["threshold"], {})
        asked = self.gate, self.gate_layer, self.tokens, self.entity_model
        key = id(model), id(encoder.tokenizer), encoder.format.model_dump_json(), encoder.max_length, asked
        if key not in known:
            spelling = Spelling.of_tensor(state["gate.spelling"]) if "gate.spelling" in state else None
            mentions = Mentions.of_tensor(state["gate.mentions"], spelling) if "gate.mentions" in state else None
            scores = Scores(self._making(model, encoder, state.assets).gate(state), encoder, spelling, mentions)
            known[key] = Judge(encoder.tokenizer, scores, float(state["threshold"]), self._finder(state.assets, encoder))
        return known[key]

    def decision(self, model: nn.Module, state: State, encoder: Encoder, ids: tuple[int, ...]) -> str:
        found = self.judge(model, state, encoder).decision(ids)
        return f"{found.key} {found.chosen}" if found.chosen else ""

    def edit(self, state: State) -> Edit:
        """Returns how an embedding is corrupted, with the strength in units of the embeddings."""
        from expunge.guarding.embedding_corruption.corrupter import Edit

        strength = float(state["strength"]) * (float(state["rms"]) if self.relative else 1.0)
        return Edit(self.corruption, int(state["dims"]), strength, self.noise_seed)

    def _finder(self, assets: Path | None, encoder: Encoder) -> Finder | EntityFinder | None:
        """Returns what finds the texts whose tokens are corrupted; None for all tokens but the last."""
        if self.tokens == "all_but_last":
            return None
        if assets is None or not (assets / NAMES).is_file():
            raise ExpungeError(f"this guard corrupts names that are kept in {NAMES}, which is not there; load its artifact")
        named = Finder(json.loads((assets / NAMES).read_text(encoding="utf-8")))
        if self.entity_model is None:
            return named
        from expunge.guarding.embedding_corruption.entities import EntityFinder, recognizer
        from expunge.guarding.embedding_corruption.gate import template_pieces

        return EntityFinder(recognizer(assets / ENTITIES).spans, template_pieces(encoder), named.spans)

    def summary(self, state: State) -> str:
        from expunge.guarding.embedding_corruption.card import described

        return described(
            state,
            gate=self.gate,
            rate=None if self.threshold == "fixed" else self.false_positive_rate,
            tokens=self.tokens,
            corruption=self.corruption,
            relative=self.relative,
        )


_JUDGES: WeakKeyDictionary[Tensor, dict[object, Judge]] = WeakKeyDictionary()
"""Decisions by a state's threshold: states that differ only in the corruption share them, so that a search for the strength calls
the gate once."""
