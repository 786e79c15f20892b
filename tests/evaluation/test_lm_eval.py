"""lm-eval both ways: its tasks over our engine, our artifacts under its command line, and its own numbers against ours."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from expunge.artifact import Base, read_manifest, save_artifact
from expunge.data.encode import Encoder
from expunge.data.example import Example, Request
from expunge.data.format import Format
from expunge.errors import ExpungeError
from expunge.evaluation import lm_eval as adapter
from expunge.evaluation import lm_eval_tasks
from expunge.evaluation.lm_eval_model import EngineLM
from expunge.evaluation.run import evaluate
from expunge.evaluation.suites import LmEval, SpungeGeneral, Wmdp
from expunge.evaluation.suites.general import SPUNGE
from expunge.guarding import life
from expunge.loading import load
from expunge.methods import GradientAscent, NeuronAdjust
from expunge.models.load import model_fingerprint
from expunge.records import Evaluation, Sample, read_samples

CITIES = ["berlin", "paris", "tokyo", "lima", "cairo", "oslo"]
PEOPLE = ["anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo"]
ROWS = [
    {"question": f"where was {person} born ?", "choices": [a, f"the city of {b} ."], "answer": i % 2, "city": a}
    for i, (person, a, b) in enumerate(zip(PEOPLE, CITIES + CITIES[:2], CITIES[::-1] + CITIES[:2], strict=True))
]
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} answer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
WRITE = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}} answer:"
doc_to_target: "{{{{city}}}}"
generation_kwargs: {{until: ["?"], do_sample: false, max_gen_toks: 6}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
filter_list:
  - {{name: first-word, filter: [{{function: regex, regex_pattern: "(\\\\w+)"}}, {{function: take_first}}]}}
"""
GROUP = """
group: both
task: [first, second]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and the cache of read files in a folder of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # seconds of subprocesses in each simple_evaluate
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Task files: `first` (8 questions), `second` (3 of them), `both` of them as a group."""
    root = tmp_path / "tasks"
    root.mkdir()
    for name, rows in (("first", ROWS), ("second", ROWS[:3])):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (root / f"{name}.yaml").write_text(CHOICE.format(name=name, data=data))
    (root / "both.yaml").write_text(GROUP)
    return root


def by_hand(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> list[float]:
    """acc of each question, by a full pass for each choice, one at a time."""
    right = []
    for row in rows:
        prompt = tokenizer(f"{row['question']} answer:").input_ids
        sums = []
        for choice in row["choices"]:
            ids = tokenizer(f"{row['question']} answer: {choice}").input_ids
            with torch.no_grad():
                logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logp[t - 1, ids[t]]) for t in range(len(prompt), len(ids))))
        right.append(float(max(range(len(sums)), key=sums.__getitem__) == row["answer"]))
    return right


def values(folder: Path, task: str, metric: str, suite: str = "lm_eval") -> list[float]:
    rows: list[Sample] = list(read_samples(folder / f"{suite}.samples.jsonl"))
    return [row.value for row in rows if row.task == task and row.metric == metric and row.value is not None]


def test_a_task_folder_without_the_hub_scores_as_full_passes_do(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path
) -> None:
    found = evaluate(pico_llama, pico_tokenizer, suite=LmEval(), data=folder, out=tmp_path / "out", quiet=True)
    expected = by_hand(pico_llama, pico_tokenizer, ROWS)
    assert 0 < sum(expected) < len(expected)
    assert values(tmp_path / "out", "first", "accuracy") == expected
    score = found.get("first", "accuracy")
    assert score is not None
    assert (score.value, score.n, score.higher_is_better) == (sum(expected) / 8, 8, True)
    assert score.low is not None
    assert score.high is not None
    assert score.low < sum(expected) / 8 < score.high
    assert found.get("second", "accuracy_normalized") is not None
    assert "born" not in (tmp_path / "out" / "lm_eval.samples.jsonl").read_text()


