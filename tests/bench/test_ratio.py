from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from optkit.bench import ratio as room
from optkit.bench.ratio import RESOLUTION, Candidate, calls_per_block, compare_latency, describe, ratio_of
from optkit.errors import DataError, ModelError, ProviderError, UsageError
from optkit.model.manifest import Ratio
from optkit.model.model import Model
from optkit.model.target import Target
from tests.helpers import fresh_dir, normal, onnx_model, open_any

ONE = Target(threads=1)
X = [{"x": normal(4, 16, seed=seed)} for seed in (0, 1)]


@pytest.fixture(scope="module")
def small() -> Model:
    return open_any(onnx_model("g (float[n,16] x) => (float[n,16] y) { y = MatMul(x, w) }", {"w": normal(16, 16)}))


def found(baseline: list[float], candidate: list[float], **options: float) -> Ratio:
    both = {"confidence": 0.95, "seed": 0, "inputs": "real"} | options
    return ratio_of(np.array(baseline), np.array(candidate), **both)  # type: ignore[arg-type]


def test_constant_times_give_the_plain_ratio_and_the_resolution() -> None:
    ratio = found([0.002] * 10, [0.001] * 10)
    assert ratio.speedup == 2.0
    assert (ratio.low, ratio.high) == pytest.approx((2 * (1 - RESOLUTION), 2 * (1 + RESOLUTION)), rel=1e-12)
    assert (ratio.baseline_ms, ratio.candidate_ms, ratio.blocks, ratio.inputs) == (2.0, 1.0, 10, "real")
    assert ratio.word == "faster"


def test_blocks_are_compared_within_their_round() -> None:
    """The machine slows down tenfold half way: medians over all blocks would say 1 or 10, pairs say 1.25."""
    baseline = [1.0] * 6 + [10.0] * 5
    candidate = [0.8] * 5 + [8.0] * 6
    candidate[5] = 0.8
    assert found(baseline, candidate).speedup == pytest.approx(1.25, rel=1e-12)


def test_a_disturbed_block_does_not_move_the_estimate() -> None:
    ratio = found([1.0] * 20, [0.5] * 19 + [50.0])
    assert ratio.speedup == 2.0
    assert ratio.low == pytest.approx(2 * (1 - RESOLUTION), rel=1e-12)


def test_noise_around_the_same_speed_is_called_same_and_a_real_gain_is_not() -> None:
    random = np.random.default_rng(5)
    same = ratio_of(*random.normal(1, 0.1, (2, 40)), confidence=0.95, seed=0, inputs="")
    assert same.low < 1 < same.high and same.word == "same"
    slower = ratio_of(random.normal(1, 0.1, 40), random.normal(1.3, 0.1, 40), confidence=0.95, seed=0, inputs="")
    assert slower.low < 1 / 1.3 < slower.high < 1 and slower.word == "slower"


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """200 experiments of 30 rounds with a true ratio of 1: the share of intervals without it, resolution aside."""
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        base, other = random.normal(1, 0.05, (2, 30))
        ratio = ratio_of(base, other, confidence=0.9, seed=0, inputs="", resolution=0.0)
        missed += not ratio.low <= 1 <= ratio.high
    assert 0.03 <= missed / 200 <= 0.17


def test_less_than_the_resolution_is_never_called_a_difference() -> None:
    assert found([1.0] * 50, [0.985] * 50).word == "same"
    assert found([1.0] * 50, [0.97] * 50).word == "faster"


def test_a_seed_repeats_the_interval() -> None:
    random = np.random.default_rng(1).normal(1, 0.1, (2, 15))
    assert ratio_of(*random, confidence=0.95, seed=3, inputs="") == ratio_of(
        *random, confidence=0.95, seed=3, inputs=""
    )


@pytest.mark.parametrize(
    ("speeds", "budget", "calls"),
    [
        ([0.0001, 0.0002], 5.0, 100),  # 10 ms of the faster
        ([0.02, 0.04], 5.0, 3),  # at least 3, so that the median drops a cold call
        ([0.3, 0.2], 5.0, 1),  # 8 rounds of .5 s are all that 5 s allow
        ([1e-7, 1e-7], 5.0, 2000),
        ([60.0], 5.0, 1),
    ],
)
def test_block_length_follows_the_fastest_and_the_budget(speeds: list[float], budget: float, calls: int) -> None:
    assert calls_per_block(speeds, budget) == calls


def test_inputs_are_described_with_shapes() -> None:
    batch = {"x": np.zeros((8, 1, 8, 8), np.float32), "m": np.zeros((8, 3), np.int64)}
    assert describe([batch, batch], "real") == "real, x float32[8,1,8,8], m int64[8,3]"
    assert describe([batch, {"x": batch["x"][:1]}]) == "x float32[8,1,8,8], m int64[8,3], and 1 other shape"


