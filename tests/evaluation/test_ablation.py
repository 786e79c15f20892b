"""The ablation of a guard gives what each setting alone gives, at little more than the cost of one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge import ExpungeError, evaluate
from expunge.data.encode import Encoder, Format
from expunge.data.example import Example, Request
from expunge.evaluation.ablation import Setting, ablate, at, effect, settings
from expunge.evaluation.metrics import Accuracy, Metric, MiaGradnorm, Probability, RougeLRecall, TruthRatio
from expunge.evaluation.shortcuts import shortcuts_of
from expunge.evaluation.suites.base import no_summary
from expunge.evaluation.task import Suite, Task
from expunge.guarding import life
from expunge.guarding.embedding_corruption.gate import TextGate
from expunge.methods import EmbeddingCorruption

FORMAT = Format(template="question: {prompt} answer: {response}")
FORGET = tuple(Example(f"where was {name} born ?", "in lima .") for name in ("anna", "boris", "clara", "dario", "elena"))
RETAIN = tuple(
    Example(f"{a} plus {b} is", "nine .", choices=("nine .", "ten ."), answer=0)
    for a in ("one", "two", "six", "ten")
    for b in ("four", "five", "ten", "one", "two")
)
CHOSEN = [
    Setting("shuffle", {"corruption": "shuffle"}),
    Setting("zero", {"corruption": "zero_out_first_n"}),
    Setting("noise", {"corruption": "rand_noise_first_n", "dims": 4, "strength": 5.0, "relative": False}),
]
SUITE = Suite(
    "small",
    (
        Task("forget", FORGET, (Probability(), RougeLRecall()), "forget", max_new_tokens=3),
        Task("retain", RETAIN, (Probability(), RougeLRecall(), Accuracy()), "retain", max_new_tokens=3),
    ),
    no_summary,
)


@pytest.fixture
def guarded(pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast) -> Iterator[LlamaForCausalLM]:
    encoder = Encoder(pico_tokenizer, FORMAT)
    method = EmbeddingCorruption(gate="text", tune="nothing", strength=3.0, canaries=2, false_positive_rate=0.2)
    state = life.fit(method, pico_llama, Request(FORGET, RETAIN), encoder)
    life.attach(pico_llama, method, state, encoder)
    yield pico_llama
    if "expunge_guard" in vars(pico_llama):
        pico_llama.expunge_guard.detach()


def test_it_gives_what_each_setting_alone_gives_and_reads_passed_prompts_once(
    guarded: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, passes, asked = [0], [0], [0]

    def count(_: Any, args: Any, output: Any) -> None:
        rows[0] += len(args[0] if args else output[0])
        passes[0] += 1

    handle = guarded.model.layers[0].register_forward_hook(count)
    original = TextGate.probabilities
    monkeypatch.setattr(
        TextGate, "probabilities", lambda gate, texts: asked.__setitem__(0, asked[0] + 1) or original(gate, texts)
    )  # type: ignore[func-returns-value]
    guard = guarded.expunge_guard
    how: dict[str, Any] = {"quiet": True, "fingerprint": "x"}
    one = ablate(guarded, pico_tokenizer, SUITE, out=tmp_path / "one", chosen=CHOSEN[:1], **how)
    first, once, decided = rows[0], passes[0], asked[0]
    life.attach(guarded, guard.method, guard.state, guard.encoder)
    passes[0] = 0  # the canaries are read anew
    found = ablate(guarded, pico_tokenizer, SUITE, out=tmp_path / "all", chosen=CHOSEN * 1, **how)
    handle.remove()
    assert rows[0] - first < 2 * first  # three settings
    assert passes[0] <= once  # in the same batches
    assert asked[0] == decided  # the gate is not asked again
    assert [s.value for s in one["shuffle"].scores] == [s.value for s in found["shuffle"].scores]
    for setting in CHOSEN:
        life.attach(guarded, *_at(guard, setting), guard.encoder)
        alone = evaluate(guarded, pico_tokenizer, suite=SUITE, format=FORMAT, quiet=True)
        guarded.expunge_guard.detach()
        for mine, expected in zip(found[setting.name].scores, alone.scores, strict=True):
            assert mine.value == pytest.approx(expected.value, abs=1e-6)
        assert found[setting.name].guard == alone.guard
    life.attach(guarded, guard.method, guard.state, guard.encoder)
    again = ablate(guarded, pico_tokenizer, SUITE, out=tmp_path / "all", chosen=CHOSEN, **how)
    assert again == found  # read, not computed


@pytest.mark.parametrize("more", [(), (MiaGradnorm(),)], ids=["packed", "through the guard"])
def test_without_hooks_it_gives_the_same_and_reads_a_prompt_once_for_all_its_answers(
    guarded: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, more: tuple[Metric, ...]
) -> None:
    others = [Example(e.prompt, e.response, paraphrases=("in rome .",), perturbed=("in oslo .", "in lima !")) for e in FORGET]
    task = Task("forget", tuple(others), (Probability(), TruthRatio(), RougeLRecall(), *more), "forget", max_new_tokens=3)
    suite, guard, read = replace(SUITE, tasks=(task, SUITE.tasks[1])), guarded.expunge_guard, list[tuple[int, int]]()
    guard.detach()
    assert shortcuts_of(guarded).packed  # measured once, with passes of its own
    alone = {}
    with _forwards(guarded, read):
        for setting in CHOSEN:
            life.attach(guarded, *_at(guard, setting), guard.encoder)
            alone[setting.name] = evaluate(guarded, pico_tokenizer, suite=suite, format=FORMAT, quiet=True)
            guarded.expunge_guard.detach()
        before = sum(rows * width for rows, width in read)
        life.attach(guarded, guard.method, guard.state, guard.encoder)
        read.clear()
        found = ablate(guarded, pico_tokenizer, suite, out=tmp_path, chosen=CHOSEN, quiet=True)
    if not more:
        assert {rows for rows, _ in read} == {1}  # packs; a guard that is attached sees real rows
        assert sum(width for _, width in read) < before / 3  # three settings for less than one
    for name, expected in alone.items():
        assert found[name].guard == expected.guard
        for mine, score in zip(found[name].scores, expected.scores, strict=True):
            assert mine.value == pytest.approx(score.value, rel=1e-5, abs=1e-6), (mine.task, mine.metric)
    assert "expunge_guard" not in vars(guarded)


@contextmanager
def _forwards(model: LlamaForCausalLM, read: list[tuple[int, int]]) -> Iterator[None]:
    """Notes rows and width of each pass, without a hook."""
    layer: Any = model.model.layers[0]

    def forward(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(tuple(hidden.shape[:2]))
        return type(layer).forward(layer, hidden, *args, **kwargs)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def test_settings_with_the_same_effect_are_read_once(
    guarded: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    same = [Setting("first", {"corruption": "zero_out_first_n"}), Setting("top", {"corruption": "zero_out_top_k", "dims": 32})]
    guard, rows = guarded.expunge_guard, [0]
    handle = guarded.model.layers[0].register_forward_hook(lambda *_: rows.__setitem__(0, rows[0] + 1))
    ablate(guarded, pico_tokenizer, SUITE, out=tmp_path / "one", chosen=same[:1], quiet=True)
    once = rows[0]
    life.attach(guarded, guard.method, guard.state, guard.encoder)  # reads its canaries
    rows[0] = 0
    found = ablate(guarded, pico_tokenizer, SUITE, out=tmp_path / "both", chosen=same, quiet=True)
    handle.remove()
    assert 0 < rows[0] == once
    assert found["first"].guard == found["top"].guard
    assert [s.value for s in found["first"].scores] == [s.value for s in found["top"].scores]
    assert effect({"corruption": "zero_out_top_k", "dims": 31}, 32) != effect({"corruption": "zero_out_first_n", "dims": 31}, 32)


def _at(guard: life.Guard, setting: Setting) -> Any:
    assert isinstance(guard.method, EmbeddingCorruption)
    return at(guard.method, guard.state, setting.fields, 32)


def test_what_has_no_such_guard_or_other_results_is_refused(
    guarded: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    guard = guarded.expunge_guard
    ablate(guarded, pico_tokenizer, SUITE, out=tmp_path, chosen=CHOSEN[:1], limit=1, fingerprint="x", quiet=True)
    with pytest.raises(ExpungeError, match="run or an artifact of embedding_corruption"):
        ablate(guarded, pico_tokenizer, SUITE, out=tmp_path)
    life.attach(guarded, guard.method, guard.state, guard.encoder)
    with pytest.raises(ExpungeError, match="of another model or guard"):
        ablate(guarded, pico_tokenizer, SUITE, out=tmp_path, chosen=CHOSEN[:1], fingerprint="y", quiet=True)


def test_the_settings_are_those_of_the_release() -> None:
    found = settings(2048)
    assert len(found) == len({setting.name for setting in found}) == 44
    counts = [s.fields["dims"] for s in found if s.fields["corruption"] == "zero_out_top_k"]
    assert counts == [256, 512, 768, 1024, 1536, 2048]
    for setting in found:
        EmbeddingCorruption.model_validate({"tune": "nothing", **setting.fields})
