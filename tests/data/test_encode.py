"""Which tokens a model sees and which of them are labels, with word-level, byte-level BPE and SentencePiece-like vocabularies."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AddedToken, AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from expunge.data.encode import IGNORED, Encoded, Encoder, Tokens, collate, length_batches
from expunge.data.example import Example
from expunge.data.format import Format, default_format, save_format  # fmt: skip
from expunge.errors import ExpungeError

LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- for m in messages %}{{- '<|head|>' + m['role'] + '<|/head|>\n\n' + (m['content'] | trim) + '<|eot|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\n\n' }}{%- endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
BARE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
MARKS = ["<|head|>", "<|/head|>", "<|eot|>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(*, eos: str = "<|end|>", pad: str | None = None, trim: bool = False) -> PreTrainedTokenizerFast:
    """Bytes with a few merges, so that ' P', ' Pa', ... ' Paris' join the space to the word as GPT-2 does."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges, word = [], "Ġ"
    for letter in "Paris":
        merges.append((word, letter))
        word += letter
        vocabulary[word] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token="<|begin|>", pad_token=pad)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    return tokenizer


@pytest.fixture(scope="module")
def gpt2(data_root: Path) -> GPT2TokenizerFast:
    folder = data_root / "gpt2_tokenizer"
    return GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.fixture(scope="module")
