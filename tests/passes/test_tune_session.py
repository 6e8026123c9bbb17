from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest

from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._ort_log import DISABLED, active_optimizers, read_log
from optkit.passes._session_options import LOOK_S, Option, has_branches, others_share, with_options
from optkit.passes.tune_session import NOT_TIMED, NOT_TRIED, NOTHING, TuneSession
from optkit.pipeline.steps import Policy, run_steps
from optkit.recipe.recipe import Step
from tests.helpers import MemoryData, normal, onnx_model, open_any, run_pass, session_of
from tests.pipeline.toy import arrays, make_job
from tests.timing import Speeds, Stopwatch

SPINNING = "session.intra_op.allow_spinning"
THREADS = "intra_op_num_threads"


def gelus() -> onnx.ModelProto:
    """A MatMul with a bias and a GELU behind it, which onnxruntime fuses."""
    text = "g (float[n,2,8] x) => (float[n,2,8] y) { m = MatMul(x, w) a = Add(m, b) y = Gelu(a) }"
    return onnx_model(text, {"w": normal(8, 8), "b": normal(8)})


def branches() -> onnx.ModelProto:
    """Two products of one input."""
    text = "g (float[n,8] x) => (float[n,8] y) { a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b) }"
    return onnx_model(text, {"w": normal(8, 8), "v": normal(8, 8, seed=1)})


def without(*keys: str) -> Callable[[Model], float]:
    """10 ms, a fifth less for each of these session entries, a fifth more for all others."""

    def milliseconds(model: Model) -> float:
        found = 10.0
        for key, value in model.session.items():
            found *= 0.8 if f"{key}={value}" in keys else 1.25
        return found

    return milliseconds


def tuned(
    monkeypatch: pytest.MonkeyPatch,
    milliseconds: Callable[[Model], float],
    model: Model | onnx.ModelProto,
    target: Target | None = None,
    **options: Any,
) -> tuple[Any, Speeds]:
    speeds = Speeds(milliseconds).installed(monkeypatch)
    return run_pass(TuneSession(**options), model, target=target or Target()), speeds


@pytest.fixture(autouse=True)
def four_quiet_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optkit.passes.tune_session.others_share", lambda: 0.05)
    monkeypatch.setattr("optkit.passes._session_options.usable_threads", lambda: 4)
    monkeypatch.setattr("optkit.passes._session_options.machine", lambda: type("M", (), {"affinity": 8}))


def test_what_is_surely_faster_is_kept_and_the_file_stays(monkeypatch: pytest.MonkeyPatch):
    model = open_any(gelus())
    outcome, speeds = tuned(monkeypatch, without(f"{THREADS}=1", f"{SPINNING}=0"), model)
    assert outcome.changed == 2
    assert outcome.model.path == model.path
    assert outcome.session == {THREADS: "1", SPINNING: "0"}
    assert outcome.changes == [("session", f"{THREADS}=1"), ("session", f"{SPINNING}=0")]
    kept = {decision.what: (decision.kept, decision.reason) for decision in outcome.decisions}
    assert kept == {
        "without BiasGeluFusion": (False, "slower"),
        f"{THREADS}=1": (True, "faster"),
        f"{THREADS}=2": (False, "slower"),
        f"{THREADS}=8": (False, "slower"),
        f"{SPINNING}=0": (True, "faster"),
        "session.set_denormal_as_zero=1": (False, "slower"),
        "enable_cpu_mem_arena=0": (False, "slower"),
    }
    assert {rules.confidence for rules in speeds.rules} == {0.95}


def test_an_optimizer_that_changes_the_model_is_left_out_where_that_is_faster(monkeypatch: pytest.MonkeyPatch):
    outcome, _ = tuned(monkeypatch, without(f"{DISABLED}=BiasGeluFusion"), gelus(), candidates=("optimizers",))
    assert outcome.session == {DISABLED: "BiasGeluFusion"}
    assert [decision.what for decision in outcome.decisions] == ["without BiasGeluFusion"]


