"""Exports a guard of embedding corruption for a proxy: it embeds prompts itself and hands embeddings to a server that takes them.

    export.json              the method with its fields, what is corrupted and how, and a sha256 of every other file
    embeddings.safetensors   weight [V, D]: what the model's embedding layer gives for each token (with its scale, if it has one)
    guard.safetensors        the gate and the strength; assets/ a classifier, a model for names, names
    tokenizer files, expunge_format.json

The weights of the model are not needed. The gate `hidden` reads the model, so that it cannot be exported. A server must not share
cached keys and values between such prompts by their tokens: `EmbeddedPrompt.salt` tells them apart.

Shape suffixes: T tokens of a prompt, V vocabulary, D width.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.data.encode import Encoder
from expunge.data.format import default_format
from expunge.errors import ExpungeError
from expunge.folders import check_apart, check_place, filled
from expunge.guarding import life
from expunge.guarding.embedding_corruption.corrupter import corrupted
from expunge.loading import load
from expunge.methods.base import State
from expunge.methods.guarding.embedding_corruption import EmbeddingCorruption
from expunge.models.checkpoint import save_tensors
from expunge.models.embeddings import embedding_matrix
from expunge.models.folder import file_hash
from expunge.models.load import causal_model, load_tokenizer
from expunge.records import write_json

FILE, EMBEDDINGS = "export.json", "embeddings.safetensors"
AT_ONCE = 8192
"""Tokens embedded at a time."""


class EmbeddedPrompt(NamedTuple):
    """The embeddings of a prompt, whether it was flagged, and the salt for the server's cache."""

    embeddings_TD: Tensor
    flagged: bool
    salt: str
    """What cached keys and values of this prompt are told apart by."""


def export_guard(source: str | Path, out: str | Path, *, base: str | None = None) -> Path:
    """Writes the export of a run or an artifact to the folder `out`, which must be new or empty.

    base   the base model, if it is no longer at its recorded place

    The list of checksums is written last. Raises ExpungeError for another kind of artifact, and for a gate that reads the model.
    """
    folder = Path(out)
    check_place(folder)
    check_apart(folder, [source, *([] if base is None else [base])])
    if folder.exists() and any(folder.iterdir()):
        raise ExpungeError(f"{folder} is not empty; give a new folder")
    model, _ = load(source, base=base)
    guard = getattr(model, "expunge_guard", None)
    if not isinstance(guard, life.Guard) or not isinstance(guard.method, EmbeddingCorruption):
        raise ExpungeError(f"{source} is no guard of embedding_corruption, the only one that a proxy can apply")
    if guard.method.gate == "hidden":
        raise ExpungeError(
            f"the gate of {source} reads the model's hidden states, which a proxy does not have; fit the guard with --gate text, "
            "encoder or classifier"
        )
    guard.detach()
    with filled(folder):
        life.save(folder, guard.state, guard.encoder)
        save_tensors(folder / EMBEDDINGS, {"weight": _embeddings(model)})
        edit = guard.method.edit(guard.state)
        sums = {str(file.relative_to(folder)): file_hash(file) for file in sorted(folder.rglob("*")) if file.is_file()}
        about = {
            "method": guard.method.model_dump(mode="json"),
            "corruption": {"kind": edit.kind, "dims": edit.dims, "strength": edit.strength, "seed": edit.seed},
            "threshold": float(guard.state["threshold"]),
            "sha256": sums,
        }
        write_json(folder / FILE, about)
    return folder


class Embedder:
    """Embeds prompts as the guarded model does, from the files that `export_guard` wrote, without the model."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ExpungeError if a file is missing or differs from its checksum."""
        place = Path(folder)
        if not (place / FILE).is_file():
            raise ExpungeError(f"{place} holds no {FILE}; export a guard with `expunge export`")
        said = json.loads((place / FILE).read_text(encoding="utf-8"))
        for name, expected in said["sha256"].items():
            if not (place / name).is_file() or file_hash(place / name) != expected:
                raise ExpungeError(f"{place / name} is missing or differs from its checksum; export the guard again")
        self._method = EmbeddingCorruption.model_validate(said["method"])
        self._state: State = life.read(place)
        tokenizer = load_tokenizer(str(place))
        self.encoder = Encoder(tokenizer, default_format(tokenizer))
        self._weight_VD = load_file(place / EMBEDDINGS)["weight"]
        self._judge = self._method.judge(nn.Identity(), self._state, self.encoder)

    def embed(self, ids: tuple[int, ...]) -> EmbeddedPrompt:
        """Returns the embeddings of a whole prompt, given as tokens, with those of a flagged one corrupted. Raises ExpungeError
        for a token that the model does not have."""
        if not ids or not 0 <= min(ids) <= max(ids) < len(self._weight_VD):
            raise ExpungeError(
                f"the prompt is empty or has token ids outside 0 to {len(self._weight_VD) - 1}; encode it with the exported "
                "tokenizer"
            )
        decision = self._judge.decision(ids)
        found_TD = self._weight_VD[list(ids)]
        if decision.chosen:
            found_TD = corrupted(self._method.edit(self._state), decision, found_TD)
        return EmbeddedPrompt(found_TD, decision.flagged, life.salt(nn.Identity(), self._method, self._state, self.encoder, ids))


@torch.no_grad()
def _embeddings(model: nn.Module) -> Tensor:
    """Computes the output of the embedding layer for every token, [V, D]; some layers scale their matrix."""
    embed, weight_VD = causal_model(model).get_input_embeddings(), embedding_matrix(model)
    ids_V = torch.arange(len(weight_VD), device=weight_VD.device)
    return torch.cat([embed(part).cpu() for part in ids_V.split(AT_ONCE)])
