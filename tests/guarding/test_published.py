"""Published pickles become guards; anything but arrays of numbers is refused unread."""

import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import expunge
from expunge import ExpungeError
from expunge.cli import main
from expunge.guarding import life
from expunge.guarding.published import import_guard, read_published

REPLY = "i do not know that ."


def neuron_file(path: Path, **changes: Any) -> Path:
    """As the published files: every layer is there, also the one without neurons; float32 arrays and a Python list."""
    values = {
        "mu1_lst": np.array([0.1, -0.2], dtype=np.float32), "sigma1_lst": np.array([0.04, 0.25], dtype=np.float32),
        "mu2_lst": np.array([0.9, 1.2], dtype=np.float32), "sigma2_lst": np.array([0.09, 0.01], dtype=np.float32),
        "neuron_lst": [3, 61],
    }  # fmt: skip
    empty = {name: np.array([], dtype=np.float32) for name in values} | {"neuron_lst": []}
    layers = {"model.layers.0.mlp.gate_proj": empty, "model.layers.1.mlp.gate_proj": values | changes}
    path.write_bytes(pickle.dumps(layers))
    return path


def key_file(path: Path, width: int = 64, layer: int = 1, **changes: Any) -> Path:
    box = {"mean": np.zeros(width, dtype=np.float32), "std": np.full(width, 2.0, dtype=np.float32), "k": np.float64(3.0)}
    path.write_bytes(pickle.dumps({f"model.layers.{layer}.mlp.down_proj": box | changes}))
    return path


def test_neuron_files_become_guards_with_the_root_of_their_variances(pico_folder: Path, tmp_path: Path) -> None:
    manifest = import_guard(neuron_file(tmp_path / "a.pkl"), model=str(pico_folder), out=tmp_path / "run", draw_seed=4)
    state = life.read(tmp_path / "run" / "artifact")
    assert state["layer"].tolist() == [1, 1]
    assert state["neuron"].tolist() == [3, 61]
    assert state["retain_std"].tolist() == pytest.approx([0.2, 0.5])
    assert state["forget_std"].tolist() == pytest.approx([0.3, 0.1])
    assert state["forget_mean"].tolist() == pytest.approx([0.9, 1.2])
    assert (manifest.method["percent"], manifest.method["draw_seed"]) == (2 / 128 * 100, 4)
    expunge.verify(tmp_path / "run")
    model, _ = expunge.load(tmp_path / "run")
    model.expunge_guard.detach()


def test_key_files_become_guards_with_alpha_times_k(pico_folder: Path, tmp_path: Path) -> None:
    path = key_file(tmp_path / "a.pkl")
    words = [
        "import",
        str(path),
        "--model",
        str(pico_folder),
        "--out",
        str(tmp_path / "run"),
        "--alpha",
        "400",
        "--abstention",
        REPLY,
    ]
    assert main(words) == 0
    state = life.read(tmp_path / "run" / "artifact")
    assert state["radius"].tolist() == [1200.0]
    assert state["unit"].unique().tolist() == [2.0]
    model, tokenizer = expunge.load(tmp_path / "run")
    assert model.expunge_guard.method.check == "all_steps"
    assert REPLY in tokenizer.decode(model.generate(torch.tensor([[1, 9]]), max_new_tokens=8)[0])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_and_both_names_of_numpys_core_are_read(protocol: int, tmp_path: Path) -> None:
    array = np.linspace(0, 1, 7, dtype=np.float32)
    written = pickle.dumps({"layer": {"mean": array, "k": np.float32(2)}}, protocol=protocol)
    for name in (written, written.replace(b"numpy._core", b"numpy.core") if protocol < 4 else written):
        (tmp_path / "a.pkl").write_bytes(name)
        found = read_published(tmp_path / "a.pkl")
        assert np.array_equal(found["layer"]["mean"], array)
        assert float(found["layer"]["k"]) == 2.0


