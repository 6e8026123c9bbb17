"""The benchmarks' makers, scores and tool rows, as far as they need no peer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import accuracy, tool
from benchmarks.bench_self import Run
from benchmarks.makers import command, olive, optkit_
from benchmarks.scores import classes
from benchmarks.subjects import Product, Subject

TRACEBACK = """Loading ONNX model from m.onnx
Warning: Quantization for rtn int8 requires dataset.
Traceback (most recent call last):
  File "x.py", line 3, in <module>
onnxruntime.capi.onnxruntime_pybind11_state.Fail: [ONNXRuntimeError] : 1 : FAIL : Load model failed
[2026-11-22 07:44:35,346] [INFO] [engine.py:476] Please install tabulate
No output model produced. Please check the log for details.
"""


def relu(path: Path, scale: float, extra: str = "") -> Path:
    """``output = Relu(x * scale)`` float32[batch, 3]; ``extra`` is a float32 input added to x."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])]
    nodes = [helper.make_node("Mul", ["x", "scale"], ["scaled"]), helper.make_node("Relu", ["scaled"], ["output"])]
    if extra:
        inputs.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, ["batch", 3]))
        nodes.insert(0, helper.make_node("Add", ["x", extra], ["moved"]))
        nodes[1].input[0] = "moved"
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])]
    weights = [numpy_helper.from_array(np.array(scale, np.float32), "scale")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def a_subject(model: Path, evaluation: tuple) -> Subject:
    labels = np.concatenate([batch["x"] for batch in evaluation]).argmax(axis=1)
    return Subject(
        name=model.parent.name,
        title="",
        model=model,
        factory=None,
        signature=None,
        baseline=model,
        points=(),
        calibration=None,
        evaluation=evaluation,
        score=classes("output", labels),
        headline="top1",
        feeds=lambda _: [],
    )


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            TRACEBACK,
            "onnxruntime.capi.onnxruntime_pybind11_state.Fail: [ONNXRuntimeError] : 1 : FAIL : Load model failed",
        ),
        (
            "error: The result misses its limits.\nExpected: less\nFix: change the recipe\n",
            "error: The result misses its limits.",
        ),
        ("one\nlast words\n\n", "last words"),
        ("", "it said nothing"),
    ],
)
def test_blame_finds_the_line_that_says_why(output, line):
    assert command.blame(output) == line


def test_a_command_that_fails_is_a_product_with_its_exit_code_and_reason(tmp_path):
    def make(place):
        command.run([sys.executable, "-c", "raise ValueError('no such operator')"], place)

    found = command.product("X int8", "X", tmp_path, "x", "key", make, note="x quantize")
    assert (found.path, found.failed, found.note) == (None, "exit 1: ValueError: no such operator", "x quantize")


def test_a_command_that_says_nothing_was_wrong_but_leaves_no_model_failed_too(tmp_path):
    def make(place):
        command.run([sys.executable, "-c", "print('ConnectionError: no hub'); print('Done.')"], place)
        command.require(place / "model.onnx")

    found = command.product("X int8", "X", tmp_path, "x", "key", make)
    assert found.failed == "exit 0, no model: ConnectionError: no hub"


def test_a_product_tells_how_it_was_made_and_is_kept(tmp_path):
    calls = []

    def make(place):
        calls.append(place)
        (place / "model.onnx").write_bytes(b"")
        (place / command.NOTE).write_text("value_info removed\nnothing was quantized\n")

    first, second = (command.product("X", "X", tmp_path, "x", "key", make, note="x quantize") for _ in range(2))
    assert first == second
    assert first.note == "x quantize; value_info removed; nothing was quantized"
    assert first.path == calls[0] / "model.onnx"
    assert len(calls) == 1


def test_a_quantizer_that_did_nothing_is_noted(tmp_path):
    command.note_if_unquantized(relu(tmp_path / "model.onnx", 1.0))
    assert (tmp_path / command.NOTE).read_text() == "nothing was quantized\n"


def test_a_quantized_operator_in_a_branch_counts(tmp_path):
    branch = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["c"])], "then", [], [])
    node = helper.make_node("If", ["condition"], ["c"], then_branch=branch, else_branch=branch)
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [])), tmp_path / "model.onnx")
    command.note_if_unquantized(tmp_path / "model.onnx")
    assert not (tmp_path / command.NOTE).exists()


