"""Streaming statistics: equal to those of the activations themselves, whatever the batches and processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge import ExpungeError
from expunge.data.encode import Encoder
from expunge.data.example import Example
from expunge.data.format import Format
from expunge.models.activations import ROLES, Moments, Role, load_probe, probe, save_probe, site
from expunge.models.blocks import blocks_of
from expunge.models.hooks import capture
from expunge.models.spans import Span, spans, visit

EXAMPLES = [
    Example("where was anna born ?", "anna was born in berlin ."),
    Example("what is the color of boris ?", "red ."),
    Example("who is clara ?", "clara is a pilot from oslo and not a nurse ."),
    Example(None, "the dog is black and the cat is white ."),
]
TEXTS = [
    Span((1, 9, 30, 31, 12, 40, 41, 17, 52, 2), 0, 10),
    Span((1, 22, 8, 60, 2), 1, 4),
    Span((1, 33, 14, 71, 25, 26, 64, 2), 3, 8),
]


def values(model: PreTrainedModel, role: Role, layer: int) -> Tensor:
    """The chosen activations [N, F] in float64, from one pass per text without padding."""
    where, rows = site(blocks_of(model), role, layer), []
    for text in TEXTS:
        with torch.no_grad(), capture(model, {"here": where}) as seen:
            model(input_ids=torch.tensor([text.ids]), use_cache=False)
        rows.append(seen["here"][0, text.start : text.stop].double())
    return torch.cat(rows)


def test_statistics_are_those_of_the_activations_in_every_architecture_and_role(any_model: PreTrainedModel) -> None:
    found = probe(any_model, TEXTS, 0).moments
    for role in ROLES:
        for layer in (0, 1):
            x_NF, moments = values(any_model, role, layer), found[role]
            assert moments.n_L.tolist() == [18, 18]
            expected = {
                "mean": x_NF.mean(0),
                "m2": (x_NF - x_NF.mean(0)).square().sum(0),
                "abs": x_NF.abs().sum(0),
                "min": x_NF.amin(0),
                "max": x_NF.amax(0),
            }
            for name, value in expected.items():
                torch.testing.assert_close(moments.tensors()[name][layer], value, rtol=1e-4, atol=1e-5, msg=f"{role} {name}")
            sure = x_NF.abs().amin(0) > 1e-5  # a value at 0 may have either sign in another batch
            assert torch.equal(moments.positive_LF[layer][sure], (x_NF > 0).sum(0).double()[sure])


def test_a_tile_of_any_size_gives_the_same_statistics() -> None:
    x_NF = 1000 + torch.randn(301, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, parts = Moments.empty(1, 7), [Moments.empty(1, 7) for _ in range(3)]
    whole.update(0, x_NF)
    for i, part in enumerate((x_NF[:1], x_NF[1:200], x_NF[200:])):
        for tile in part.split(17):
            parts[i].update(0, tile)
    merged = Moments.empty(1, 7)
    for part in parts:
        merged.merge(part)
    torch.testing.assert_close(merged.mean_LF[0], x_NF.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.std_LF(1)[0], x_NF.std(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(merged.rms_LF()[0], x_NF.square().mean(0).sqrt(), rtol=1e-12, atol=0)
    assert torch.equal(merged.max_LF, whole.max_LF)
    assert merged.n == 301


@pytest.mark.parametrize("max_tokens", [10, 30, 4096])
def test_batches_and_padding_change_no_statistic(max_tokens: int, pico_llama: PreTrainedModel) -> None:
    one, other = (probe(pico_llama, TEXTS, 0, max_tokens=m).moments["key"] for m in (1, max_tokens))
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(other.tensors()[name], tensor, rtol=1e-5, atol=1e-6)


def test_policies_choose_the_tokens_they_name(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(pico_tokenizer, Format())

    def text(tokens: str, example: Example, **more: bool) -> str:
        (span,) = spans([example], encoder, tokens, **more)  # type: ignore[arg-type]
        return pico_tokenizer.decode(span.ids[span.start : span.stop])

    born, raw = EXAMPLES[0], EXAMPLES[3]
    whole = "<s> question: where was anna born ? answer: anna was born in berlin . </s>"
    assert text("all", born).lower().replace("<unk>", "question:", 1).replace("<unk>", "answer:") == whole
    assert text("all", born, skip_start=True).split()[0] != "<s>"
    assert text("generated", born) == "anna was born in berlin ."
    assert text("generated", raw) == "the dog is black and the cat is white ."
    assert text("last_prompt", raw) == "."
    (span,) = spans([born], encoder, "last_prompt")
    assert span.ids == encoder.encode(born).ids[: len(span.ids)]
    assert span.stop == len(span.ids) == encoder.encode(born).answer_start


def test_kept_vectors_are_the_activations_of_the_same_tokens_in_any_batching(pico_llama: PreTrainedModel) -> None:
    one, other = (probe(pico_llama, TEXTS, 0, keep=9, keep_layers=(0, -1), seed=3, max_tokens=m).vectors for m in (1, 4096))
    assert one is not None
    assert other is not None
    assert one.layers == (0, 1)
    assert one.vectors_LNF.shape == (2, 9, 64)
    assert torch.equal(one.span_N, other.span_N)
    torch.testing.assert_close(one.vectors_LNF, other.vectors_LNF)
    x_NF = values(pico_llama, "key", 1).float()
    nearest = torch.cdist(one.vectors_LNF[1], x_NF).amin(dim=1)
    assert nearest.max() < 1e-4
    everything = probe(pico_llama, TEXTS, 0, keep=99, keep_layers=(1,)).vectors
    assert everything is not None
    torch.testing.assert_close(everything.vectors_LNF[0], x_NF)


def test_a_probe_reads_what_it_wrote(tmp_path: Path, pico_llama: PreTrainedModel) -> None:
    written = probe(pico_llama, TEXTS, 0)
    save_probe(tmp_path / "probe.safetensors", written, {"model": "pico"})
    read, about = load_probe(tmp_path / "probe.safetensors")
    assert about["model"] == "pico"
    for role in ROLES:
        for name, tensor in written.moments[role].tensors().items():
            assert torch.equal(read.moments[role].tensors()[name], tensor)


def test_an_empty_set_and_an_unknown_architecture_are_said(pico_llama: PreTrainedModel) -> None:
    with pytest.raises(ExpungeError, match="nothing to probe"):
        probe(pico_llama, [], 0)
    pico_llama.config.model_type = "newfangled"
    with pytest.raises(ExpungeError, match=r"newfangled.*ARCHITECTURES.*model\.layers\.\*\.mlp\.gate_proj"):
        probe(pico_llama, TEXTS, 0)


def test_a_probe_leaves_no_hook_and_the_mode_as_it_was(pico_llama: PreTrainedModel) -> None:
    pico_llama.train()
    probe(pico_llama, TEXTS, 0)
    assert pico_llama.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pico_llama.modules())


def test_no_more_than_one_layer_is_held_at_a_time(pico_llama: PreTrainedModel) -> None:
    """What an observer gets is a view or a tile, and nothing of it is alive when the next layer runs."""
    import weakref

    alive: list[weakref.ref[Tensor]] = []
    most: list[int] = []

    def see(values_NF: Tensor, part: slice) -> None:
        most.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(values_NF))

    places = blocks_of(pico_llama)
    sites = {site(places, role, layer): see for role in ROLES for layer in (0, 1)}
    visit(pico_llama, TEXTS * 4, 0, lambda chosen: sites)
    assert len(alive) == 4
    assert max(most) <= 1


TWO = """
import json, os, sys, torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM
from expunge.models.activations import probe, save_probe
from expunge.models.spans import Span
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=int(os.environ["RANK"]), world_size=2)
g = torch.Generator().manual_seed(0)
lengths = torch.randint(3, 20, (40,), generator=g).tolist()
texts = [Span(tuple(torch.randint(4, 80, (n,), generator=g).tolist()), 0, n) for n in lengths]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
found = probe(model, texts, 0, max_tokens=64, keep=5, keep_layers=(1,))
save_probe(sys.argv[2], found, {"kept": json.dumps(found.vectors.vectors_LNF.sum().item())})
if "RANK" in os.environ:
    torch.distributed.destroy_process_group()