class Bomb:
    def __reduce__(self) -> Any:
        return (print, ("boom",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"layer": {"mean": Bomb()}}),
        b"cos\nsystem\n(S'echo boom'\ntR.",
        b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
    ],
)
def test_what_runs_code_is_refused_unread(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    pickletools.dis(content, out=open(tmp_path / "dis", "w"))  # noqa: SIM115
    with pytest.raises(ExpungeError, match="may be harmful and was not read"):
        read_published(tmp_path / "a.pkl")
    assert "boom" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (pickle.dumps([1, 2]), "dictionary by layer names"),
        (pickle.dumps({"a": {"mean": 1}})[:-3], "not a whole pickle"),
    ],
)
def test_other_files_are_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ExpungeError, match=reason):
        read_published(tmp_path / "a.pkl")


def test_a_file_for_another_model_is_refused_before_anything_is_written(pico_folder: Path, tmp_path: Path) -> None:
    files = {
        "names neuron 99": neuron_file(tmp_path / "a.pkl", neuron_lst=[3, 99]),
        "differ in length": neuron_file(tmp_path / "b.pkl", neuron_lst=[3]),
        "not a list of numbers": neuron_file(tmp_path / "c.pkl", mu1_lst=np.array(["x", "y"])),
        "has 70 dimensions": key_file(tmp_path / "d.pkl", width=70),
        r"is for model.layers.31.mlp.down_proj.*model.layers.0.mlp.down_proj": key_file(tmp_path / "e.pkl", layer=31),
    }
    for reason, path in files.items():
        with pytest.raises(ExpungeError, match=reason):
            import_guard(path, model=str(pico_folder), out=tmp_path / "run", abstention=REPLY)
    with pytest.raises(ExpungeError, match="cannot be read"):
        import_guard(tmp_path / "no.pkl", model=str(pico_folder), out=tmp_path / "run")
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({"model.layers.1.mlp.down_proj": {"sum": np.zeros(3)}}))
    with pytest.raises(ExpungeError, match="holds sum by layer"):
        import_guard(tmp_path / "f.pkl", model=str(pico_folder), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mean": np.full(64, np.nan, dtype=np.float32)}, "mean holds NaN or infinity"),
        ({"std": np.full(64, np.inf, dtype=np.float32)}, "std holds NaN or infinity"),
        ({"std": np.full(64, -1.0, dtype=np.float32)}, "negative deviations"),
        ({"k": np.float64("nan")}, "k is .*no positive number"),
        ({"k": 0}, "k is 0 and no positive number"),
        ({"k": [1.0, 2.0]}, "k is .* and no positive number"),
        ({"k": "3"}, "k is '3' and no positive number"),
    ],
)
def test_a_box_that_closes_nothing_is_no_guard(changes: dict[str, Any], reason: str, pico_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=reason):
        import_guard(key_file(tmp_path / "a.pkl", **changes), model=str(pico_folder), out=tmp_path / "run", abstention=REPLY)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "reason"), [("", "is empty"), ("i do not know </s>", "holds </s>"), ("Zoe", "tokenizer does not know")]
)
def test_an_abstention_that_cannot_be_said_is_refused_at_the_import(
    text: str, reason: str, pico_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExpungeError, match=rf"the abstention .*{reason}"):
        import_guard(key_file(tmp_path / "a.pkl"), model=str(pico_folder), out=tmp_path / "run", abstention=text)
    assert not (tmp_path / "run").exists()


def test_an_import_replaces_nothing(pico_folder: Path, tmp_path: Path) -> None:
    file = neuron_file(tmp_path / "a.pkl")
    import_guard(file, model=str(pico_folder), out=tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out, reason in (("run", "exists already"), ("run/artifact", "folder of a model"), (".", "input"), ("a.pkl", "is a file")):
        with pytest.raises(ExpungeError, match=reason):
            import_guard(file, model=str(pico_folder), out=tmp_path / out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