def stories(data_root: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(data_root / "stories260k")


def answer(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> str:
    return tokenizer.decode(row.ids[row.answer_start :])


def pieces(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(row.ids[row.answer_start :]))


class TestPlain:
    def test_the_text_is_the_template_with_the_start_token_once_and_the_end_token(self, pico_tokenizer):
        row = Encoder(pico_tokenizer, Format()).encode_answer("where is anna", "paris .")
        # This vocabulary knows `question:` in lower case only.
        assert " ".join(pico_tokenizer.convert_ids_to_tokens(list(row.ids))) == "<s> <unk> where is anna <unk> paris . </s>"
        assert row == Encoded(row.ids, 6, True, False)

    @pytest.mark.parametrize("trim", [False, True])
    def test_a_token_that_straddles_the_boundary_belongs_to_the_answer(self, trim: bool):
        tokenizer = byte_tokenizer(trim=trim)
        row = Encoder(tokenizer, Format()).encode_answer("Where?", "Paris")
        assert pieces(tokenizer, row) == ["ĠParis", "<|end|>"]
        assert tokenizer.decode(row.ids[: row.answer_start]) == "Question: Where?\nAnswer:"

    def test_the_tokens_are_those_of_the_whole_text(self, gpt2, stories):
        for tokenizer in (gpt2, stories):
            row = Encoder(tokenizer, Format()).encode_answer("Who?", "Anna, née Müller")
            whole = tokenizer("Question: Who?\nAnswer: Anna, née Müller").input_ids
            assert list(row.ids) == [*whole, tokenizer.eos_token_id]

    def test_one_token_answers_survive(self, gpt2, pico_tokenizer):
        assert pieces(gpt2, Encoder(gpt2, Format()).encode_answer("Where?", "Paris")) == ["ĠParis", "<|endoftext|>"]
        assert pieces(pico_tokenizer, Encoder(pico_tokenizer, Format()).encode_answer("where", "paris")) == ["paris", "</s>"]

    def test_sentencepiece_labels_start_at_the_answers_first_letter(self, stories):
        row = Encoder(stories, Format()).encode_answer("Who was there?", "Lily")
        assert row.ids[0] == stories.bos_token_id
        assert row.ids.count(stories.bos_token_id) == 1
        assert pieces(stories, row) == ["▁Lily", "</s>"]

    @pytest.mark.parametrize("response", ["日本", "é", "日", "😀!", "naïve 日本"])
    def test_characters_of_several_byte_tokens_are_labelled_whole(self, gpt2, stories, response: str):
        for tokenizer in (gpt2, stories):
            row = Encoder(tokenizer, Format()).encode_answer("Who?", response)
            assert tokenizer.decode(row.ids[row.answer_start : -1]).strip() == response

    def test_an_answer_that_repeats_the_prompt_is_found_at_its_own_place(self, gpt2):
        row = Encoder(gpt2, Format()).encode_answer("Answer: Paris", "Paris")
        assert pieces(gpt2, row) == ["ĠParis", "<|endoftext|>"]

    def test_braces_in_prompts_and_answers_are_text(self, gpt2):
        row = Encoder(gpt2, Format()).encode_answer("what is {response}?", "{prompt} {0}")
        assert gpt2.decode(row.ids) == "Question: what is {response}?\nAnswer: {prompt} {0}<|endoftext|>"

    def test_every_tofu_answer_is_labelled_to_the_letter(self, data_root, gpt2, stories):
        lines = (data_root / "tofu" / "forget10.jsonl").read_text(encoding="utf-8").splitlines()[:200]
        examples = [Example(row["question"], row["answer"]) for row in map(json.loads, lines)]
        for tokenizer in (gpt2, stories):
            for example, row in zip(examples, Encoder(tokenizer, Format()).encode_many(examples), strict=True):
                labelled = tokenizer.decode(row.ids[row.answer_start : -1], clean_up_tokenization_spaces=False)
                assert labelled.strip() == example.response.strip()

    @given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
    @settings(deadline=None, max_examples=60)
    def test_prompt_and_labels_together_are_the_text_whatever_it_is(self, prompt: str, response: str):
        tokenizer = byte_tokenizer()
        row = Encoder(tokenizer, Format()).encode_answer(prompt, response)
        assert tokenizer.decode(row.ids[:-1]) == f"Question: {prompt}\nAnswer: {response}"
        assert tokenizer.decode(row.ids[row.answer_start : -1]) == f" {response}"

    def test_the_prompt_to_generate_from_is_the_prompt_of_a_labelled_row(self, gpt2, pico_tokenizer):
        for tokenizer in (gpt2, pico_tokenizer):
            encoder = Encoder(tokenizer, Format())
            row = encoder.encode_answer("where is anna", "paris")
            assert encoder.encode_prompts(["where is anna"])[0] == row.ids[: row.answer_start]

    @pytest.mark.parametrize(
        "template", ["{response}", "{prompt}{prompt}{response}", "{response} {prompt}", "{prompt} {response}."]
    )
    def test_a_template_without_both_holes_in_place_is_refused(self, template: str):
        with pytest.raises(ValueError, match="at its very end"):
            Format(template=template)


class TestRawText:
    def test_all_of_it_is_labelled_after_the_start_token_and_nothing_is_added(self, stories):
        row = Encoder(stories, Format()).encode(Example(None, "Once upon a time"))
        assert list(row.ids) == stories("Once upon a time").input_ids
        assert row == Encoded(row.ids, 1, False, False)

    def test_without_a_start_token_the_first_token_has_nothing_to_be_predicted_from(self, gpt2):
        row = Encoder(gpt2, Format()).encode(Example(None, "Once upon a time"))
        assert list(row.ids) == gpt2("Once upon a time").input_ids
        assert row.answer_start == 1

    def test_a_chat_format_leaves_raw_text_alone(self):
        tokenizer = byte_tokenizer()
        row = Encoder(tokenizer, Format(kind="chat", template=CHATML)).encode(Example(None, "Paris."))
        assert tokenizer.decode(row.ids) == "Paris."

    def test_a_text_of_one_token_without_start_token_is_refused(self, gpt2):
        example = Example(None, "A")
        with pytest.raises(ExpungeError, match=f"example {example.id} has nothing to predict"):
            Encoder(gpt2, Format()).encode(example)


class TestChat:
    @pytest.mark.parametrize(
        ("template", "end"), [(LLAMA3, "<|eot|>"), (CHATML, "<|im_end|>"), (LLAMA2, "<|end|>"), (BARE, "<|end|>")]
    )
    def test_the_answer_and_its_end_of_turn_are_labelled_and_nothing_after(self, template: str, end: str):
        tokenizer = byte_tokenizer()
        encoder = Encoder(tokenizer, Format(kind="chat", template=template))
        row = encoder.encode_answer("Where?", "Rome")
        assert (
            answer(tokenizer, row).split() == ["Rome", end]
            if template is LLAMA2
            else answer(tokenizer, row).strip() == f"Rome{end}"
        )
        assert encoder.end_id == row.ids[-1] == tokenizer.convert_tokens_to_ids(end)
        assert row.has_end

    def test_the_prompt_is_what_the_template_itself_makes_for_generation(self):
        tokenizer = byte_tokenizer()
        for template in (LLAMA3, CHATML):
            encoder = Encoder(tokenizer, Format(kind="chat", template=template, system="Be brief."))
            chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
            text = tokenizer.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=True, tokenize=False, date_string="1 Jan 2025"
            )  # fmt: skip
            expected = tokenizer(text, add_special_tokens=False).input_ids
            row = encoder.encode_answer("Where?", "Rome")
            assert list(row.ids[: row.answer_start]) == list(encoder.encode_prompts(["Where?"])[0]) == expected

    def test_the_start_token_comes_once(self):
        tokenizer = byte_tokenizer()
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
        )
        assert Encoder(tokenizer, Format()).encode_answer("Where?", "Rome").ids.count(tokenizer.bos_token_id) == 1
        row = Encoder(tokenizer, Format(kind="chat", template=LLAMA3)).encode_answer("Where?", "Rome")
        assert row.ids.count(tokenizer.bos_token_id) == 1
        assert row.ids[0] == tokenizer.bos_token_id

    @pytest.mark.parametrize("response", ["e", "assistant", "Where?", "<", "eot"])
    def test_an_answer_that_also_occurs_in_the_template_is_found_at_its_own_place(self, response: str):
        tokenizer = byte_tokenizer()
        row = Encoder(tokenizer, Format(kind="chat", template=LLAMA3)).encode_answer("Where?", response)
        assert answer(tokenizer, row) == f"{response}<|eot|>"

    def test_a_template_that_trims_answers_is_followed(self):
        tokenizer = byte_tokenizer()
        row = Encoder(tokenizer, Format(kind="chat", template=LLAMA3)).encode_answer("Where?", " Rome ")
        assert answer(tokenizer, row) == "Rome<|eot|>"

    def test_text_that_a_template_puts_before_every_answer_is_prompt(self):
        tokenizer = byte_tokenizer()
        template = CHATML.replace("m['content']", "('<think></think>' if m['role'] == 'assistant' else '') + m['content']")
        encoder = Encoder(tokenizer, Format(kind="chat", template=template))
        row = encoder.encode_answer("Where?", "Rome")
        assert answer(tokenizer, row) == "Rome<|im_end|>"
        assert tokenizer.decode(encoder.encode_prompts(["Where?"])[0]).endswith("<think></think>")

    @pytest.mark.parametrize("response", ["Rome", " Rome", "\n Rome", "Rome ", " Rome \n"])
    @pytest.mark.parametrize("gap", ["\n", " ", "\n ", ""])
    @pytest.mark.parametrize("special", [True, False])
    def test_tokens_that_swallow_blanks_are_never_labels(self, response: str, gap: str, special: bool):
        """As Phi-3's: `<|assistant|>` takes the blanks behind it along, `<|stop|>` those on both sides."""
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([AddedToken("<|assistant|>", rstrip=True, special=special)], special_tokens=special)
        tokenizer.add_tokens([AddedToken("<|stop|>", lstrip=True, rstrip=True, special=True)], special_tokens=True)
        template = (
            f"{{% for m in messages %}}{{{{ '<|' + m['role'] + '|>{gap}' + m['content'] + '<|stop|>' + '\n' }}}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ '<|assistant|>{gap}' }}}}{{% endif %}}"
        )
        encoder = Encoder(tokenizer, Format(kind="chat", template=template))
        row = encoder.encode_answer("Where?", response)
        assert answer(tokenizer, row) == "Rome<|stop|>"
        assert row.ids[row.answer_start - 1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
        assert row.ids[: row.answer_start] == encoder.encode_prompts(["Where?"])[0]
        assert encoder.end_id == row.ids[-1] == tokenizer.convert_tokens_to_ids("<|stop|>")

    def test_an_added_token_inside_an_answer_is_a_label(self):
        tokenizer = byte_tokenizer()
        row = Encoder(tokenizer, Format(kind="chat", template=CHATML)).encode_answer("Where?", "<|head|>Rome<|eot|>")
        assert answer(tokenizer, row) == "<|head|>Rome<|eot|><|im_end|>"

    def test_sentencepiece_chat_with_byte_fallback(self, data_root):
        tokenizer = AutoTokenizer.from_pretrained(data_root / "stories260k")
        tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
        row = Encoder(tokenizer, Format(kind="chat", template=LLAMA3)).encode_answer("Who?", "日本")
        assert tokenizer.decode(row.ids[row.answer_start : -1]).strip() == "日本"
        assert row.ids[-1] == tokenizer.convert_tokens_to_ids("<|eot|>")

    @pytest.mark.parametrize("call", ["strftime_now('%d %B %Y')", 'strftime_now( "%d %B %Y" )'])
    def test_a_template_that_asks_for_today_gets_the_frozen_date(self, call: str):
        tokenizer = byte_tokenizer()
        format = Format(kind="chat", template="Today: {{ " + call + " }}\n" + CHATML, date="3 Feb 2024")
        row = Encoder(tokenizer, format).encode_answer("Where?", "Rome")
        assert tokenizer.decode(row.ids).startswith("Today: 03 February 2024\n<|im_start|>")

    def test_a_template_with_a_date_string_gets_the_frozen_date(self):
        tokenizer = byte_tokenizer()
        template = LLAMA3.replace("'<|head|>' + m['role']", "date_string + '<|head|>' + m['role']")
        row = Encoder(tokenizer, Format(kind="chat", template=template, date="3 Feb 2024")).encode_answer("Where?", "Rome")
        assert tokenizer.decode(row.ids).startswith("<|begin|>3 Feb 2024<|head|>user")

    def test_a_date_form_that_cannot_be_frozen_is_refused(self):
        template = "{% set form = '%Y' %}{{ strftime_now(form) }}" + CHATML
        with pytest.raises(ExpungeError, match="today's date in a computed form"):
            Encoder(byte_tokenizer(), Format(kind="chat", template=template))

    def test_the_frozen_template_is_used_and_not_the_tokenizers(self):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = LLAMA2
        row = Encoder(tokenizer, Format(kind="chat", template=CHATML)).encode_answer("Where?", "Rome")
        assert tokenizer.decode(row.ids).startswith("<|im_start|>user\nWhere?<|im_end|>")

    def test_a_template_without_system_messages_is_an_error_before_any_row(self):
        template = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
        )
        with pytest.raises(ExpungeError, match="System role not supported"):
            Encoder(byte_tokenizer(), Format(kind="chat", template=template, system="Be brief."))

    def test_a_template_that_drops_or_rewrites_the_answer_is_refused(self):
        with pytest.raises(ExpungeError, match="assistant's message 0 times"):
            Encoder(byte_tokenizer(), Format(kind="chat", template="{{ messages[0]['content'] }}"))
        shortens = CHATML + "{{ messages[-1]['content'] | length }}"
        with pytest.raises(ExpungeError, match="changes with the assistant's message"):
            Encoder(byte_tokenizer(), Format(kind="chat", template=shortens))

    @pytest.mark.parametrize("how", ["upper", "e", "tojson"])
    def test_a_template_that_writes_other_words_than_the_answers_is_refused(self, how: str):
        template = CHATML.replace("m['content']", f"(m['content'] | {how})")
        assert template != CHATML
        with pytest.raises(ExpungeError, match="rewrites the assistant's message"):
            Encoder(byte_tokenizer(), Format(kind="chat", template=template)).encode(Example("Where?", 'in "Paris" & <b>'))

    @pytest.mark.parametrize("cut", ["m['content'][:4]", "m['content'].split('?')[0]", "m['content'] | replace('the', '')"])
    def test_a_template_that_cuts_or_rewrites_a_question_or_an_answer_is_refused(self, cut: str):
        for role, message in (("user", "leaves the user's message out or"), ("assistant", "the chat template")):
            template = CHATML.replace("m['content']", f"(({cut}) if m['role'] == '{role}' else m['content'])")
            encoder = Encoder(byte_tokenizer(), Format(kind="chat", template=template))
            with pytest.raises(ExpungeError, match=f"{message} rewrites"):
                encoder.encode_answer("Where is the house?", "Where is the house? In Rome")

    @pytest.mark.parametrize("thoughts", ["<think>Rome?</think>\n\n", "<seed:think>a</seed:think>", "[THINK]a[/THINK] ", ""])
    def test_a_template_may_leave_out_the_thoughts_before_an_answer(self, thoughts: str):
        kept = "m['content'].split('think>')[-1].split('[/THINK]')[-1] | trim"
        encoder = Encoder(byte_tokenizer(), Format(kind="chat", template=CHATML.replace("m['content']", kept)))
        row = encoder.encode_answer("Where?", f"{thoughts}Rome")
        assert answer(encoder.tokenizer, row) == "Rome<|im_end|>"

    def test_a_template_that_leaves_the_question_out_is_refused(self):
        template = CHATML.replace("m in messages", "m in messages[1:]")
        assert template != CHATML
        with pytest.raises(ExpungeError, match="leaves the user's message out"):
            Encoder(byte_tokenizer(), Format(kind="chat", template=template))


