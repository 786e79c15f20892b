"""Where the GPU is not: everything runs on a pretended device, mixes it with the processor nowhere, and is waited for seldom."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.evaluation.metrics import METRICS
from expunge.methods.composed import COMPOSED
from expunge.methods.guarding import GUARDING
from expunge.methods.training import TRAINING

pytestmark = pytest.mark.slow

MASK = "masking_utils._ignore_causal_mask_sdpa _local_scalar_dense"
"""transformers asks in each pass whether the attention mask has holes: without one, attention runs in its faster kernel."""
FAULTS = ("a sum over both devices", "an index of the processor", "a mask of the processor", "numpy")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """One process for all, since the device is registered for good."""
    script = Path(__file__).parent / "device_run.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    paths: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return paths


def test_every_path_runs_on_the_device(found: dict[str, Any]) -> None:
    failed = {name: error for name, error in found.items() if isinstance(error, str) and not name.startswith("fault")}
    assert not failed
    assert {f"training {cls.method_name()}" for cls in TRAINING} <= found.keys()
    assert {f"guard {cls.method_name()}" for cls in GUARDING} <= found.keys()
    assert {f"run {cls.method_name()}" for cls in COMPOSED} <= found.keys()
    assert len(found) >= 39


@pytest.mark.parametrize("fault", FAULTS)
def test_the_pretended_device_notices(found: dict[str, Any], fault: str) -> None:
    assert isinstance(found[f"fault: {fault}"], str)
    assert found[f"fault: {fault}"].startswith(("RuntimeError", "TypeError"))


def test_the_pretended_device_counts_what_is_read_back(found: dict[str, Any]) -> None:
    assert found["readings"]["counted"] == found["readings"]["of"] == 7


@pytest.mark.parametrize("name", [cls.method_name() for cls in TRAINING] + ["npo, micro-batches", "npo, LoRA"])
def test_a_step_waits_once_for_all_that_its_line_of_metrics_needs(found: dict[str, Any], name: str) -> None:
    waits = {place: n for place, n in found[f"training {name}"].items() if place != MASK}
    assert waits == {"loop._step tolist": 1}


def test_every_metric_has_the_value_of_the_processor(found: dict[str, Any]) -> None:
    """Judges that are models included. METEOR and BERTScore only compare texts, with what their packages load by themselves."""
    assert found["metrics"].keys() == METRICS.keys() - {"bert_score", "meteor"}
    assert all(difference <= 1e-5 for difference in found["metrics"].values())


def test_a_probe_waits_for_no_layer(found: dict[str, Any]) -> None:
    assert found["probe"] == {}


@pytest.mark.parametrize(
    "guard", ["neuron_adjust", "embedding_corruption", "key_space", "key_space, every step", "key_space, steer"]
)
def test_a_guard_waits_for_no_written_token(found: dict[str, Any], guard: str) -> None:
    """It decides once a prompt; what it draws or compares for a token stays on the device."""
    assert found[f"guard {guard}"] == {}


def test_the_engine_waits_a_few_times_a_batch_and_not_for_each_row(found: dict[str, Any]) -> None:
    """Two batches, of answers and of choices: log-probabilities and hits of each, three figures of the distribution; the two
    gradient norms one by one. Which shortcuts hold for a model is found out once a model."""
    own = {place: n for place, n in found["engine"].items() if place != MASK and not place.startswith("shortcuts.")}
    assert own == {
        "packs.statistics_at to": 4,
        "packs.<genexpr> to": 3,
        "engine._gradient_norm _local_scalar_dense": 2,
    }
