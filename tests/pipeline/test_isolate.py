"""The worker process: results and errors come back whole, a dead one is told, Ctrl-C leaves none, memory is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from optkit.errors import AccuracyMissed, ModelError, OptkitError, PassError
from optkit.model.model import Model
from optkit.pipeline import isolate
from optkit.pipeline.isolate import isolated, needs_child, watched_memory
from optkit.pipeline.steps import Policy, run_steps
from optkit.recipe.recipe import Step
from tests.pipeline import toy
from tests.pipeline.toy import make_job


def pid_and_sum(array: np.ndarray, *, more: int) -> tuple[int, int]:
    return os.getpid(), int(array.sum()) + more


def fail(kind: type[OptkitError]) -> None:
    error = kind("what", expected="that", fix="do", file="f.onnx", line=3, column=7)
    error.facts = {"measured": [1.5]}
    raise error


def fail_otherwise() -> None:
    raise ZeroDivisionError("by hand")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_call_stays_here_unless_a_child_is_asked_for() -> None:
    pid, total = isolated(False, pid_and_sum, np.arange(4), more=1)
    assert (pid, total) == (os.getpid(), 7)


def test_a_child_gives_its_result_back_and_ends() -> None:
    pid, total = isolated(True, pid_and_sum, np.arange(4), more=1)
    assert pid != os.getpid()
    assert total == 7
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("kind", [ModelError, AccuracyMissed])
def test_an_error_of_the_child_comes_back_with_all_its_fields(kind: type[OptkitError]) -> None:
    with pytest.raises(kind) as caught:
        isolated(True, fail, kind)
    error = caught.value
    assert type(error) is kind
    assert (error.message, error.expected, error.fix) == ("what", "that", "do")
    assert (error.file, error.line, error.column) == ("f.onnx", 3, 7)
    assert error.facts == {"measured": [1.5]}
    assert str(error) == "f.onnx:3:7: what\nExpected: that\nFix: do"


def test_a_bug_in_the_child_stays_a_bug() -> None:
    with pytest.raises(ZeroDivisionError, match="by hand"):
        isolated(True, fail_otherwise)


def test_a_killed_child_is_one_sentence() -> None:
    with pytest.raises(PassError, match="The worker process died without a word") as error:
        isolated(True, die)
    assert "memory" in error.value.message
    assert error.value.exit_code == 3


def test_who_gets_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.open(toy.write_model(tmp_path / "m.onnx"))
    assert not needs_child(model)
    assert needs_child(replace(model, kind="torchscript"))
    monkeypatch.setattr(isolate, "ISOLATE_BYTES", model.size_bytes - 1)
    assert needs_child(replace(model))


def test_a_large_model_goes_through_the_steps_in_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path)
    (plain,) = run_steps(make_job(tmp_path / "plain"), [Step(id="s", options=toy.ScaleBy())], Policy(bench=False))
    monkeypatch.setattr(isolate, "ISOLATE_BYTES", 0)
    (done,) = run_steps(job, [Step(id="s", options=toy.ScaleBy())], Policy(bench=False))
    assert (done.record.status, done.record.drift) == ("changed", plain.record.drift)
    assert done.record.digest == done.after.digest == plain.after.digest
    with pytest.raises(PassError, match=r"The pass 's' failed: ValueError: the reason"):
        run_steps(job, [Step(id="s", options=toy.Raises(error="ValueError"))], Policy(bench=False))
    with pytest.raises(PassError, match="The step 's' failed: The worker process died without a word"):
        run_steps(job, [Step(id="s", options=toy.Die())], Policy(bench=False))
    assert run_steps(job, [Step(id="s", options=toy.ScaleBy())], Policy(bench=False))[0].record.cached
    with job.cache.workdir() as mine:
        assert list((job.cache.root / "work").iterdir()) == [mine]


SCRIPT = """
import sys, time
from optkit.pipeline.isolate import isolated

if __name__ == "__main__":
    try:
        isolated(True, time.sleep, 60)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("whom", ["group", "parent"])
def test_ctrl_c_leaves_no_child_and_no_traceback(tmp_path: Path, whom: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        parent = psutil.Process(process.pid)
        deadline = time.monotonic() + 30
        while not (family := _workers(parent)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.8)
        (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGINT)
        assert process.wait(timeout=20) == 130
        gone, alive = psutil.wait_procs(family, timeout=10)
        assert (len(gone), alive) == (1, [])
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def _workers(parent: psutil.Process) -> list[psutil.Process]:
    """The children that are no helper of multiprocessing's own."""
    found = []
    for child in parent.children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_the_peak_counts_what_was_held_meanwhile_children_included() -> None:
    code = "import time; block = bytearray(60_000_000); time.sleep(0.3)"
    with watched_memory(0.005) as peak:
        time.sleep(0.05)
    before = peak.mb
    assert before > 10
    with watched_memory(0.005) as peak:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert 50 < peak.mb - before < 200