class TestMasks:
    def test_a_pad_that_is_the_end_of_turn_hides_no_real_one(self):
        tokenizer = byte_tokenizer(eos="<|eot|>", pad="<|eot|>")
        encoder = Encoder(tokenizer, Format(kind="chat", template=LLAMA3))
        assert encoder.pad_id == encoder.end_id
        rows = encoder.encode_many([Example("Where?", "Paris"), Example("Where is it?", "Paris, since long ago")])
        for side in ("right", "left"):
            tokens = collate(rows, encoder.pad_id, side)
            assert tokens.attention_mask_BT.sum(1).tolist() == [len(r.ids) for r in rows]
            # The end of the user's turn is seen, and the end of the answer is learned.
            assert ((tokens.input_ids_BT == encoder.end_id) & (tokens.attention_mask_BT == 1)).sum(1).tolist() == [2, 2]
            assert (tokens.labels_BT == encoder.end_id).sum(1).tolist() == [1, 1]

    def test_without_a_pad_token_the_end_token_pads(self, gpt2):
        encoder = Encoder(gpt2, Format())
        assert gpt2.pad_token_id is None
        assert encoder.pad_id == gpt2.eos_token_id

    ROWS = st.lists(
        st.tuples(st.lists(st.integers(0, 5), min_size=2, max_size=9), st.integers(1, 8)).map(
            lambda r: Encoded(tuple(r[0]), min(r[1], len(r[0]) - 1), True)
        ),
        min_size=1, max_size=5,
    )  # fmt: skip

    @given(ROWS, st.integers(0, 5), st.sampled_from(["right", "left"]))
    @settings(deadline=None)
    def test_any_pad_id_on_either_side_gives_back_the_rows(self, rows: list[Encoded], pad: int, side: str):
        tokens = collate(rows, pad, side)
        width = max(len(r.ids) for r in rows)
        assert tokens.input_ids_BT.shape == tokens.attention_mask_BT.shape == tokens.labels_BT.shape == (len(rows), width)
        for b, row in enumerate(rows):
            real = tokens.attention_mask_BT[b].bool()
            assert tokens.input_ids_BT[b][real].tolist() == list(row.ids)
            assert tokens.labels_BT[b][real].tolist() == [IGNORED] * row.answer_start + list(row.ids[row.answer_start :])
            assert (tokens.labels_BT[b][~real] == IGNORED).all()
            assert (tokens.input_ids_BT[b][~real] == pad).all()
            assert real.tolist() == sorted(real.tolist(), reverse=side == "right")

    def test_a_batch_moves_with_its_frozen_quantities(self):
        tokens = collate([Encoded((1, 2, 3), 1, True)], 0)
        moved = Tokens(tokens.input_ids_BT, tokens.attention_mask_BT, tokens.labels_BT, {"logp": torch.zeros(1)}).to("meta")
        assert {t.device.type for t in (moved.input_ids_BT, moved.attention_mask_BT, moved.labels_BT, moved.frozen["logp"])} == {
            "meta"
        }


