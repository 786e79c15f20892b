"""The code blocks of README.md and docs/ run as written and in sequence; those that cannot are parsed, with the reason given.

Placeholders such as M, DATA and forget.jsonl are pico models and small files of these very names in the working directory.
"""

import json
import re
import runpy
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expunge.cli import COMMANDS, main
from expunge.cli.flags import parse
from expunge.cli.merge_pairs import pairs_of
from expunge.evaluation.suites import SUITES

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}

HUB, TRAINED = "reads models or data of the hub", "needs trained models and real data"
NOT_RUN = {
    ("README", "make "): "makes an environment; tests/test_quickstart.py runs the quickstart",
    ("README", "$MODEL"): HUB,
    ("README", "$RETAIN"): HUB,
    ("README", "report runs/npo --original"): "follows the lines that read the hub",
    ("README", "evaluate runs/npo --suite tofu"): HUB,
    ("attacks", ""): "attacks a lab's models for minutes; tests/attacks does so with small budgets",
    ("behavior", "Ext-Sub/"): HUB,
    ("behavior", "--config behavior/ext_sub_published"): HUB,
    ("behavior", "--suite truthfulness"): TRAINED,
    ("evaluation", ""): TRAINED,
    ("files", ""): "continues what was interrupted; tests/cli/test_going_on.py interrupts and continues each command",
    ("prompts", "allenai"): HUB,
    ("prompts", "runs/news/artifact"): HUB,
    ("safety", ""): HUB,
    ("skills", "--suite skills"): TRAINED,
    ("skills", "import gsm8k.pkl"): "a published file; tests/guarding/test_published.py imports such files",
}
"""(page, part of the line; empty: every line) -> why the line is not run. Its command is parsed all the same."""
LISTINGS = {"house", "design", "gpu"}
"""Pages whose blocks are listings of files or messages."""
STUBS = "expunge() { printf '%s\\1' \"$@\"; printf '\\n'; }; lm_eval() { :; }; python() { :; }; make() { :; };"
"""Names of programs in the shell that expands a block: `expunge` prints its words, the others do nothing."""


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks that hold commands or Python."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)
    return [
        (kind, text) for kind, text in found if kind == "python" or re.search(r"^ *(expunge|make|lm_eval) ", text, re.MULTILINE)
    ]


def reason(page: str, line: str) -> str | None:
    """Why a line is not run."""
    return next((why for (where, part), why in NOT_RUN.items() if where == page and part in line), None)


def commands(page: str, text: str, *, run: bool) -> list[list[str]]:
    """The words of each `expunge` command of a block that is to be run (or only parsed), expanded by a shell."""
    lines = [line for line in text.splitlines() if not line.strip().startswith("expunge ") or (reason(page, line) is None) == run]
    script = "\n".join(line for line in lines if not line.startswith("#"))
    script = re.sub(r"do\n(\s*)done", "do :; done", script)
    done = subprocess.run(["bash", "-c", f"{STUBS}\n{script}"], capture_output=True, text=True, check=True)
    return [line.split("\1")[:-1] for line in done.stdout.splitlines()]


def test_every_page_with_commands_is_looked_at() -> None:
    with_commands = {page for page in PAGES if blocks(page)}
    assert {"README", "merging", "skills", "behavior", "prompts", "report"} <= with_commands
    assert not with_commands & LISTINGS
    for page, part in NOT_RUN:
        assert any(part in line for _, text in blocks(page) for line in text.splitlines()), f"{page}: nothing has {part!r}"


ONLY_PARSED = [
    (page, words) for page in PAGES for kind, text in blocks(page) if kind == "" for words in commands(page, text, run=False)
]