def test_an_optimizer_that_was_left_out_is_let_in_where_that_is_faster(monkeypatch: pytest.MonkeyPatch):
    model = replace(open_any(gelus()), session={DISABLED: "BiasGeluFusion;SkipLayerNormFusion"})
    outcome, _ = tuned(monkeypatch, without(f"{DISABLED}=SkipLayerNormFusion"), model, candidates=("optimizers",))
    assert [decision.what for decision in outcome.decisions] == ["with BiasGeluFusion"], "the other one finds nothing"
    assert outcome.session == {DISABLED: "SkipLayerNormFusion"}
    alone = replace(model, session={DISABLED: "BiasGeluFusion"})
    outcome, _ = tuned(monkeypatch, without(f"{DISABLED}="), alone, candidates=("optimizers",))
    assert outcome.session == {DISABLED: ""}
    assert session_of(model.path, config=outcome.session).run(None, {"x": normal(3, 2, 8)})[0].shape == (3, 2, 8)


def test_no_gain_changes_nothing_and_says_what_was_tried(monkeypatch: pytest.MonkeyPatch):
    model = open_any(gelus())
    outcome, _ = tuned(monkeypatch, without(), model)
    assert (outcome.changed, outcome.model, outcome.notes) == (0, model, [NOTHING])
    assert len(outcome.decisions) == 7


def test_threads_are_not_tried_where_the_target_states_them(monkeypatch: pytest.MonkeyPatch):
    outcome, _ = tuned(monkeypatch, without(), gelus(), Target(threads=2), candidates=("threads", "spinning"))
    assert [decision.what for decision in outcome.decisions] == [f"{SPINNING}=0"]


def test_beside_busy_neighbours_nothing_is_tried_that_depends_on_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("optkit.passes.tune_session.others_share", lambda: 0.6)
    outcome, _ = tuned(monkeypatch, without(f"{THREADS}=1", f"{SPINNING}=0"), gelus())
    tried = [decision.what for decision in outcome.decisions]
    assert tried == ["without BiasGeluFusion", "session.set_denormal_as_zero=1", "enable_cpu_mem_arena=0"]
    assert outcome.notes[1:] == ["threads, spinning not tried: other processes use 60% of the cores"]
    assert not outcome.lasting, "another day it may be tried"
    nothing, _ = tuned(monkeypatch, without(), gelus(), candidates=("threads",))
    assert nothing.notes[0] == NOT_TRIED
    assert tuned(monkeypatch, without(), gelus(), candidates=("memory_arena",))[0].notes == [NOTHING]


def test_what_neighbours_use_is_looked_up_on_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds, percpu: asked.append(seconds) or [100.0, 10.0, 50.0])
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda self: [1, 2], raising=False)
    assert (others_share(), asked) == (pytest.approx(0.3), [LOOK_S])


@pytest.mark.parametrize(("model", "threads", "tried"), [(branches, 0, True), (branches, 1, False), (gelus, 0, False)])
def test_branches_run_in_parallel_only_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, model: Callable[[], onnx.ModelProto], threads: int, tried: bool
):
    def parallel(model: Model) -> float:
        return 5.0 if model.session.get("execution_mode") == "parallel" else 10.0

    opened = open_any(model())
    assert has_branches(opened.path) == (model is branches)
    outcome, _ = tuned(monkeypatch, parallel, opened, Target(threads=threads), candidates=("parallel",))
    assert outcome.session == ({"execution_mode": "parallel", "inter_op_num_threads": "4"} if tried else {})


def test_fixed_sizes_are_tried_only_when_asked_for(monkeypatch: pytest.MonkeyPatch):
    def fixed(model: Model) -> float:
        return 5.0 if "free_dimension_override_by_name:n" in model.session else 10.0

    target = Target(shapes={"n": 3, "other": 5})
    assert tuned(monkeypatch, fixed, gelus(), target, candidates=())[0].changed == 0
    outcome, _ = tuned(monkeypatch, fixed, gelus(), target, candidates=(), fixed_shapes=True)
    assert outcome.session == {"free_dimension_override_by_name:n": "3"}
    assert [decision.what for decision in outcome.decisions] == ["fixed sizes: n 3"]


def test_on_cuda_channels_last_are_tried_and_what_concerns_cpus_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("optkit.passes._session_options.active_optimizers", lambda *_: ("SkipLayerNormFusion",))
    nhwc = "provider_option:prefer_nhwc"
    outcome, _ = tuned(monkeypatch, without(f"{nhwc}=1"), gelus(), Target("cuda"))
    assert [decision.what for decision in outcome.decisions] == ["without SkipLayerNormFusion", f"{nhwc}=1"]
    assert outcome.session == {nhwc: "1"}