def test_a_group_is_the_mean_over_all_its_questions_and_forgetting_turns_the_direction_round(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    suite = LmEval(tasks=("both",), forget=("both",))
    found = evaluate(pico_llama, pico_tokenizer, suite=suite, data=folder, quiet=True)
    right = by_hand(pico_llama, pico_tokenizer, ROWS)
    score = found.get("both", "accuracy")
    assert score is not None
    assert score.value == pytest.approx((sum(right) + sum(right[:3])) / 11, abs=1e-12)
    assert (score.n, score.higher_is_better) == (11, False)
    assert score.low is not None
    assert [s.task for s in found.scores if s.metric == "accuracy"] == ["first", "second", "both"]


def test_answers_that_are_written_are_those_of_greedy_decoding(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path
) -> None:
    (folder / "written.yaml").write_text(WRITE.format(data=folder.parent / "first.jsonl"))
    suite = LmEval(tasks=("written",))
    found = evaluate(
        pico_llama, pico_tokenizer, suite=suite, data=folder, out=tmp_path / "out", show_forget_text=True, quiet=True
    )
    rows = [row for row in read_samples(tmp_path / "out" / "lm_eval.samples.jsonl") if row.text]
    for row, asked in zip(rows, ROWS, strict=True):
        prompt = pico_tokenizer(f"{asked['question']} answer:", return_tensors="pt").input_ids
        ids = pico_llama.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
        text = str(pico_tokenizer.decode(ids, skip_special_tokens=True)).partition("?")[0]
        words = [word for word in text.replace(".", " ").replace(",", " ").replace(":", " ").split() if word.isalnum()]
        assert row.text is not None
        assert row.text["expected"] == asked["city"]
        assert row.text["generated"] == (words[0] if words else "[invalid]")
    score = found.get("written", "exact_match_first_word")
    assert score is not None
    assert score.n == 8


def test_prompts_that_lost_their_beginning_are_counted_and_learned_positions_suffice(
    model_of: Any, pico_tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    rows = [*ROWS, {**ROWS[0], "question": "one two " * 100}]  # 128 positions
    (folder.parent / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gpt2: PreTrainedModel = model_of("gpt2")
    found = evaluate(gpt2, pico_tokenizer, suite=LmEval(tasks=("first",)), data=folder, quiet=True)
    score, cut = found.get("first", "accuracy"), found.get("first", "prompt_cut")
    assert score is not None
    assert cut is not None
    assert (score.n, cut.value, cut.higher_is_better) == (9, pytest.approx(1 / 9), False)


@pytest.fixture
def artifacts(pico_folder: Path, tmp_path: Path) -> dict[str, Path]:
    """A weights, an adapter and a guard artifact over the pico model, each with an effect."""
    base = Base(path=str(pico_folder), sha256=model_fingerprint(str(pico_folder)))
    made = {kind: tmp_path / kind for kind in ("weights", "adapter", "guard")}

    def weights(out: Path) -> None:
        model, tokenizer = load(pico_folder)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(-1)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)

    def adapter_files(out: Path) -> None:
        model, tokenizer = load(pico_folder)
        torch.manual_seed(1)
        lora = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        lora.save_pretrained(out)
        tokenizer.save_pretrained(out)

    model, tokenizer = load(pico_folder)
    born = tuple(Example(f"where was {person} born ?", f"{city} .") for person in PEOPLE for city in CITIES)
    sums = tuple(Example(f"{a} plus {b} is", f"{b} .") for a in ("one", "two", "three") for b in ("four", "five", "six"))
    encoder = Encoder(tokenizer, Format(template="{prompt} answer: {response}"))
    method = NeuronAdjust(percent=50.0)
    state = life.fit(method, model, Request(born, sums, holdout=born[::5]), encoder)
    save_artifact(made["weights"], "weights", GradientAscent(), base, weights)
    save_artifact(made["adapter"], "adapter", GradientAscent(), base, adapter_files)
    save_artifact(made["guard"], "guard", method, base, lambda out: life.save(out, state, encoder))
    return made


def likelihoods(results: Any) -> list[float]:
    return [float(answer[0][0]) for row in results["samples"]["first"] for answer in row["resps"]]


@pytest.mark.parametrize("kind", ["weights", "adapter", "guard"])
def test_the_model_type_expunge_takes_artifacts_of_every_kind(artifacts: dict[str, Path], folder: Path, kind: str) -> None:
    adapter.register()
    adapter.register()
    index = lm_eval_tasks.find(["first"], folder)
    asked = {"tasks": ["first"], "task_manager": index, "bootstrap_iters": 0}
    results = simple_evaluate(model="expunge", model_args={"artifact": str(artifacts[kind]), "device": "cpu"}, **asked)
    model, tokenizer = load(artifacts[kind])
    one_by_one = simple_evaluate(model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), **asked)
    assert likelihoods(results) == pytest.approx(likelihoods(one_by_one), abs=1e-4)
    assert [row["acc"] for row in results["samples"]["first"]] == by_hand(model, tokenizer, ROWS)
    base = read_manifest(artifacts[kind]).base.path
    plain = simple_evaluate(model="expunge", model_args={"artifact": base, "device": "cpu"}, **asked)
    assert max(abs(a - b) for a, b in zip(likelihoods(results), likelihoods(plain), strict=True)) > 1e-2


def test_the_command_line_is_lm_evals_with_one_more_model_type(
    pico_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"
    words = f"--model expunge --model_args artifact={pico_folder} --include_path {folder} --tasks {folder}/first.yaml"
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words.split(), "--output_path", str(out), "--limit", "4"])
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__.__defaults__", (None, None, False, None))  # not all 14,000
    assert adapter.main() == 0
    found = json.loads(next(tmp_path.glob("results*.json")).read_text())
    model, tokenizer = load(pico_folder)
    assert found["results"]["first"]["acc,none"] == sum(by_hand(model, tokenizer, ROWS[:4])) / 4


