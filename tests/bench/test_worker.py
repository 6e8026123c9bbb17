"""Real processes: what they answer, how they fail, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import psutil
import pytest

from optkit.bench import worker as room
from optkit.bench.measure import Candidate, Measured, Rules, measure, open_loop_of
from optkit.bench.worker import Worker
from optkit.errors import DataError, ModelError, ProviderError
from optkit.model.model import Model
from optkit.model.target import Target
from tests.helpers import fresh_dir, normal, onnx_model, open_any

ONE = Target(threads=1)
X = [{"x": normal(4, 16, seed=seed)} for seed in (0, 1)]
SHORT = Rules(budget_s=0.2, launches=1)


@pytest.fixture(scope="module")
def small() -> Model:
    return open_any(onnx_model("g (float[n,16] x) => (float[n,16] y) { y = MatMul(x, w) }", {"w": normal(16, 16)}))


def timed(*candidates: Candidate) -> list[Measured]:
    return measure(candidates, X, SHORT)


def test_a_worker_is_ready_and_times_blocks(small: Model) -> None:
    with Worker(Candidate(small, ONE), X) as worker:
        ready = worker.ready()
        assert ready.seconds > 0
        assert (ready.about.engine, ready.about.provider) == ("onnxruntime", "cpu")
        assert ready.phases.import_s == ready.about.import_s > 0 and ready.phases.session_s > 0
        assert ready.phases.first_ms > 0 and ready.phases.warm_up_calls >= 2
        block = worker.block(7, 3)
        assert len(block) == 7 and min(block) > 0
        assert worker.peak > 10_000_000
    assert children() == []


def test_one_small_real_comparison(small: Model) -> None:
    baseline, result = measure([Candidate(small, ONE)] * 2, X, Rules(budget_s=1, launches=2), described="synthetic")
    assert baseline.ratio.baseline_ms == baseline.ratio.candidate_ms == result.ratio.baseline_ms > 0
    assert result.ratio.low < result.ratio.speedup < result.ratio.high
    assert result.ratio.inputs == "synthetic, x float32[4,16]"
    assert 10 < result.peak_mb < 1000
    assert set(result.launch_of) == set(range(result.steady.launches))
    assert children() == []


def test_the_parents_memory_is_not_counted(small: Model) -> None:
    ballast = np.ones(300_000_000, np.uint8)
    assert timed(Candidate(small, ONE))[0].peak_mb < ballast.nbytes / 1e6


def test_an_open_loop_runs_in_a_child(small: Model) -> None:
    samples = open_loop_of(Candidate(small, ONE), X, rate=200, seconds=0.1, seed=3)
    assert len(samples.scheduled) == 20
    assert (samples.done > samples.started).all() and (samples.started >= samples.scheduled).all()
    assert children() == []


def test_what_fails_in_the_child_is_raised_here(small: Model, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"hello")
    with pytest.raises(ModelError, match="second: onnxruntime cannot load the model") as caught:
        timed(Candidate(small, ONE), Candidate(Model(bad, "onnx", "onnx"), ONE, label="second"))
    assert caught.value.file == str(bad)
    with pytest.raises(ProviderError, match="'migraphx' is not there"):
        timed(Candidate(small, Target("migraphx")))
    with pytest.raises(DataError, match="'z' is no input"):
        measure([Candidate(small, ONE)], [{"x": X[0]["x"], "z": X[0]["x"]}], SHORT)
    assert children() == []


def test_a_child_ends_without_a_word_when_the_parent_has_its_error(tmp_path: Path) -> None:
    """Python would abort where the thread that waits for the parent's end held a lock of stdin."""
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "optkit.bench.child", str(theirs.fileno())]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "pass_fds": [theirs.fileno()]}
    with ours, theirs, subprocess.Popen(command, **pipes) as process:
        ours.send((Model(tmp_path / "none.onnx", "onnx", "onnx"), ONE, {}, X))
        assert isinstance(ours.recv(), ModelError)
        assert process.stderr is not None
        assert (process.wait(timeout=20), process.stderr.read()) == (0, b"")


def test_a_child_that_reads_nothing_is_given_up(small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(room, "SEND_TIMEOUT_S", 0.2)
    with pytest.raises(ModelError, match="took no message for"):
        measure([Candidate(small, ONE)], [{"x": np.zeros((100_000, 16), np.float32)}], SHORT)
    assert children() == []


def test_nothing_stays_open_where_no_process_starts(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = psutil.Process().num_fds()
    with pytest.raises(FileNotFoundError):
        measure([Candidate(small, ONE)], X, SHORT)
    assert psutil.Process().num_fds() == before


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
    found = timed(Candidate(torch_model("print('noise', flush=True)"), ONE))
    assert found[0].ratio.candidate_ms > 0
    assert (found[0].about.engine, found[0].steady.launches) == ("torch", 1)


def test_what_a_child_has_started_is_stopped_and_ended_with_it() -> None:
    forward = "if not hasattr(self, 'helper'): self.helper = __import__('subprocess').Popen(['sleep', '300'])"
    with Worker(Candidate(torch_model(forward), ONE), X) as worker:
        worker.ready()
        (child,) = children()
        helpers = child.children()
        assert len(helpers) == 1 and until(lambda: helpers[0].status() == psutil.STATUS_STOPPED)
    assert psutil.wait_procs(helpers, timeout=10)[1] == []


def test_a_child_that_crashes_is_named_with_its_signal() -> None:
    with pytest.raises(ModelError, match="The process that timed the model was ended by SIGKILL"):
        timed(Candidate(torch_model("os.kill(os.getpid(), 9)"), ONE))


def test_a_child_that_ends_is_named_with_its_last_words() -> None:
    with pytest.raises(ModelError, match=r"this: The process .* ended with code 7: last words"):
        timed(Candidate(torch_model("os.write(2, b'first\\nlast words\\n'); os._exit(7)"), ONE, label="this"))


def test_a_child_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "START_TIMEOUT_S", 0.5)
    with pytest.raises(ModelError, match="gave no answer for"):
        timed(Candidate(torch_model("time.sleep(60)"), ONE))
    assert children() == []


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "optkit.bench.child" in child.cmdline()]


SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from optkit.bench.measure import Candidate, Rules, measure
from optkit.model.model import Model
from optkit.model.target import Target
candidates = [Candidate(Model(Path(sys.argv[1]), "onnx", "onnx"), Target(threads=1))] * 2
print("begin", flush=True)
try:
    measure(candidates, [{"x": np.ones((4, 16), np.float32)}], Rules(budget_s=60, precision=1e-9, launches=1))
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