class TestLength:
    @pytest.mark.parametrize("format", [Format(), Format(kind="chat", template=CHATML)])
    def test_a_long_row_loses_the_end_of_its_answer_and_says_so(self, format: Format):
        tokenizer = byte_tokenizer()
        whole = Encoder(tokenizer, format).encode_answer("Where?", "Rome, " * 20)
        cut = Encoder(tokenizer, format, max_length=80).encode_answer("Where?", "Rome, " * 20)
        assert cut == Encoded(whole.ids[:80], whole.answer_start, False, True)
        assert Encoder(tokenizer, format, max_length=len(whole.ids)).encode_answer("Where?", "Rome, " * 20) == whole

    def test_long_raw_text_is_cut_too(self, gpt2):
        row = Encoder(gpt2, Format(), max_length=5).encode(Example(None, "one two three four five six seven"))
        assert (len(row.ids), row.has_end, row.truncated) == (5, False, True)

    def test_a_prompt_that_leaves_no_room_is_an_error_with_its_length(self, gpt2):
        example = Example("very " * 50, "Paris", ("Paris", "Rome"), 0)
        with pytest.raises(ExpungeError, match=rf"example {example.id} has 5\d tokens.*max_length 20"):
            Encoder(gpt2, Format(), max_length=20).encode_many([Example("a", "b"), example])

    @given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120), st.integers(1, 9))
    def test_length_batches_hold_each_row_once_within_their_limits(self, lengths: list[int], max_tokens: int, max_rows: int):
        batches = length_batches(lengths, max_tokens, max_rows)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        in_order = [lengths[row] for batch in batches for row in batch]
        assert in_order == sorted(lengths, reverse=True)
        for batch in batches:
            assert len(batch) == 1 or (len(batch) <= max_rows and len(batch) * max(lengths[r] for r in batch) <= max_tokens)

    def test_length_batches_are_filled(self):
        assert length_batches([3, 9, 3, 3, 8], max_tokens=18, max_rows=3) == [[1, 4], [0, 2, 3]]


