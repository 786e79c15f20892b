"""Computes statistics of MLP activations, for all layers in one forward pass.

Roles: the pre-activation (the input of the non-linearity; used by Neuron Adjust) and the key (the input of the down projection;
Key Space Detection, Selective Pruning). Accumulators are float64 and cost O(layers x neurons) memory, whatever the number of
tokens; the activations themselves are not kept, except for a given number of vectors if a plot needs them.

Shape suffixes: L layers, F neurons of a layer, N tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, distributed, nn

from expunge.errors import ExpungeError
from expunge.models.blocks import Blocks, blocks_of
from expunge.models.checkpoint import save_tensors
from expunge.models.hooks import Site
from expunge.models.spans import Chosen, Observer, Span, visit

Role = Literal["pre_activation", "key"]
ROLES: tuple[Role, ...] = ("pre_activation", "key")
FORMAT = "1"


@dataclass
class Moments:
    """Statistics of the activations of one role: for each layer the number of tokens, for each neuron float64 sums."""

    n_L: Tensor
    """Number of tokens, int64; on the CPU for any device, so that reading it does not wait for the GPU."""
    mean_LF: Tensor
    m2_LF: Tensor
    """Sum of squared distances from the mean."""
    abs_LF: Tensor
    """Sum of |x|."""
    positive_LF: Tensor
    """Number of tokens with x > 0."""
    min_LF: Tensor
    max_LF: Tensor

    @classmethod
    def empty(cls, layers: int, neurons: int, device: torch.device | str = "cpu") -> "Moments":
        n_L = torch.zeros(layers, dtype=torch.int64)
        mean_LF, m2_LF, abs_LF, positive_LF, low_LF, high_LF = torch.zeros(6, layers, neurons, dtype=torch.float64, device=device)
        return cls(n_L, mean_LF, m2_LF, abs_LF, positive_LF, low_LF + torch.inf, high_LF - torch.inf)

    @property
    def n(self) -> int:
        """The number of tokens, the same in every layer."""
        return int(self.n_L[0])

    def variance_LF(self, ddof: int = 0) -> Tensor:
        return self.m2_LF / (self.n - ddof)

    def std_LF(self, ddof: int = 0) -> Tensor:
        return self.variance_LF(ddof).sqrt()

    def rms_LF(self) -> Tensor:
        """Root mean square: sqrt(mean^2 + variance)."""
        return (self.mean_LF.square() + self.variance_LF()).sqrt()

    def update(self, layer: int, values_NF: Tensor) -> None:
        """Adds the values of some tokens: their own mean and M2 in float64, merged by Chan's formula."""
        n, ones_N = values_NF.shape[0], values_NF.new_ones(values_NF.shape[0], dtype=torch.float32)
        wide_NF, single_NF = values_NF.to(torch.float64, copy=True), values_NF.float()
        mean_F = (ones_N.double() @ wide_NF) / n  # a product with ones is several times as fast as sum(dim=0)
        m2_F = ones_N.double() @ wide_NF.sub_(mean_F).square_()
        abs_F = ones_N @ single_NF.abs()
        positive_F = ones_N @ torch.gt(single_NF, 0, out=torch.empty_like(single_NF))  # a sixth of the time of (x > 0).float()
        home = self.mean_LF.device  # a model may be spread over several devices
        self._merge_layer(layer, n, mean_F.to(home), m2_F.to(home))
        self.abs_LF[layer] += abs_F.to(home)
        self.positive_LF[layer] += positive_F.to(home)
        torch.minimum(self.min_LF[layer], values_NF.amin(dim=0).double().to(home), out=self.min_LF[layer])
        torch.maximum(self.max_LF[layer], values_NF.amax(dim=0).double().to(home), out=self.max_LF[layer])

    def merge(self, other: "Moments") -> None:
        """Adds the statistics of `other`."""
        for layer in range(len(self.n_L)):
            if other.n_L[layer] > 0:
                self._merge_layer(layer, int(other.n_L[layer]), other.mean_LF[layer], other.m2_LF[layer])
        self.abs_LF += other.abs_LF
        self.positive_LF += other.positive_LF
        self.min_LF = torch.minimum(self.min_LF, other.min_LF)
        self.max_LF = torch.maximum(self.max_LF, other.max_LF)

    def _merge_layer(self, layer: int, n: int, mean_F: Tensor, m2_F: Tensor) -> None:
        before = int(self.n_L[layer])
        total = before + n
        delta_F = mean_F - self.mean_LF[layer]
        self.mean_LF[layer].add_(delta_F, alpha=n / total)
        self.m2_LF[layer].add_(m2_F).addcmul_(delta_F, delta_F, value=before * n / total)
        self.n_L[layer] = total

    def tensors(self) -> dict[str, Tensor]:
        return {f.name.rpartition("_")[0]: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Moments":
        return cls(**{f.name: tensors[f.name.rpartition("_")[0]] for f in fields(cls)})

    def to(self, device: torch.device | str) -> "Moments":
        return Moments(self.n_L, *(getattr(self, f.name).to(device) for f in fields(self)[1:]))


@dataclass
class Vectors:
    """A sample of key or pre-activation vectors of chosen layers; the same tokens in every layer."""

    layers: tuple[int, ...]
    vectors_LNF: Tensor
    span_N: Tensor
    """Index of the text that each vector is from."""


@dataclass
class Probe:
    """Statistics by role, and the sampled vectors if they were asked for."""

    moments: dict[Role, Moments]
    vectors: Vectors | None = None

    @property
    def n(self) -> int:
        return next(iter(self.moments.values())).n


def probe(
    model: nn.Module,
    texts: Sequence[Span],
    pad_id: int,
    *,
    roles: Sequence[Role] = ROLES,
    pooled: bool = False,
    keep: int = 0,
    keep_layers: Sequence[int] = (),
    seed: int = 0,
    max_tokens: int = 4096,
) -> Probe:
    """Computes statistics of every layer in one forward pass over `texts`, merged over all processes.

    pooled              use only the mean over each text's tokens, as one vector per text
    keep, keep_layers   also keep the key vectors of that many tokens, drawn uniformly with `seed`, in these layers
    Under torchrun each process runs its share of the batches and all get the same result; batches do not depend on the number of
    processes, so counts, minima and maxima are the same bit for bit and means to rounding in float64.

    Raises ExpungeError for an empty set, and for a model whose activations are not numbers.
    """
    if not texts:
        raise ExpungeError("there is nothing to probe: the set is empty; give at least one text")
    places = blocks_of(model)
    device = next(model.parameters()).device
    moments = {role: Moments.empty(places.count, places.d_ff, device) for role in roles}
    kept_layers = tuple(i % places.count for i in keep_layers)
    drawn = _draw([Span(t.ids, t.stop - 1, t.stop) for t in texts] if pooled else texts, keep, seed) if keep else {}
    vectors: dict[tuple[int, int, int], Tensor] = {}  # (span, position, layer) -> vector

    def observers(chosen: Chosen) -> dict[Site, Observer]:
        pairs = list(zip(chosen.span_N.tolist(), chosen.position_N.tolist(), strict=True)) if keep else []

        def see(role: Role, layer: int, values_NF: Tensor, part: slice) -> None:
            moments[role].update(layer, values_NF)
            if role == "key" and layer in kept_layers:
                for n, pair in enumerate(pairs[part]):
                    if pair in drawn:
                        vectors[(*pair, layer)] = values_NF[n].float().cpu()

        return {site(places, role, i): partial(see, role, i) for role in roles for i in range(places.count)}

    rank, world = _processes()
    visit(model, texts, pad_id, observers, pooled=pooled, max_tokens=max_tokens, rank=rank, world=world)
    if world > 1:
        moments = {role: _gathered(m) for role, m in moments.items()}
        vectors = _gathered_vectors(vectors)
    if not all(bool(m.mean_LF.isfinite().all()) for m in moments.values()):
        raise ExpungeError(
            "the model's activations are not numbers (NaN or infinity) for some of the texts, so that nothing can be fitted to "
            "them; its weights are broken, so give another model, or copy it again"
        )
    found = _stack(vectors, sorted(drawn), kept_layers) if keep else None
    return Probe({role: m.to("cpu") for role, m in moments.items()}, found)


def site(places: Blocks, role: Role, layer: int) -> Site:
    return places.pre_activation(layer) if role == "pre_activation" else places.key(layer)


def save_probe(path: Path, probe: Probe, about: Mapping[str, str]) -> None:
    """Writes statistics as safetensors, named `role.statistic`; `about` (model, hash, texts, tokens) goes into the header."""
    tensors = {f"{role}.{name}": t.contiguous() for role, m in probe.moments.items() for name, t in m.tensors().items()}
    save_tensors(path, tensors, {"expunge": "probe", "format": FORMAT, **about})


def load_probe(path: Path) -> tuple[Probe, dict[str, str]]:
    """Reads the statistics and the header of a file that `save_probe` wrote (`expunge probe` writes such files). Raises
    ExpungeError for another file."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if about.get("expunge") != "probe" or about.get("format") != FORMAT:
            raise ExpungeError(f"{path} holds no probe of this version of expunge; write it again with `expunge probe`")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = [role for role in ROLES if f"{role}.n" in tensors]
    parts = {role: {n.removeprefix(f"{role}."): t for n, t in tensors.items() if n.startswith(f"{role}.")} for role in found}
    return Probe({role: Moments.of_tensors(part) for role, part in parts.items()}), about


def _draw(texts: Sequence[Span], keep: int, seed: int) -> set[tuple[int, int]]:
    """Draws `keep` of all chosen tokens (all, if there are fewer) before the pass, so that batching cannot change them."""
    lengths = torch.tensor([text.stop - text.start for text in texts])
    ends = lengths.cumsum(0)
    order = torch.randperm(int(ends[-1]), generator=torch.Generator().manual_seed(seed))[:keep]
    span_N = torch.searchsorted(ends, order, right=True)
    position_N = order - (ends - lengths)[span_N] + torch.tensor([text.start for text in texts])[span_N]
    return set(zip(span_N.tolist(), position_N.tolist(), strict=True))


def _stack(vectors: dict[tuple[int, int, int], Tensor], tokens: list[tuple[int, int]], layers: tuple[int, ...]) -> Vectors:
    stacked = torch.stack([torch.stack([vectors[(*token, layer)] for token in tokens]) for layer in layers])
    return Vectors(layers, stacked, torch.tensor([span for span, _ in tokens]))


def _processes() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _gathered(mine: Moments) -> Moments:
    """Returns the statistics of all processes, merged in order of rank."""
    total = Moments.empty(len(mine.n_L), mine.mean_LF.shape[1], mine.mean_LF.device)
    device = mine.mean_LF.device
    own = {name: tensor.to(device).contiguous() for name, tensor in mine.tensors().items()}
    everyone = {name: [torch.empty_like(t) for _ in range(distributed.get_world_size())] for name, t in own.items()}
    for name, tensor in own.items():
        distributed.all_gather(everyone[name], tensor)
    everyone["n"] = [n_L.cpu() for n_L in everyone["n"]]
    for rank in range(distributed.get_world_size()):
        total.merge(Moments.of_tensors({name: parts[rank] for name, parts in everyone.items()}))
    return total


def _gathered_vectors(mine: dict[tuple[int, int, int], Tensor]) -> dict[tuple[int, int, int], Tensor]:
    parts: list[dict[tuple[int, int, int], Tensor]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, mine)
    return {key: vector for part in parts for key, vector in part.items()}