LIMITS = [
    {"name": "cosine", "measured": 0.9851},
    {"name": "max_error", "measured": 0.02},
    {"name": "agreement", "measured": None},
    {"name": "agreement", "measured": 0.97},
]


@pytest.mark.parametrize(
    ("exact", "said"), [(False, "cosine 0.9851 < 0.99, agreement 0.9700 < 0.98"), (True, "max_error 0.02 > 0.001")]
)
def test_what_optkit_would_refuse_by_default_is_said(exact, said):
    assert optkit_.refused(LIMITS, exact) == said


def test_nothing_is_refused_where_all_limits_hold():
    assert optkit_.refused([{"name": "cosine", "measured": 0.995}], False) == ""


def test_inputs_that_an_export_added_become_zeros(tmp_path):
    import onnxruntime

    baseline, path = relu(tmp_path / "baseline.onnx", 2.0), relu(tmp_path / "model.onnx", 2.0, extra="token_type_ids")
    olive.fill_inputs(path, baseline)
    x = np.array([[1.0, -2.0, 3.0]], np.float32)
    found = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, [[2.0, 0.0, 6.0]])
    assert (tmp_path / command.NOTE).read_text() == "its input token_type_ids is filled with zeros\n"


def test_a_model_with_the_baselines_inputs_stays_as_it_is(tmp_path):
    path = relu(tmp_path / "model.onnx", 2.0)
    before = path.read_bytes()
    olive.fill_inputs(path, path)
    assert path.read_bytes() == before


def test_the_workflow_names_model_data_and_output(tmp_path):
    written = olive.workflow(tmp_path / "m.onnx", tmp_path / "c.npz", tmp_path / "out")
    assert json.loads(json.dumps(written)) == written
    assert written["input_model"]["model_path"] == str(tmp_path / "m.onnx")
    assert written["data_configs"][0]["load_dataset_config"]["params"] == {"path": str(tmp_path / "c.npz")}
    assert written["passes"] == {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}}


def test_scores_compare_a_product_with_the_original_and_the_labels(tmp_path):
    batches = tuple({"x": np.eye(3, dtype=np.float32)[[index, 2]]} for index in range(2))
    subject = a_subject(relu(tmp_path / "model.onnx", 1.0), batches)
    wrong = Product("X", "X", relu(tmp_path / "wrong.onnx", -1.0), "onnxruntime")
    assert accuracy.rows(subject) == 4
    # Relu(-x) is zero everywhere: its first choice is class 0, which one row of four has.
    assert accuracy.scores(subject, wrong) == {"agreement": 0.25, "top1": 0.25}


def test_nan_is_refused_only_where_the_original_has_none():
    fine, broken = np.ones(2, np.float32), np.array([1, np.nan], np.float32)
    accuracy.require_finite([{"a": broken, "n": np.ones(1, np.int64)}], [{"a": broken, "n": np.ones(1, np.int64)}])
    with pytest.raises(RuntimeError, match="NaN or Inf in output a, 1 of 2 batches"):
        accuracy.require_finite([{"a": fine}, {"a": fine}], [{"a": fine}, {"a": broken}])


def test_a_tools_row_has_medians_and_the_worst_exit_code():
    task = tool.Task("start-up", "x --help", lambda _: [], "bare")
    runs = [Run(3.0, 300.4, 0, ""), Run(1.0, 100.0, 2, ""), Run(2.0, 250.0, 0, "")]
    assert tool.row(task, runs) == {
        "task": "start-up",
        "tool": "x --help",
        "seconds": 2.0,
        "peak MB": 250,
        "exit code": 2,
        "note": "bare",
    }


@pytest.mark.parametrize(("file", "code"), [("made.txt", 0), ("other.txt", -1)])
def test_a_tool_that_leaves_nothing_did_not_succeed(tmp_path, file, code):
    task = tool.Task("t", "t", lambda at: ["touch", str(at / "made.txt")], writes=file)
    assert tool.once(task, tmp_path / "work").code == code