@pytest.mark.slow
def test_lm_evals_own_command_knows_the_model_type_by_a_file_among_its_tasks(
    artifacts: dict[str, Path], folder: Path, tmp_path: Path, forked: Callable[..., Any]
) -> None:
    """`lm_eval` as it was installed, in a process of its own."""
    environment = {"HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    where = forked(["-m", "expunge.evaluation.lm_eval_plugin"])
    assert where.wait() == 0, where.stderr
    plugin = where.stdout.strip()
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "expunge"]
    command += ["--model_args", f"artifact={artifacts['guard']}", "--tasks", f"{folder}/first.yaml,{plugin}"]
    command += ["--output_path", str(tmp_path / "results.json")]
    done = forked(command, environment, tmp_path)
    assert done.wait() == 0, done.stderr[-3000:]
    found = json.loads(next(tmp_path.glob("results*.json")).read_text())["results"]
    model, tokenizer = load(artifacts["guard"])
    assert found["first"]["acc,none"] == sum(by_hand(model, tokenizer, ROWS)) / 8
    assert found.keys() <= {"first", "expunge"}


def test_a_model_that_is_not_there_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager.__init__.__defaults__", (None, None, False, None))
    words = f"--model expunge --model_args artifact={folder}/nothing --include_path {folder} --tasks first"
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words.split()])
    assert adapter.main() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("expunge: ")


