"""Embedding corruption: what it changes and what it never does, in batches, caches and beams, on every architecture."""

from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import expunge
from expunge import ExpungeError
from expunge.data.encode import Encoded, Encoder, collate
from expunge.data.example import Example, Request
from expunge.evaluation import objectives
from expunge.evaluation.engine import Engine
from expunge.evaluation.objectives import answer_probability, build_objective
from expunge.guarding import life, session
from expunge.guarding.embedding_corruption.kinds import KINDS, PERMUTING, WITH_STRENGTH, Kind
from expunge.guarding.forward_pass import ForwardPass
from expunge.guarding.session import rows_under
from expunge.methods import EmbeddingCorruption
from expunge.methods.base import Resources, State
from expunge.models.logprobs import labelled_logits


def spec(**fields: Any) -> EmbeddingCorruption:
    return EmbeddingCorruption(
        **{"gate": "text", "negatives": "none", "tune": "nothing", "strength": 3.0, "canaries": 0, **fields}
    )


@pytest.fixture
def fitted(pico_llama: PreTrainedModel, request_: Request, encoder: Encoder) -> tuple[EmbeddingCorruption, State]:
    method = spec()
    return method, method.fit(pico_llama, request_, encoder)


@pytest.fixture
def flagged(encoder: Encoder) -> list[tuple[int, ...]]:
    return encoder.encode_prompts(["where was anna born ?", "where was greta born ?"])


@pytest.fixture
def plain(encoder: Encoder) -> list[tuple[int, ...]]:
    return encoder.encode_prompts(["one plus two is", "ten plus ten is", "four plus nine is"])


def embeddings(model: PreTrainedModel, prompts: list[tuple[int, ...]], side: Any = "right") -> torch.Tensor:
    """What the first block is given."""
    seen: list[torch.Tensor] = []
    tokens = collate([Encoded(ids, 1, False) for ids in prompts], 0, side)
    handle = model.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).clone()), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=tokens.input_ids_BT, attention_mask=tokens.attention_mask_BT)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("kind", KINDS)