"""


def test_two_processes_count_the_same_bit_for_bit_and_average_to_1e_12(
    tmp_path: Path, pico_folder: Path, forked: Callable[..., Any]
) -> None:
    (tmp_path / "two.py").write_text(TWO)

    def start(name: str, rank: int | None) -> Any:
        environment = {"RANK": str(rank), "WORLD_SIZE": "2"} if rank is not None else {}
        words = [str(tmp_path / "two.py"), str(pico_folder), str(tmp_path / name), str(tmp_path / "store")]
        return forked(words, environment)

    processes = [start("one", None), start("zero_of_two", 0), start("one_of_two", 1)]
    codes = [p.wait(timeout=120) for p in processes]
    assert codes == [0, 0, 0], [p.stderr[-1500:] for p in processes]
    (one, kept), (two, kept_two) = (load_probe(tmp_path / name) for name in ("one", "zero_of_two"))
    other_rank, _ = load_probe(tmp_path / "one_of_two")
    assert json.loads(kept["kept"]) == json.loads(kept_two["kept"])
    for role in ROLES:
        for name, tensor in one.moments[role].tensors().items():
            other = two.moments[role].tensors()[name]
            assert torch.equal(other, other_rank.moments[role].tensors()[name])
            if name in ("n", "positive", "min", "max"):
                assert torch.equal(other, tensor), name
            else:
                torch.testing.assert_close(other, tensor, rtol=1e-12, atol=1e-12, msg=name)


def test_long_tails_of_model_types_keep_their_shapes(model_of: Callable[..., PreTrainedModel]) -> None:
    """Phi-3 holds gate and up in one matrix, GPT-2 its weights the other way round, OPT flattens rows and positions."""
    for model_type, neurons in {"phi3": 48, "gpt2": 128, "opt": 48}.items():
        assert probe(model_of(model_type), TEXTS, 0).moments["pre_activation"].mean_LF.shape == (2, neurons)