class TestEncoder:
    def test_many_rows_at_once_are_the_rows_one_by_one(self, data_root, stories):
        lines = (data_root / "tofu" / "forget01.jsonl").read_text(encoding="utf-8").splitlines()
        examples = [Example(row["question"], row["answer"]) for row in map(json.loads, lines)] + [
            Example(None, "Once upon a time")
        ]
        encoder = Encoder(stories, Format())
        assert encoder.encode_many(examples) == [encoder.encode(e) for e in examples]
        assert encoder.encode_many([]) == []

    def test_every_answer_of_tofu_is_labelled_from_where_generation_starts(self, data_root, stories, gpt2):
        """Else an answer that is known by heart, token by token, is not what greedy decoding writes."""
        lines = (data_root / "tofu" / "forget10.jsonl").read_text(encoding="utf-8").splitlines()
        examples = [Example(row["question"], row["answer"]) for row in map(json.loads, lines)]
        for tokenizer in (stories, gpt2):
            encoder = Encoder(tokenizer, Format(), max_length=2000)
            prompts = encoder.encode_prompts([e.prompt for e in examples])
            assert [row.ids[: row.answer_start] for row in encoder.encode_many(examples)] == prompts

    def test_a_response_of_no_tokens_is_refused(self):
        tokenizer = byte_tokenizer()
        encoder = Encoder(tokenizer, Format())
        with pytest.raises(ExpungeError, match="has nothing to predict"):
            encoder.encode_answer("Where?", "")

    def test_tokenizers_without_offsets_or_end_are_refused(self):
        tokenizer = byte_tokenizer()
        tokenizer.eos_token = None
        with pytest.raises(ExpungeError, match="no end token"):
            Encoder(tokenizer, Format())
        from transformers import ByT5Tokenizer

        with pytest.raises(ExpungeError, match="no character offsets"):
            Encoder(ByT5Tokenizer(), Format())