def test_unflagged_rows_are_bit_identical_and_flagged_ones_change_but_for_their_last_token(
    kind: Kind, pico_llama: PreTrainedModel, request_: Request, encoder: Encoder,
    flagged: list[tuple[int, ...]], plain: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method = spec(corruption=kind, dims=None if kind in PERMUTING else 5)
    state = method.fit(pico_llama, request_, encoder)
    prompts = [plain[0], flagged[0], plain[1], flagged[1]]
    before = embeddings(pico_llama, prompts)
    with method.attach(pico_llama, state, encoder) as counts:
        after = embeddings(pico_llama, prompts)
    moved_BT = (before != after).any(dim=-1)
    assert not moved_BT[[0, 2]].any()
    for row in (1, 3):
        length = len(prompts[row])
        assert not moved_BT[row, length - 1 :].any()
        assert moved_BT[row, : length - 1].sum() >= length - 2  # of an odd number reversed the middle one stays
        if kind not in PERMUTING:
            assert ((before != after)[row, : length - 1].sum(dim=-1) == 5).all()
    assert (counts.decided, counts.acted) == (4, 2)


@pytest.mark.parametrize("kind", ["rand_noise_first_n", "rand_noise_rand_n", "shuffle"])
def test_a_prompt_is_corrupted_alone_as_in_any_batch_under_padding_on_either_side(
    kind: Kind, pico_llama: PreTrainedModel, request_: Request, encoder: Encoder,
    flagged: list[tuple[int, ...]], plain: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method = spec(corruption=kind)
    state = method.fit(pico_llama, request_, encoder)
    long = encoder.encode_prompts(["where was anna born and who is the blue bird of the pilot ?"])[0]
    with method.attach(pico_llama, state, encoder):
        alone = embeddings(pico_llama, [flagged[0]])[0]
        for side in ("left", "right"):
            batch = embeddings(pico_llama, [plain[0], flagged[0], long], side)
            place = slice(-len(flagged[0]), None) if side == "left" else slice(len(flagged[0]))
            assert torch.equal(batch[1, place], alone)
        assert torch.equal(embeddings(pico_llama, [flagged[0]])[0], alone)


def test_general_prompts_pass_a_calibrated_gate_and_a_fixed_threshold_that_flags_them_is_told(
    pico_llama: PreTrainedModel, request_: Request, encoder: Encoder
) -> None:
    method = spec(negatives="general")
    state = method.fit(pico_llama, request_, encoder)
    for name in ("general", "retain"):
        assert (state[f"calibration.{name}"] < 1).double().mean() <= method.false_positive_rate
    assert (state["calibration.forget"] < 1).all()
    assert f"% of {len(state['calibration.general'])} general prompts" in method.summary(state)
    with pytest.warns(UserWarning, match=r"flags 100% of \d+ general prompts that it was not trained on"):
        spec(negatives="general", threshold="fixed", threshold_value=0.0).fit(pico_llama, request_, encoder)


def test_a_statement_that_names_someone_is_corrupted_and_passes_a_guard_from_before_names_counted(
    pico_llama: PreTrainedModel, request_: Request, encoder: Encoder, tmp_path: Path
) -> None:
    asked = ("where was {} born ?", "what is the job of {} ?")
    rows = [Example(text.format(p), "x", attributes={"person": p}) for p in ("anna", "boris", "clara") for text in asked]
    method = spec(tokens="spans", spans=("anna",))
    state = method.fit(pico_llama, replace(request_, forget=tuple(rows)), encoder, Resources(assets=tmp_path))
    assert "any of 3 names of the forget set scores 1" in method.summary(state)
    older = State({name: tensor for name, tensor in state.items() if name != "gate.mentions"}, tmp_path)
    older = older.having({"threshold": state["threshold"].clone()})  # decisions are remembered by it
    statement = encoder.encode_prompts(["four plus anna is", "four plus jonas is"])
    before = embeddings(pico_llama, statement)
    for guard, acted in ((state, 1), (older, 0)):
        with method.attach(pico_llama, guard, encoder) as counts:
            moved_BT = (embeddings(pico_llama, statement) != before).any(dim=-1)
        assert (counts.decided, counts.acted) == (2, acted)
        assert [encoder.tokenizer.decode([statement[0][i]]) for i in moved_BT[0].nonzero()[:, 0]] == ["anna"] * acted
        assert not moved_BT[1].any()


def test_another_seed_gives_other_noise(
    pico_llama: PreTrainedModel, fitted: tuple[EmbeddingCorruption, State], encoder: Encoder, flagged: list[tuple[int, ...]]
) -> None:
    method, state = fitted
    with method.attach(pico_llama, state, encoder):
        one = embeddings(pico_llama, flagged)
    with spec(noise_seed=1).attach(pico_llama, state, encoder):
        other = embeddings(pico_llama, flagged)
    assert not torch.equal(one, other)


def test_teacher_forcing_corrupts_prompt_tokens_only(
    pico_llama: PreTrainedModel, fitted: tuple[EmbeddingCorruption, State], encoder: Encoder, request_: Request
) -> None:
    method, state = fitted
    row = encoder.encode_many(request_.forget[:1])[0]
    with method.attach(pico_llama, state, encoder):
        longer, shorter = (
            labelled_logits(pico_llama, collate([r], 0)).logits_NV for r in (row, Encoded(row.ids[:-2], row.answer_start, False))
        )
        written = pico_llama.generate(torch.tensor([row.ids[: row.answer_start]]), max_new_tokens=1, do_sample=False)
    torch.testing.assert_close(longer[: len(shorter)], shorter, atol=1e-5, rtol=1e-5)
    assert int(longer[0].argmax()) == int(written[0, -1])  # scoring begins where generation begins


def test_rows_of_one_batch_are_read_each_under_its_own_setting_as_alone(
    pico_llama: PreTrainedModel, fitted: tuple[EmbeddingCorruption, State], encoder: Encoder,
    flagged: list[tuple[int, ...]], plain: list[tuple[int, ...]],
) -> None:  # fmt: skip
    method, state = fitted
    stronger = state.having({"strength": torch.tensor(5.0)})
    edits = [spec(corruption=kind).edit(stronger) for kind in KINDS]
    alone = []
    for kind in KINDS:
        with spec(corruption=kind).attach(pico_llama, stronger, encoder):
            alone += [embeddings(pico_llama, [prompt])[0] for prompt in flagged]
    under = [*(edit for edit in edits for _ in flagged), edits[0], None]
    with method.attach(pico_llama, state, encoder) as counts:
        own = embeddings(pico_llama, flagged[:1])[0]
        with rows_under(under):
            found = embeddings(pico_llama, [*flagged * len(KINDS), plain[0], flagged[0]])
        assert (counts.decided, counts.acted) == (2, 2)  # those under the attached setting
    for row, expected in enumerate(alone):
        assert torch.equal(found[row, : len(expected)], expected)
    assert torch.equal(found[-2, : len(plain[0])], embeddings(pico_llama, plain[:1])[0])
    assert torch.equal(found[-1, : len(own)], own)


def test_a_generation_whose_prompts_pass_is_left_alone_from_its_prefill_on(
    pico_llama: PreTrainedModel, fitted: tuple[EmbeddingCorruption, State], encoder: Encoder,
    flagged: list[tuple[int, ...]], plain: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    method, state = fitted
    passes = [0]
    monkeypatch.setattr(session, "ForwardPass", lambda *given: passes.__setitem__(0, passes[0] + 1) or ForwardPass(*given))

    def write(prompt: tuple[int, ...]) -> torch.Tensor:
        return pico_llama.generate(torch.tensor([prompt]), max_new_tokens=4, min_new_tokens=4, do_sample=False)

    before = [write(prompt) for prompt in (plain[0], flagged[0])]
    original = pico_llama._get_stopping_criteria

    def reads_something_else_first(self: Any, *args: Any, **kwargs: Any) -> Any:
        self(torch.tensor([plain[1]]))  # within the generation, before its prompts are read
        return original(*args, **kwargs)

    monkeypatch.setattr(pico_llama, "_get_stopping_criteria", MethodType(reads_something_else_first, pico_llama))
    with method.attach(pico_llama, state, encoder) as counts:
        assert torch.equal(write(plain[0]), before[0])
        assert passes[0] == 2
        passes[0] = 0
        assert not torch.equal(write(flagged[0]), before[1])
        assert passes[0] == 5
    assert (counts.decided, counts.acted) == (4, 1)


def test_noise_is_relative_to_the_embeddings_or_absolute(
    pico_llama: PreTrainedModel, request_: Request, encoder: Encoder, flagged: list[tuple[int, ...]]
) -> None:
    before = embeddings(pico_llama, flagged[:1])
    sizes = []
    for relative in (True, False):
        method = spec(relative=relative, strength=50.0)
        with method.attach(pico_llama, method.fit(pico_llama, request_, encoder), encoder):
            sizes.append(float((embeddings(pico_llama, flagged[:1]) - before)[0, :-1].std()))
    rms = float(pico_llama.get_input_embeddings().weight.detach().square().mean().sqrt())
    assert sizes == pytest.approx([50 * rms, 50], rel=0.2)


@pytest.mark.parametrize("kind", sorted(WITH_STRENGTH))
def test_tuning_brings_the_score_to_the_surrogate(
    kind: Kind, pico_llama: PreTrainedModel, request_: Request, encoder: Encoder
) -> None:
    """A random model gives its answers small probabilities; what the corruption can reach is somewhere between its extremes."""
    method = spec(corruption=kind, tune="strength", strength=1.0)
    start = method.fit(pico_llama, request_, encoder)
    reached = []
    for strength in (0.02, 0.5, 3.0):
        with method.attach(pico_llama, start.having({"strength": torch.tensor(strength)}), encoder):
            reached.append(answer_probability(pico_llama, request_.forget[::2], encoder))
    aimed = method.model_copy(update={"surrogate": reached[1]})
    objective = build_objective(aimed, pico_llama, request_, encoder)
    reported = build_objective(aimed, pico_llama, request_, encoder, "reported")
    state = aimed.fit(pico_llama, request_, encoder, Resources(objective, reported=reported))
    assert float(state["tuning.reported"]) == pytest.approx(reported(state))
    assert "on forget rows that were not tuned on" in method.summary(state)
    assert float(state["tuning.distance"]) == pytest.approx(objective(state))
    assert float(state["tuning.distance"]) <= 0.01
    assert "distance to the surrogate" in method.summary(state)


def test_the_two_parts_of_the_forget_set_share_no_row_and_unflagged_prompts_are_scored_once(
    pico_llama: PreTrainedModel, request_: Request, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[list[tuple[int, ...]]] = []

    class Looking(Engine):
        def score(self, sequences: Any, **how: Any) -> Any:
            scored.append([row.ids for row in sequences])
            return super().score(sequences, **how)

    monkeypatch.setattr(objectives, "Engine", Looking)
    mixed = replace(request_, forget=(*request_.forget[:8], *request_.retain[:8]))
    method = spec(surrogate=0.1)
    state = method.fit(pico_llama, request_, encoder)
    seen = {}
    for part in ("tuning", "reported"):
        objective = build_objective(method, pico_llama, mixed, encoder, part)  # type: ignore[arg-type]
        scored.clear()
        first, again = objective(state), objective(state.having({"strength": torch.tensor(3.0)}))
        assert first == again
        seen[part] = {ids for some in scored for ids in some}
        assert [len(some) for some in scored] == [4, 4, 4]  # those that pass once, the flagged ones at each setting
    assert not seen["tuning"] & seen["reported"]
    assert len(seen["tuning"] | seen["reported"]) == 16


def test_the_surrogate_is_measured_on_a_given_model(
    pico_llama: PreTrainedModel, pico_folder: Path, request_: Request, encoder: Encoder
) -> None:
    method = spec(tune="strength", surrogate_model=str(pico_folder))
    method.require(Request(request_.forget, request_.retain))
    state = method.fit(pico_llama, request_, encoder)
    with torch.no_grad():
        pico_llama.lm_head.weight.mul_(0)
    other = answer_probability(pico_llama, request_.forget[::2], encoder)
    objective = build_objective(method, pico_llama, request_, encoder)
    gold, _ = expunge.load(pico_folder)
    assert objective(state) == pytest.approx(abs(other - answer_probability(gold, request_.forget[::2], encoder)))


def test_names_alone_are_corrupted_and_without_one_all_but_the_last(
    pico_llama: PreTrainedModel, request_: Request, encoder: Encoder, flagged: list[tuple[int, ...]], tmp_path: Path
) -> None:
    method = spec(tokens="spans", spans=("anna",))
    state = method.fit(pico_llama, request_, encoder, Resources(assets=tmp_path))
    before = embeddings(pico_llama, flagged)
    with method.attach(pico_llama, state, encoder):
        moved_BT = (embeddings(pico_llama, flagged) != before).any(dim=-1)
    assert [encoder.tokenizer.decode([flagged[0][i]]) for i in moved_BT[0].nonzero()[:, 0]] == ["anna"]
    assert moved_BT[1].sum() == len(flagged[1]) - 1


def test_what_it_cannot_judge_it_refuses(
    pico_llama: PreTrainedModel, fitted: tuple[EmbeddingCorruption, State], encoder: Encoder, flagged: list[tuple[int, ...]]
) -> None:
    method, state = fitted
    ids = torch.tensor(flagged[:1])
    cache = pico_llama(ids[:, :3], use_cache=True).past_key_values
    inputs = pico_llama.get_input_embeddings()(ids)
    with method.attach(pico_llama, state, encoder):
        with pytest.raises(ExpungeError, match="give generate its input_ids"):
            pico_llama.generate(inputs_embeds=inputs)
        with pytest.raises(ExpungeError, match="without cache"):
            pico_llama.generate(ids, past_key_values=cache)
        with pytest.raises(ExpungeError, match="give it input_ids"):
            pico_llama(inputs_embeds=inputs)
        for rest in ({"input_ids": ids[:, 3:]}, {"inputs_embeds": inputs[:, 3:]}):
            with pytest.raises(ExpungeError, match="whole sequences without a cache"):
                pico_llama(past_key_values=cache, **rest)
            with pytest.raises(ExpungeError, match="whole sequences without a cache"):
                pico_llama.model(past_key_values=cache, **rest)


def test_the_model_below_the_head_and_forward_called_by_itself_are_guarded_too(
    pico_llama: PreTrainedModel, fitted: tuple[EmbeddingCorruption, State], encoder: Encoder, flagged: list[tuple[int, ...]]
) -> None:
    method, state = fitted
    ids = torch.tensor(flagged[:1])
    with torch.no_grad(), method.attach(pico_llama, state, encoder) as counts:
        expected = pico_llama(ids).logits
        with pytest.raises(ExpungeError, match="give it input_ids"):
            pico_llama(inputs_embeds=pico_llama.get_input_embeddings().weight[None, :3])
        for logits in (pico_llama.lm_head(pico_llama.model(ids)[0]), pico_llama.forward(ids).logits):
            assert torch.equal(logits, expected)
        assert (counts.decided, counts.acted) == (3, 3)


def test_wrong_settings_are_one_sentence(request_: Request) -> None:
    for fields, reason in (
        ({"gate": "encoder"}, "need gate_model"),
        ({"gate_model": "x"}, "take none"),
        ({"corruption": "zero_out_top_k", "tune": "strength"}, "no strength to tune"),
        ({"corruption": "shuffle", "tune": "dims"}, "no dims to tune"),
        ({"tokens": "spans"}, "give the texts"),
        ({"entity_model": "x"}, "with tokens entities"),
        ({"surrogate": 0.2, "surrogate_model": "x"}, "give one of them"),
    ):
        with pytest.raises(ValidationError, match=reason):
            spec(**fields)
    with pytest.raises(ExpungeError, match="give --retain"):
        spec().require(Request(request_.forget))
    with pytest.raises(ExpungeError, match="give --holdout"):
        spec(tune="strength").require(Request(request_.forget, request_.retain))


def test_a_run_leaves_a_guard_that_loads_with_its_names(
    pico_folder: Path, request_: Request, encoder: Encoder, tmp_path: Path
) -> None:
    import json

    for name, rows in (("forget", request_.forget), ("retain", request_.retain), ("holdout", request_.holdout)):
        lines = [json.dumps({"prompt": e.prompt, "response": e.response}) for e in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = {name: tmp_path / f"{name}.jsonl" for name in ("forget", "retain", "holdout")}
    method = EmbeddingCorruption(gate="text", tokens="spans", spans=("anna",), strength=5.0)
    out = expunge.unlearn(method, model=pico_folder, out=tmp_path / "run", format=encoder.format, quiet=True, **data).folder
    manifest = expunge.verify(out)
    assert f"{life.ASSETS}/names.json" in manifest.files
    model, _ = expunge.load(out)
    ids = torch.tensor([encoder.encode_prompts(["where was anna born ?"])[0]])
    model.generate(ids, max_new_tokens=2, do_sample=False)
    counts = model.expunge_guard.counts
    assert (counts.decided, counts.acted) == (1, 1)
    assert "The text gate flags" in (out / "artifact" / "README.md").read_text()
    model.expunge_guard.detach()
    (out / "artifact" / life.ASSETS / "names.json").write_text("[]")
    with pytest.raises(ExpungeError, match="differs from its checksum"):
        expunge.load(out)


def test_every_architecture_is_corrupted_in_its_flagged_rows_alone(
    any_model: PreTrainedModel, request_: Request, encoder: Encoder, flagged: list[tuple[int, ...]], plain: list[tuple[int, ...]]
) -> None:
    method = spec(corruption="flip_sign_first_n")
    state = method.fit(any_model, request_, encoder)
    tokens = collate([Encoded(ids, 1, False) for ids in (flagged[0], plain[0])], 0, "left")
    inputs = {"input_ids": tokens.input_ids_BT, "attention_mask": tokens.attention_mask_BT}
    with torch.no_grad():
        before = any_model(**inputs).logits[:, -1]
        with method.attach(any_model, state, encoder):
            after = any_model(**inputs).logits[:, -1]
            alone = any_model(input_ids=torch.tensor(flagged[:1])).logits[:, -1]
    assert torch.equal(after[1], before[1])
    assert (after[0] - before[0]).abs().max() > 1e-4
    torch.testing.assert_close(after[0], alone[0], atol=1e-4, rtol=1e-3)


def test_a_model_that_is_split_over_devices_is_corrupted_alike(
    pico_folder: Path, fitted: tuple[EmbeddingCorruption, State], encoder: Encoder,
    flagged: list[tuple[int, ...]], plain: list[tuple[int, ...]], tmp_path: Path,
) -> None:  # fmt: skip
    """The last block's weights are on disk and come when it runs, by the hooks that a device map over several GPUs has too."""
    method, state = fitted
    split = AutoModelForCausalLM.from_pretrained(
        pico_folder,
        device_map={"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
                    "model.rotary_emb": "cpu", "lm_head": "cpu"},
        offload_folder=tmp_path,
    )  # fmt: skip
    whole = AutoModelForCausalLM.from_pretrained(pico_folder)
    tokens = collate([Encoded(ids, 1, False) for ids in (flagged[0], plain[0])], 0, "left")
    inputs = {"input_ids": tokens.input_ids_BT, "attention_mask": tokens.attention_mask_BT}
    found = []
    for model in (split, whole):
        with torch.no_grad(), method.attach(model, state, encoder) as counts:
            found.append(model(**inputs).logits)
            written = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert counts.acted == 2
        found.append(written)
    assert hasattr(split, "hf_device_map")
    torch.testing.assert_close(found[0], found[2], atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1], found[3])


def test_a_model_in_four_bits_is_corrupted(
    pico_folder: Path, request_: Request, encoder: Encoder, flagged: list[tuple[int, ...]], plain: list[tuple[int, ...]]
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quant`)")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    try:
        model = AutoModelForCausalLM.from_pretrained(pico_folder, quantization_config=quantization)
    except RuntimeError as error:
        pytest.skip(f"bitsandbytes does not run here: {error}")
    method = spec()
    ids = torch.tensor([flagged[0]])
    with torch.no_grad():
        before = model(ids).logits[0, -1]
        with method.attach(model, method.fit(model, request_, encoder), encoder) as counts:
            after = model(ids).logits[0, -1]
            model(torch.tensor([plain[0]]))
    assert counts.acted == 1
    assert (after - before).abs().max() > 1e-4
