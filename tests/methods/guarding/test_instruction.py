"""The instruction baseline: the model reads the instruction, and the caller sees nothing of it."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList

from expunge import ExpungeError
from expunge.data.encode import Encoded, Encoder, Format, collate
from expunge.data.example import Example, Request
from expunge.evaluation.metrics import Probability, Rouge
from expunge.evaluation.run import evaluate
from expunge.evaluation.task import Suite, Task
from expunge.guarding.instruct import Inserter
from expunge.methods import Instruction
from expunge.models.limits import fixed_positions, positions, room
from expunge.models.logprobs import labelled_logits
from expunge.recipes import recipe

METHOD = Instruction(wording="do not know {target} : ", target="anna and boris")
WORDS = "do not know anna and boris :"


def ids(encoder: Encoder, text: str) -> list[int]:
    return list(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_scores_and_texts_are_those_of_the_longer_prompt(
    pico_llama: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    state = METHOD.fit(pico_llama, request_, encoder)
    rows = encoder.encode_many([Example("what", "red ."), Example("where is the cat of boris ?", "in lima .")])
    more = ids(encoder, WORDS)
    longer = [Encoded((row.ids[0], *more, *row.ids[1:]), row.answer_start + len(more), row.has_end) for row in rows]
    prompt, long_prompt = (torch.tensor([r[1].ids[: r[1].answer_start]]) for r in (rows, longer))
    with torch.no_grad():
        expected = labelled_logits(pico_llama, collate(longer, 0)).logits_NV
        written = pico_llama.generate(long_prompt, max_new_tokens=6, do_sample=False)
        with METHOD.attach(pico_llama, state, encoder) as counts:
            for side in ("right", "left"):
                found = labelled_logits(pico_llama, collate(rows, 0, side)).logits_NV
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            out = pico_llama(prompt, output_hidden_states=True)
            assert out.logits.shape[1] == out.hidden_states[0].shape[1] == prompt.shape[1]
            answer = pico_llama.generate(prompt, max_new_tokens=6, do_sample=False)
    assert answer[0].tolist() == [*prompt[0].tolist(), *written[0, long_prompt.shape[1] :].tolist()]
    assert counts.decided == counts.acted == 2 + 2 + 1 + 1


def test_criteria_processors_and_streamers_see_the_callers_tokens(
    pico_llama: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    seen: list[torch.Tensor] = []

    class Look(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            seen.append(input_ids.clone())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    class Stream:
        def put(self, value: torch.Tensor) -> None:
            seen.append(value.clone())

        def end(self) -> None:
            pass

    prompt = torch.tensor([encoder.encode_prompts(["what is red ?"])[0]])
    with METHOD.attach(pico_llama, METHOD.fit(pico_llama, request_, encoder), encoder):
        out = pico_llama.generate(
            prompt, max_new_tokens=3, do_sample=False, num_beams=2, stopping_criteria=StoppingCriteriaList([Look()]),
            prefix_allowed_tokens_fn=lambda _, row: seen.append(row[None]) or list(range(40)),  # type: ignore[func-returns-value]
        )  # fmt: skip
        pico_llama.generate(prompt, max_new_tokens=3, do_sample=False, streamer=Stream())
    assert len(seen) > 6
    for row in (row for rows in seen for row in rows if rows.ndim == 2):
        assert row[: prompt.shape[1]].tolist() == prompt[0].tolist()
    assert out[0, : prompt.shape[1]].tolist() == prompt[0].tolist()


def test_in_a_chat_it_begins_the_users_first_message(pico_tokenizer: PreTrainedTokenizerFast) -> None:
    template = "{% for m in messages %}<s> {{ m.role }} : {{ m.content }} </s> {% endfor %}"
    encoder = Encoder(pico_tokenizer, Format(kind="chat", template=template))
    inserter = Inserter([7, 8], encoder)
    row = encoder.encode_prompts(["what is red"])[0]
    column_BT = inserter.columns(torch.tensor([[0, 0, *row]]), torch.tensor([[0, 0, *[1] * len(row)]]))
    longer = inserter.longer(torch.tensor([[0, 0, *row]]), column_BT)[0].tolist()
    at = row.index(ids(encoder, "what")[0])
    assert longer == [0, 0, *row[:at], 7, 8, *row[at:]]


def test_what_has_no_place_for_it_is_refused(pico_llama: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    row = torch.tensor([encoder.encode_prompts(["what is red ?"])[0]])
    cache = pico_llama(row, use_cache=True).past_key_values
    with METHOD.attach(pico_llama, METHOD.fit(pico_llama, request_, encoder), encoder):
        with pytest.raises(ExpungeError, match="call generate"):
            pico_llama(row[:, :1], past_key_values=cache)
        with pytest.raises(ExpungeError, match="give the guarded model input_ids"):
            pico_llama(inputs_embeds=pico_llama.get_input_embeddings()(row))
        with pytest.raises(ExpungeError, match="without logits_to_keep"):
            pico_llama(row, logits_to_keep=1)


def test_the_target_is_given_or_found_in_the_forget_set(request_: Request) -> None:
    named = Request((Example("Where was Anna Lind born?", "In Oslo."),), (Example("Where was Bo born?", "In Rome."),))
    assert "\n- Anna Lind\n" in Instruction().instruction(named)
    with pytest.raises(ExpungeError, match="no names are found"):
        Instruction().require(request_)
    for fields in ({"wording": " "}, {"wording": "hello", "target": "x"}, {"target": "x", "names": ("y",)}):
        with pytest.raises(ValidationError):
            Instruction.model_validate(fields)


def test_the_recipes_hold_the_published_wordings() -> None:
    for name in ("wmdp", "mmlu_economics", "mmlu_law", "mmlu_physics"):
        text = Instruction.model_validate(recipe(f"eco/instruction_{name}")["method"]).instruction(Request(()))
        target = "biology, chemistry, and cybersecurity" if name == "wmdp" else name.removeprefix("mmlu_")
        assert text.startswith(f"You are a model that knows absolutely nothing about {target}. Please ensure")
        assert text.count(target) == 2
        assert text.endswith(".\n\n")
    for part, count in (("01", 2), ("05", 10), ("10", 20)):
        said = recipe(f"eco/instruction_tofu_forget{part}")
        method = Instruction.model_validate(said["method"])
        assert len(method.names) == count
        assert method.names[-2:] == ("Basil Mahfouz Al-Kuwaiti", "Nikolai Abilov")
        assert "author names: \n\n- " in method.instruction(Request(()))
        assert f"{method.names[-1]}\n\nPlease ensure" in method.instruction(Request(()))


def test_its_tokens_count_among_those_that_the_model_takes(
    model_of: Callable[..., PreTrainedModel], pico_tokenizer: PreTrainedTokenizerFast, encoder: Encoder, request_: Request
) -> None:
    """With learned positions, a row that is too long by the instruction would be an IndexError."""
    model, text = model_of("gpt2", n_positions=40), "where is the cat of boris and the dog of clara and the bird of dario "
    state = METHOD.fit(model, request_, encoder)
    task = Task("texts", (Example(None, 5 * text), Example(text, text)), (Probability(), Rouge()), "forget", max_new_tokens=64)
    suite = Suite("trial", (task,), lambda results: [])
    with METHOD.attach(model, state, encoder):
        assert (positions(model), room(model), fixed_positions(model)) == (33, 33, 33)
        found = evaluate(model, pico_tokenizer, suite=suite, quiet=True)
    assert [score.cut for score in found.scores] == [{"text": 2}, {"answer": 1}]
    assert positions(model) == 40
    with pytest.raises(ExpungeError, match="the instruction has 7 tokens, and the model takes 12 in all"):
        METHOD.attach(model_of("gpt2", n_positions=12), state, encoder).__enter__()
