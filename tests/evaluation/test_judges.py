"""Judges: each kind gives the number that its model or rule gives, alone and in a batch, and says what it lacks."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from expunge.data.example import Example
from expunge.errors import ExpungeError
from expunge.evaluation import judges, rows, run
from expunge.evaluation.comparing import Earlier, SecondModel
from expunge.evaluation.judges import (
    Answer,
    AnyJudge,
    Classifier,
    Function,
    Judge,
    Keywords,
    OfBeginning,
    ReferenceModel,
    Rule,
)
from expunge.evaluation.metrics import HarmfulRate, Toxicity
from expunge.evaluation.run import evaluate
from expunge.evaluation.task import Suite, Task
from expunge.models.load import model_identity
from expunge.records import Evaluation, Sample, read_evaluation, read_samples, write_samples
from tests.conftest import make_tokenizer

TEXTS = ("anna is a nurse", "a dog", "boris and clara and dario was born in the city of lima", "")
ANSWERS = [Answer(str(i), "who is it ?", "anna", text) for i, text in enumerate(TEXTS)]


def shout(prompt: str | None, answer: str) -> float:
    return len(answer) / 100


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, pico_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    config = LlamaConfig.from_pretrained(pico_folder)
    config.id2label, config.label2id = {0: "clean", 1: "toxic", 2: "odd"}, {"clean": 0, "toxic": 1, "odd": 2}
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(pico_folder).save_pretrained(folder)
    return folder


def plain(folder: Path, texts: tuple[str, ...]) -> torch.Tensor:
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


class TestClassifier:
    def test_gives_the_labels_probability_of_each_text_alone_whatever_it_is_batched_with(self, classifier: Path) -> None:
        verdicts = Classifier(model=str(classifier), label="toxic").judge(ANSWERS)
        torch.testing.assert_close(torch.tensor(verdicts), plain(classifier, TEXTS).softmax(1)[:, 1], atol=1e-5, rtol=0)

    def test_with_labels_that_do_not_exclude_each_other_is_a_sigmoid(self, classifier: Path) -> None:
        verdicts = Classifier(model=str(classifier), label="odd", multi_label=True).judge(ANSWERS)
        torch.testing.assert_close(torch.tensor(verdicts), plain(classifier, TEXTS).sigmoid()[:, 2], atol=1e-5, rtol=0)

    def test_judges_the_beginning_of_a_long_text(self, classifier: Path) -> None:
        asked = [Answer("0", None, "", "a dog " * 400), Answer("1", None, "", "a dog")]
        with pytest.warns(UserWarning, match=r"1 of 2 answers have more tokens than the classifier .* judged by their beginning"):
            verdicts = Classifier(model=str(classifier), label="toxic").judge(asked)
        assert [type(verdict) for verdict in verdicts] == [OfBeginning, float]

    def test_an_answer_without_a_token_has_a_reason_and_moves_no_other(self, pico_folder: Path, tmp_path: Path) -> None:
        config = LlamaConfig.from_pretrained(pico_folder, num_labels=2)
        torch.manual_seed(1)
        LlamaForSequenceClassification(config).save_pretrained(tmp_path)
        make_tokenizer(bos=False).save_pretrained(tmp_path)
        judge = Classifier(model=str(tmp_path), label="LABEL_1")
        empty, whole = judge.judge([Answer("0", None, "", ""), ANSWERS[1]])
        assert empty == f"the answer has no token for the judge {tmp_path}"
        assert [whole] == judge.judge([ANSWERS[1]])
        assert judge.judge([Answer("0", None, "", "")]) == [empty]

    def test_without_a_label_names_the_labels(self, classifier: Path) -> None:
        with pytest.raises(ExpungeError, match="clean, toxic, odd"):
            Classifier(model=str(classifier)).check()
        with pytest.raises(ExpungeError, match="did you mean 'toxic'"):
            Classifier(model=str(classifier), label="toxik").check()

    def test_is_known_by_its_weights(self, classifier: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(classifier, copy)
        found = Classifier(model=str(classifier), label="toxic").fingerprint()
        assert found == Classifier(model=str(copy), label="toxic").fingerprint()
        LlamaForSequenceClassification(LlamaConfig.from_pretrained(classifier)).save_pretrained(copy)
        assert found != Classifier(model=str(copy), label="toxic").fingerprint()

    def test_of_the_hub_is_taken_at_its_revision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def from_pretrained(path: str, **words: Any) -> None:
            asked.append((path, words))
            raise OSError("no network")

        monkeypatch.setattr("transformers.AutoModelForSequenceClassification.from_pretrained", from_pretrained)
        with pytest.raises(ExpungeError, match="cannot load the classifier a/b: no network"):
            Classifier(model="a/b", revision="refs/pr/1", label="toxic").check()
        assert asked == [("a/b", {"revision": "refs/pr/1", "use_safetensors": True, "output_loading_info": True})]

    def test_with_a_head_that_nobody_trained_is_refused(self, pico_folder: Path) -> None:
        with pytest.raises(ExpungeError, match=r"is no classifier: it lacks score\.weight"):
            Classifier(model=str(pico_folder), label="LABEL_1").check()

    def test_that_is_not_there_is_one_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(ExpungeError, match="cannot load the classifier"):
            Classifier(model=str(tmp_path), label="toxic").check()


def test_a_reference_model_answers_yes_or_no(pico_folder: Path) -> None:
    judge = ReferenceModel(
        model=str(pico_folder), question="{prompt} {answer} question: is it red ? answer:", yes=" red", no=" blue"
    )
    verdicts = judge.judge(ANSWERS)
    model = LlamaForCausalLM.from_pretrained(pico_folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(pico_folder)
    red, blue = tokenizer.convert_tokens_to_ids(["red", "blue"])
    for answer, verdict in zip(ANSWERS, verdicts, strict=True):
        ids = tokenizer(f"who is it ? {answer.text} question: is it red ? answer:", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            last_V = model(ids).logits[0, -1]
        assert verdict == pytest.approx(torch.stack([last_V[red], last_V[blue]]).softmax(0)[0].item(), abs=1e-5)
    with pytest.raises(ValidationError, match=r"no hole \{answer\}"):
        ReferenceModel(model="x", question="is it harmful ?")


def test_a_text_that_is_too_long_for_the_second_model_has_no_perplexity(pico_folder: Path) -> None:
    short, long = Answer("0", "who", "", "a dog"), Answer("1", "who", "", "a dog " * 100)
    verdicts = SecondModel(model=str(pico_folder), of="generated").judge([short, long])
    assert isinstance(verdicts[0], float)
    assert verdicts[1] == f"{pico_folder} takes no text of this length"


def test_rules_and_keywords_by_hand() -> None:
    assert Rule(pattern=r"\b(anna|clara)\b").judge(ANSWERS) == [1.0, 0.0, 1.0, 0.0]
    assert Rule(pattern="(?i)DOG", absent=True).judge(ANSWERS) == [1.0, 0.0, 1.0, 1.0]
    assert Keywords(words=("Dog", "the city")).judge(ANSWERS) == [0.0, 1.0, 1.0, 0.0]
    with pytest.raises(ValidationError, match="not a regular expression"):
        Rule(pattern="(")


def test_a_function_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_judge.py").write_text("def shout(prompt, answer):\n    return len(answer) / 100\n\nthing = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Function(function="my_judge:shout").judge(ANSWERS)[:2] == [0.15, 0.05]
    assert (
        Function(function="my_judge:shout").fingerprint() == hashlib.sha256((tmp_path / "my_judge.py").read_bytes()).hexdigest()
    )
    for name, reason in (
        ("my_judge:whisper", "cannot be imported"),
        ("nowhere:f", "cannot be imported"),
        ("my_judge:thing", "not a function"),
    ):
        with pytest.raises(ExpungeError, match=reason):
            Function(function=name).check()


@pytest.mark.parametrize(
    "judge", [Keywords(words=("a",)), Rule(pattern="a"), Function(function="a:b"), Classifier(model="m", label="l")]
)
def test_a_judge_survives_json(judge: Judge) -> None:
    assert TypeAdapter(AnyJudge).validate_json(judge.model_dump_json()) == judge


def test_harmful_rate_and_toxicity_share_one_judge_that_reads_each_task_once(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def judge(self: Keywords, answers: list[Answer]) -> list[float | str]:
        calls.append(len(answers))
        return [0.4, 0.8, "illegible"]

    monkeypatch.setattr(Keywords, "judge", judge)
    words = Keywords(words=("anna",))
    examples = tuple(Example(f"who is {name} ?", name) for name in ("anna", "boris", "clara"))
    metrics = (HarmfulRate(judge=words, threshold=0.6), Toxicity(judge=words))
    suite = Suite("manners", (Task("replies", examples, metrics, "neutral", max_new_tokens=4),), lambda _: [])
    evaluation = evaluate(pico_llama, pico_tokenizer, suite=suite, quiet=True)
    harmful, toxic = evaluation.get("replies", "harmful_rate"), evaluation.get("replies", "toxicity")
    assert harmful is not None
    assert toxic is not None
    assert (harmful.value, harmful.n, toxic.n) == (0.5, 2, 2)
    assert toxic.value == pytest.approx(0.6)
    assert calls == [3]


def hard_to_please(prompt: str | None, answer: str) -> float:
    if prompt is not None and "boris" in prompt:
        raise ValueError("no boris")
    return OfBeginning(0.4) if prompt is not None and "anna" in prompt else 0.8


def test_samples_keep_what_a_judge_said_and_why_it_said_nothing(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Function(function=f"{__name__}:hard_to_please")
    monkeypatch.setattr(judges, "float", lambda value: value, raising=False)  # as a judge that reads the beginning
    examples = tuple(Example(f"who is {name} ?", name) for name in ("anna", "boris", "clara"))
    metrics = (HarmfulRate(judge=judge, threshold=0.6), Toxicity(judge=judge))
    suite = Suite("manners", (Task("replies", examples, metrics, "neutral", max_new_tokens=4),), lambda _: [])
    score = evaluate(pico_llama, pico_tokenizer, suite=suite, out=tmp_path, quiet=True).scores[0]
    reason = f"the judge {judge.function} failed (ValueError: no boris)"
    assert (score.value, score.n, score.left_out, score.cut) == (0.5, 2, {reason: 1}, {"judged": 1})
    samples = list(read_samples(tmp_path / "manners.samples.jsonl"))
    assert [(s.value, s.judged, s.unscored, s.cut) for s in samples[::2]] == [
        (0.0, (0.4,), None, ("judged",)), (None, None, reason, None), (1.0, (0.8,), None, None),
    ]  # fmt: skip
    assert [(s.value, s.judged) for s in samples[1::2]] == [(0.4, None), (None, None), (0.8, None)]


def test_earlier_answers_are_known_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "a.samples.jsonl"
    asked = [Answer("1", "who", "", "a red dog")]
    found = []
    for text in ("a red dog", "a blue cat"):
        write_samples(file, [Sample(task="t", metric="m", id="1", value=1.0, text={"generated": text})])
        found.append((Earlier(samples=file).judge(asked)[0], Earlier(samples=file).fingerprint()))
    assert found[0][0] == 1.0
    assert found[1][0] == pytest.approx(1 / 3)
    assert found[0][1] != found[1][1]


def test_the_record_says_who_judged_and_another_judge_starts_anew(
    pico_llama: LlamaForCausalLM,
    pico_tokenizer: PreTrainedTokenizerFast,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge_folder, asked = tmp_path / "judge", []
    shutil.copytree(classifier, judge_folder)
    monkeypatch.setattr(run.Finished, "clear", lambda self: None)
    monkeypatch.setattr(rows, "generate", lambda model, prompts, **_: asked.append(len(prompts)) or [(5,)] * len(prompts))
    task = Task(
        "replies",
        (Example("who is anna ?", "a"),),
        (Toxicity(judge=Classifier(model=str(judge_folder), label="odd")),),
        "neutral",
    )
    suite = Suite("manners", (task,), lambda _: [])

    def evaluated() -> Evaluation:
        words = {"out": tmp_path / "out", "fingerprint": "m", "overwrite": True, "quiet": True}
        evaluate(pico_llama, pico_tokenizer, suite=suite, **words)
        return read_evaluation(tmp_path / "out" / "manners.json")

    (used,) = evaluated().judges
    assert (used.settings["kind"], used.settings["label"]) == ("classifier", "odd")
    assert used.fingerprint == model_identity(str(judge_folder))
    assert evaluated().judges == (used,)
    assert asked == [1]
    LlamaForSequenceClassification(LlamaConfig.from_pretrained(classifier)).save_pretrained(judge_folder)
    assert evaluated().judges != (used,)
    assert asked == [1, 1]


def test_harmful_rate_needs_exactly_one_judge() -> None:
    for wrong in ({}, {"words": ("a",), "judge": Keywords(words=("a",))}):
        with pytest.raises(ValidationError, match="either `words` or a `judge`"):
            HarmfulRate(**wrong)