def test_one_small_real_comparison(small: Model) -> None:
    baseline, result = compare_latency([Candidate(small, ONE)] * 2, X, budget_s=0.2, described="synthetic")
    assert (baseline.ratio.speedup, baseline.ratio.low, baseline.ratio.high) == (1.0, 1.0, 1.0)
    assert baseline.ratio.baseline_ms == baseline.ratio.candidate_ms == result.ratio.baseline_ms > 0
    assert result.ratio.blocks >= room.MIN_ROUNDS
    assert result.ratio.low < result.ratio.speedup < result.ratio.high
    assert result.ratio.inputs == "synthetic, x float32[4,16]"
    assert 10 < result.peak_mb < 1000
    assert children() == []


def test_the_parents_memory_is_not_counted(small: Model) -> None:
    ballast = np.ones(300_000_000, np.uint8)
    assert compare_latency([Candidate(small, ONE)], X, budget_s=0.01)[0].peak_mb < ballast.nbytes / 1e6


def test_nothing_to_time_is_wrong_usage(small: Model) -> None:
    with pytest.raises(UsageError, match="needs a candidate and a batch"):
        compare_latency([], X)
    with pytest.raises(UsageError):
        compare_latency([Candidate(small)], [])


def test_what_fails_in_the_child_is_raised_here(small: Model, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"hello")
    with pytest.raises(ModelError, match="cannot load the model") as caught:
        compare_latency([Candidate(small, ONE), Candidate(Model(bad, "onnx", "onnx"), ONE)], X)
    assert caught.value.file == str(bad)
    with pytest.raises(ProviderError, match="'migraphx' is not there"):
        compare_latency([Candidate(small, Target("migraphx"))], X)
    with pytest.raises(DataError, match="'z' is no input"):
        compare_latency([Candidate(small, ONE)], [{"x": X[0]["x"], "z": X[0]["x"]}])
    assert children() == []


FACTORY = """
import os, time
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def forward(self, x):
        {forward}
        return self.layer(x)
"""


def torch_model(forward: str) -> Model:
    torch = pytest.importorskip("torch")
    folder = fresh_dir()
    (folder / "net.py").write_text(FACTORY.format(forward=forward))
    state = {"layer.weight": torch.ones(2, 16), "layer.bias": torch.zeros(2)}
    torch.save(state, folder / "net.pt")
    return Model.open(folder / "net.pt", factory=f"{folder / 'net.py'}:Net", signature="x=float32[batch,16]")


def test_torch_models_are_timed_and_what_they_print_does_no_harm() -> None:
    timed = compare_latency([Candidate(torch_model("print('noise', flush=True)"), ONE)], X, budget_s=0.05)
    assert timed[0].ratio.candidate_ms > 0


def test_a_child_that_crashes_is_named_with_its_signal() -> None:
    with pytest.raises(ModelError, match="The process that timed the model was ended by SIGKILL"):
        compare_latency([Candidate(torch_model("os.kill(os.getpid(), 9)"), ONE)], X)


def test_a_child_that_ends_is_named_with_its_last_words() -> None:
    with pytest.raises(ModelError, match=r"ended with code 7: last words"):
        compare_latency([Candidate(torch_model("os.write(2, b'first\\nlast words\\n'); os._exit(7)"), ONE)], X)


def test_a_child_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "START_TIMEOUT_S", 0.5)
    with pytest.raises(ModelError, match="gave no answer for"):
        compare_latency([Candidate(torch_model("time.sleep(60)"), ONE)], X)
    assert children() == []


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "optkit.bench.child" in child.cmdline()]


SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from optkit.bench.ratio import Candidate, compare_latency
from optkit.model.model import Model
from optkit.model.target import Target
candidates = [Candidate(Model(Path(sys.argv[1]), "onnx", "onnx"), Target(threads=1))] * 2
print("begin", flush=True)
try:
    compare_latency(candidates, [{"x": np.ones((4, 16), np.float32)}], budget_s=60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_no_child_outlives_its_parent(small: Model, how: signal.Signals) -> None:
    """Both children are up, one of them stopped between its turns, when the parent is ended."""
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(small.path)]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "begin\n"
        workers: list[psutil.Process] = []
        assert until(lambda: len(children_of(parent.pid, workers)) == 2)
        assert until(lambda: all(worker.status() == psutil.STATUS_STOPPED for worker in workers[:1]))
        parent.send_signal(how)
        rest = parent.communicate(timeout=20)[0]
        assert rest == ("interrupted\n" if how == signal.SIGINT else "")
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert (len(gone), alive) == (2, [])


def children_of(pid: int, into: list[psutil.Process]) -> list[psutil.Process]:
    into[:] = psutil.Process(pid).children()
    return into


def until(true: object, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False