def test_without_timing_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    speeds = Speeds(without()).installed(monkeypatch)
    job = make_job(tmp_path, open_any(gelus()), bench=False)
    (done,) = run_steps(job, [Step(id="tune", options=TuneSession())], Policy(bench=False))
    assert (done.record.status, done.record.reason) == ("no effect", NOT_TIMED)
    assert speeds.asked == []


def test_a_cached_choice_is_not_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Stopwatch(1.0).installed(monkeypatch)  # for the pipeline's own timing of the step
    speeds = Speeds(without(f"{SPINNING}=0")).installed(monkeypatch)
    text = "g (float[batch,4] x) => (float[batch,4] y) { y = Gelu(x) }"
    job = make_job(tmp_path, open_any(onnx_model(text)))
    steps = [Step(id="tune", options=TuneSession(candidates=("spinning",)))]
    first, again = (run_steps(job, steps, Policy())[0] for _ in range(2))
    assert len(speeds.asked) == 2
    assert (first.record.cached, again.record.cached) == (False, True)
    assert again.after.session == first.after.session == {SPINNING: "0"}
    assert again.record.decisions == first.record.decisions
    other = replace(job, splits={"search": MemoryData("search", arrays(8, 1)), "evaluation": job.splits["evaluation"]})
    assert run_steps(other, steps, Policy())[0].record.cached is False, "timed on other inputs"


def test_where_the_log_tells_nothing_no_optimizer_is_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("optkit.passes._session_options.active_optimizers", lambda *_: "the log is empty")
    outcome, _ = tuned(monkeypatch, without(f"{SPINNING}=0"), gelus(), candidates=("optimizers", "spinning"))
    assert outcome.notes == ["onnxruntime's own optimizers are not tried: the log is empty"]
    assert outcome.session == {SPINNING: "0"}


def test_the_log_names_what_changes_a_model():
    path = open_any(gelus()).path
    assert "BiasGeluFusion" in active_optimizers(path, "cpu", {DISABLED: "BiasGeluFusion", THREADS: "1"})
    assert "BiasGeluFusion" not in active_optimizers(open_any(branches()).path, "cpu", {})
    broken = path.with_name("broken.onnx")
    broken.write_bytes(b"no model")
    assert "made no session: " in str(active_optimizers(broken, "cpu", {}))


def test_a_log_without_a_word_about_optimizers_is_told_from_one_where_nothing_changed(
    monkeypatch: pytest.MonkeyPatch,
):
    line = "[I:onnxruntime:, graph_transformer.cc:15 Apply] GraphTransformer {} modified: {} with status: OK\n"
    log = line.format("A", 1) + line.format("B", 0) + line.format("A", 1) + line.format("C", 1)
    assert [read_log(log), read_log(line.format("B", 0)), read_log("nothing")] == [("A", "C"), (), None]
    done: list[Any] = [subprocess.CompletedProcess([], 0, b"", b"nothing")]
    monkeypatch.setattr("subprocess.run", lambda *_, **__: done[0])
    assert "does not tell" in str(active_optimizers(Path("m"), "cpu", {}))
    done[0] = subprocess.CompletedProcess([], 0, b"", line.format("B", 0).encode())
    assert active_optimizers(Path("m"), "cpu", {}) == ()


def test_options_add_up():
    session = {DISABLED: "A;B", "x.y": "1"}
    options = [Option("with A", optimizer="A"), Option("without C", optimizer="C"), Option("z", {"z": "2"})]
    assert with_options(session, options) == {DISABLED: "B;C", "x.y": "1", "z": "2"}
    assert with_options(session, []) == session
    assert with_options({}, []) == {}


def test_the_optimizers_have_these_names_in_onnxruntime():
    config = {DISABLED: "BiasGeluFusion"}
    folder = open_any(gelus()).path.parent
    for disabled, fused in (({}, True), (config, False)):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        for key, value in disabled.items():
            options.add_session_config_entry(key, value)
        ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        kinds = {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}
        assert ("BiasGelu" in kinds) == fused