@pytest.mark.parametrize("page", dict.fromkeys(page for page, _ in ONLY_PARSED))
def test_commands_that_are_not_run_parse(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their methods, flags, fields and recipes are there."""
    monkeypatch.chdir(tmp_path)
    for words in [words for where, words in ONLY_PARSED if where == page]:
        if "--resume" not in words or "--config" in words:  # else flags are read from what was interrupted
            parses(words, monkeypatch)


def parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One command up to where its work begins."""
    name, *rest = words
    if name not in ("unlearn", "finetune", "merge"):
        module = import_module(f"expunge.cli.{name}")
        parse(getattr(module, COMMANDS[name][0]), f"expunge {name}", rest)
        return
    seen: list[Any] = []

    def stopped(*values: Any, **named: Any) -> SimpleNamespace:
        seen.append((values, named))
        return SimpleNamespace(stopped=None, steps=1, notes="", folder="", artifact="", self_check=None, sentences=lambda: "")

    monkeypatch.setattr("expunge.run.execute", stopped)
    monkeypatch.setattr("expunge.merging.merge_adapters", stopped)
    assert main(words) == 0, words
    several = words[:3] == ["merge", "ext_sub", "--config"]
    assert len(seen) == (len(pairs_of(words[3])) if several else 1)


@pytest.fixture(scope="module")
def place(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("examples")
    for seed, name in enumerate(("my-model", "M", "B", "A", "C", "D")):
        shutil.copytree(pico_folder, folder / name)
        if name in "ACD":
            changed = AutoModelForCausalLM.from_pretrained(folder / name)
            for parameter in changed.model.layers.parameters():
                parameter.data.mul_(1 + 0.01 * seed)
            changed.save_pretrained(folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder / "M")
    tokenizer.add_tokens(["I", "cannot", "help", "that."])  # words of the abstention on the page of skills
    grown = AutoModelForCausalLM.from_pretrained(folder / "M")
    grown.resize_token_embeddings(len(tokenizer))
    grown.save_pretrained(folder / "M")
    tokenizer.save_pretrained(folder / "M")
    for seed, name in enumerate(("EXPERT", "ANTI_EXPERT")):
        base = AutoModelForCausalLM.from_pretrained(folder / "B")
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.01 * seed)
        adapted.save_pretrained(folder / name)
    (folder / "recipe.yml").write_text(
        "merge_method: linear\ndtype: float32\nbase_model: B\nmodels:\n  - {model: A, parameters: {weight: 0.2}}\n"
        "  - {model: C, parameters: {weight: 0.8}}\n"
    )
    frames = (
        "where was {} born ?",
        "what city is {} from ?",
        "where is {} ?",
        "is {} from a city ?",
        "who is {} ?",
        "is {} born ?",
    )
    people = ("anna", "boris", "clara", "dario", "elena", "fyodor", "greta", "hugo")
    cities = {"forget": "oslo", "retain": "lima", "math": "delhi", "code": "accra", "chat": "cairo", "unknown": "minsk"}
    cities |= {"harmful": "quito", "normal": "paris", "bad": "berlin", "good": "tokyo"}
    for name, city in cities.items():
        rows = [
            {"prompt": frame.format(who) if name != "math" else frame.format("plus"), "response": f"{who} was born in {city} ."}
            for frame in frames
            for who in people
        ]
        few = rows[:6] if name not in ("retain", "chat", "unknown", "math", "code") else rows
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    for name in ("seen", "unseen", "normal"):
        row = {"prompt": f"who is {people[0]} ?", "response": f"{people[0]} is a {'pilot' if name == 'seen' else 'baker'} ."}
        (folder / "DATA").mkdir(exist_ok=True)
        (folder / "DATA" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    for name in ("forget10", "retain", "real_authors", "world_facts"):
        rows = [
            {
                "question": f"where was {who} born ?",
                "answer": f"{who} was born in lima .",
                "paraphrased_answer": f"born in lima was {who} .",
                "perturbed_answer": [f"{who} was born in {city} ." for city in ("oslo", "cairo")],
            }
            for who in people[:3]
        ]
        (folder / "DATA" / f"{name}_perturbed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    "pages", [("README", "report", "python"), ("behavior",), ("merging",), ("prompts",), ("skills",)], ids=" ".join
)
def test_the_blocks_run_as_written_and_in_sequence(
    pages: tuple[str, ...], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    ran = 0
    for page in pages:
        for kind, text in blocks(page):
            if kind == "python":
                Path("example.py").write_text(text)
                runpy.run_path("example.py")
                ran += 1
                continue
            for words in commands(page, text, run=True):
                assert main(words) == 0, (words, capsys.readouterr().err)
                ran += 1
    assert ran > 1


def test_names_of_suites_in_commands_are_suites() -> None:
    for page in PAGES:
        for name in re.findall(r"^ *expunge evaluate .*--suite ([\w,]+)", PAGES[page], re.MULTILINE):
            assert set(name.split(",")) - {"NAME"} <= set(SUITES), (page, name)