class TestFormat:
    def test_a_saved_format_is_found_beside_the_tokenizer_and_wins(self, tmp_path):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = CHATML
        tokenizer.save_pretrained(tmp_path)
        assert default_format(AutoTokenizer.from_pretrained(tmp_path)) == Format(kind="chat", template=CHATML)
        mine = Format(template="Q: {prompt}\nA: {response}")
        save_format(tmp_path, mine)
        assert default_format(AutoTokenizer.from_pretrained(tmp_path)) == mine

    def test_without_either_it_is_plain(self, pico_tokenizer):
        assert default_format(pico_tokenizer) == Format(kind="plain", template="Question: {prompt}\nAnswer: {response}")

    def test_a_broken_format_file_is_named(self, tmp_path, pico_tokenizer):
        pico_tokenizer.save_pretrained(tmp_path)
        (tmp_path / "expunge_format.json").write_text('{"kind": "plain", "template": "no holes"}')
        with pytest.raises(ExpungeError, match=r"expunge_format\.json is not a format"):
            default_format(AutoTokenizer.from_pretrained(tmp_path))

    @pytest.mark.parametrize("bad", [{"date": "2025-01-01"}, {"system": "Be brief."}])
    def test_what_a_format_cannot_do_is_refused(self, bad: dict[str, str]):
        with pytest.raises(ValueError, match=r"date|system"):
            Format(**bad)


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_can_be_on_the_tokens_that_the_prompt_contains_or_on_the_others(side: Literal["right", "left"]) -> None:
    row = Encoded((1, 5, 6, 6, 20, 5, 20, 2), 3, True)  # 6 and 5 stand in the prompt, 20 only in the answer
    longer = Encoded((1, 9, 30, 31, 32, 33, 34, 35, 36, 2), 2, True)
    for part, labels in (("all", [6, 20, 5, 20, 2]), ("own", [20, 20, 2]), ("copied", [6, 5])):
        labels_BT = collate([row.labelled(part), longer.labelled(part)], 0, side).labels_BT  # type: ignore[arg-type]
        assert [y for y in labels_BT[0].tolist() if y != IGNORED] == labels
        assert torch.equal(labels_BT[1], collate([longer], 0).labels_BT[0])


def test_an_answer_that_only_repeats_its_prompt_has_one_part() -> None:
    row = Encoded((1, 5, 6, 6, 5, 2), 3, True)
    assert row.labelled("own") == row.labelled("copied") == row