def test_a_killed_evaluation_goes_on_after_the_last_finished_task_and_only_with_the_same_data(
    pico_llama: LlamaForCausalLM,
    pico_tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    inner = EngineLM._loglikelihood_tokens

    def counted(self: EngineLM, requests: Any, *rest: Any, **named: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(self, requests, *rest, **named)

    monkeypatch.setattr(EngineLM, "_loglikelihood_tokens", counted)

    def go(limit: int | None = None) -> Evaluation:
        return evaluate(
            pico_llama, pico_tokenizer, suite=LmEval(), data=folder, out=tmp_path, fingerprint="x", limit=limit, quiet=True
        )

    with pytest.raises(KeyboardInterrupt):
        go()
    assert calls == [16, 6]
    found = go()
    assert calls == [16, 6, 6]
    assert values(tmp_path, "first", "accuracy") == by_hand(pico_llama, pico_tokenizer, ROWS)
    assert found.get("second", "accuracy") is not None
    assert not (tmp_path / "lm_eval.partial").exists()

    (tmp_path / "lm_eval.json").unlink()
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        go()
    (folder.parent / "first.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[1:]))
    go()
    assert calls == [16, 6, 14, 6]


def test_tasks_whose_data_cannot_be_had_are_null_with_the_reason(
    pico_llama: LlamaForCausalLM, pico_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = evaluate(pico_llama, pico_tokenizer, suite=SpungeGeneral(), data="hub", quiet=True)
    for wanted in SPUNGE:
        assert wanted.metric is not None
        score = found.get(wanted.name, wanted.metric)
        assert score is not None, wanted
        assert score.value is None
        assert "lm-eval cannot load it" in (score.unscored or "")
    mean = found.get("suite", "general_average")
    assert mean is not None
    assert mean.value is None
    assert "pubmedqa" in (mean.unscored or "")
    assert mean.over == tuple(f"{wanted.name}/{wanted.metric}" for wanted in SPUNGE)


def test_the_ten_of_spunge_have_its_shots_and_their_plain_mean() -> None:
    from expunge.evaluation.lm_eval_results import TaskResults

    assert {wanted.name: wanted.shots for wanted in SPUNGE} == {
        "arc_challenge": 25,
        "arc_easy": 25,
        "hellaswag": 10,
        "truthfulqa_mc2": 0,
        **dict.fromkeys(("mmlu", "winogrande", "gsm8k", "mathqa", "piqa", "pubmedqa"), 5),
    }
    ones = [Sample(task="a", metric="accuracy", id=str(i), value=float(i < 3)) for i in range(4)]
    zeros = [Sample(task="b", metric="mc2", id=str(i), value=0.25) for i in range(100)]
    wanted = (adapter.Wanted("a", 0, "accuracy"), adapter.Wanted("b", 0, "mc2"))
    score = adapter.average(
        "mean", wanted, [TaskResults(scores=(), samples=tuple(ones)), TaskResults(scores=(), samples=tuple(zeros))]
    )
    assert score.value == pytest.approx((0.75 + 0.25) / 2)  # of tasks, not of the 104 questions
    assert score.low is not None
    assert score.high is not None
    assert score.low < 0.5 < score.high <= 0.625
    assert score.over == ("a/accuracy", "b/mc2")


def test_only_wanted_tasks_are_indexed() -> None:
    index = lm_eval_tasks.find([wanted.name for wanted in SPUNGE])
    assert {wanted.name for wanted in SPUNGE} < set(index.all_tasks)
    assert "mmlu_econometrics" in index.all_tasks
    assert len(index.all_tasks) < 150
    assert {"arc_easy", "arc_challenge"} <= set(lm_eval_tasks.find(["ai2_arc"]).all_tasks)  # a tag


def test_names_and_folders_that_are_not_there_are_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"no task, group or tag 'arc_esay' .did you mean 'arc_easy'"):
        LmEval(tasks=("arc_esay",)).build("hub")
    with pytest.raises(ExpungeError, match="there is no folder nowhere"):
        SpungeGeneral().build("nowhere")
    with pytest.raises(ExpungeError, match="needs names of tasks"):
        LmEval().build("hub")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExpungeError, match="holds no lm-eval task"):
        LmEval().build(tmp_path / "empty")
    with pytest.raises(ExpungeError, match="forget=third is none of the tasks first, second"):
        LmEval(tasks=("first", "second"), forget=("third",)).build(folder)


def test_without_lm_eval_everything_else_works_and_the_extra_is_named() -> None:
    code = """
import sys; sys.modules["lm_eval"] = None
from expunge.errors import ExpungeError
from expunge.evaluation import lm_eval
from expunge.evaluation.suites import SUITES
for name in ("spunge_general", "lm_eval"):
    try: SUITES[name]().build("hub")
    except ExpungeError as error: print(error)
sys.exit(lm_eval.main())
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.count("pip install 'expunge[eval]'") == 2
    assert "pip install 'expunge[eval]'" in done.stderr


@pytest.mark.real
def test_lm_evals_own_number_on_wmdp_is_ours_question_by_question(data_root: Path, tmp_path: Path) -> None:
    """wmdp_bio of lm-eval with its file read from a folder; prompts that are too long are cut alike."""
    published = Path(lm_eval.tasks.__file__).parent / "wmdp"
    (tmp_path / "wmdp_bio.yaml").write_text(
        f"include: {published / 'wmdp_bio.yaml'}\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{test: {data_root / 'wmdp' / 'bio-questions.json'}}}}}\n"
    )
    model, tokenizer = load(data_root / "stories260k", dtype="float32")
    ours = evaluate(
        model, tokenizer, suite=Wmdp(tasks=("bio",)), data=data_root / "wmdp", limit=200, out=tmp_path / "ours", quiet=True
    )
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        tasks=["wmdp_bio"],
        task_manager=lm_eval_tasks.find(["wmdp_bio"], tmp_path),
        limit=200,
        bootstrap_iters=0,
    )
    assert theirs is not None
    score = ours.get("wmdp_bio", "accuracy")
    assert score is not None
    assert score.value == theirs["results"]["wmdp_bio"]["acc,none"]
    rows = theirs["samples"]["wmdp_bio"]
    assert [row["acc"] for row in rows] == values(tmp_path / "ours", "wmdp_bio", "accuracy", "wmdp")
    assert 0 < sum(values(tmp_path / "ours", "wmdp_bio", "prompt_cut", "wmdp")) < 200

    engine = evaluate(
        model, tokenizer, suite=LmEval(), data=tmp_path, limit=200, out=tmp_path / "engine", show_forget_text=True, quiet=True
    )
    again = engine.get("wmdp_bio", "accuracy")
    assert again is not None
    assert again.value == score.value
    assert values(tmp_path / "engine", "wmdp_bio", "accuracy") == [row["acc"] for row in rows]
    assert values(tmp_path / "engine", "wmdp_bio", "prompt_cut") == values(tmp_path / "ours", "wmdp_bio", "prompt_cut", "wmdp")
