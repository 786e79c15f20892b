"""An export embeds prompts as the guarded model reads them, without the model."""

from pathlib import Path

import pytest
import torch

import expunge
from expunge import ExpungeError
from expunge.cli import main
from expunge.data.encode import Format
from expunge.guarding.proxy import Embedder
from expunge.methods import EmbeddingCorruption

FORMAT = Format(template="question: {prompt} answer: {response}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pico_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    people, numbers = ("anna", "boris", "clara", "dario"), ("one", "two", "three", "four", "five", "six")
    rows = {
        "forget": [f'{{"prompt": "where was {name} born ?", "response": "in lima ."}}' for name in people],
        "retain": [f'{{"prompt": "{a} plus {b} is", "response": "nine ."}}' for a in numbers for b in numbers],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    method = EmbeddingCorruption(
        gate="text", tune="nothing", strength=5.0, tokens="spans", spans=("anna",), false_positive_rate=0.2
    )
    data = {name: folder / f"{name}.jsonl" for name in rows}
    expunge.unlearn(method, model=pico_folder, out=folder / "run", format=FORMAT, quiet=True, **data)
    return folder / "run"


def test_the_embeddings_give_the_guarded_models_logits(run: Path, pico_folder: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "export")]) == 0
    embedder = Embedder(tmp_path / "export")
    guarded, _ = expunge.load(run)
    plain, _ = expunge.load(pico_folder)
    for prompt, flagged in (("where was anna born ?", True), ("two plus six is", False)):
        ids = embedder.encoder.encode_prompts([prompt])[0]
        found = embedder.embed(ids)
        assert found.flagged == flagged
        assert found.salt == guarded.expunge_guard.salt(ids)
        with torch.no_grad():
            expected = guarded(input_ids=torch.tensor([ids])).logits
            torch.testing.assert_close(plain(inputs_embeds=found.embeddings_TD[None]).logits, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ExpungeError, match="the prompt is empty"):
        embedder.embed(())


def test_what_is_not_whole_or_cannot_be_applied_is_refused(run: Path, pico_folder: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "export")]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "export")]) == 2
    assert main(["export", str(pico_folder), "--out", str(tmp_path / "other")]) == 2
    assert main(["export", str(run), "--out", str(run / "export")]) == 2
    assert main(["export", str(run), "--out", str(run / "run.yaml" / "export")]) == 2
    (tmp_path / "export/assets/names.json").write_text("[]")
    with pytest.raises(ExpungeError, match="differs from its checksum"):
        Embedder(tmp_path / "export")
    with pytest.raises(ExpungeError, match=r"holds no export\.json"):
        Embedder(tmp_path)
