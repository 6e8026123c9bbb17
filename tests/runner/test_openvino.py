"""OpenVINO runs the same files, with the same names, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("openvino")

from optkit.errors import DataError, ModelError, PackageError, ProviderError, UsageError
from optkit.model.model import Model
from optkit.model.signature import Signature, TensorSpec
from optkit.model.target import Target
from optkit.runner import openvino as room
from optkit.runner.openvino import PRECISION, OpenVinoRunner, import_openvino, reason
from tests.helpers import fresh_dir, onnx_model, open_any, run_onnx
from tests.runner import toy
from tests.runner.toy import W, X

CPU = Target(threads=1, engine="openvino")
F32 = {PRECISION: "f32"}
BOTH = "float[batch,3] y, float[batch,3] h"


def opened(text: str, weights: dict[str, np.ndarray] | None = None) -> Model:
    return open_any(onnx_model(text, weights))


@pytest.fixture(scope="module")
def mlp() -> Model:
    return open_any(toy.mlp(BOTH))


@pytest.fixture(scope="module")
def runner(mlp: Model) -> OpenVinoRunner:
    return OpenVinoRunner(mlp, CPU, session=F32)


def test_outputs_by_name_in_the_models_order_for_any_batch(runner: OpenVinoRunner) -> None:
    for rows in (5, 1, 3, 0):
        found = runner.run({"x": X[:rows]})
        assert tuple(found) == runner.outputs == ("y", "h")
        np.testing.assert_allclose(found["y"], toy.expected(X[:rows]), atol=1e-5, rtol=0)
        np.testing.assert_allclose(found["h"], X[:rows] @ W, atol=1e-5, rtol=0)


def test_results_stay_what_they_are_when_it_runs_again(runner: OpenVinoRunner) -> None:
    first = runner.run({"x": X})["h"]
    runner.run({"x": X * 2})
    np.testing.assert_allclose(first, X @ W, atol=1e-5, rtol=0)


def test_bound_calls_keep_their_own_inputs(runner: OpenVinoRunner) -> None:
    calls = [runner.bind({"x": X[:2].astype(np.float64) * k}) for k in (1, 2)]  # converted copies, owned by the calls
    for k in (1, 2):
        found = list(calls[k - 1]().values())  # type: ignore[attr-defined]
        np.testing.assert_allclose(found[1], X[:2] @ W * k, atol=1e-5, rtol=0)
    with pytest.raises(DataError):
        runner.bind({})


def test_what_is_told_about_it(runner: OpenVinoRunner, mlp: Model) -> None:
    about = runner.about
    assert (about.engine, about.provider, about.precision, about.spinning) == ("openvino", "cpu", "f32", None)
    assert about.version[:4].isdigit() and "-" not in about.version
    assert about.session == F32
    assert about.session_s > 0 and about.load_s > 0 and about.import_s >= 0
    compiled = runner._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("PERFORMANCE_HINT") == "LATENCY"
    assert OpenVinoRunner(mlp, CPU).about.precision in {"f32", "bf16"}  # its own choice, by the processor


def test_entries_of_onnxruntime_are_left_alone(mlp: Model) -> None:
    session = {"session.intra_op.allow_spinning": "0", "openvino.ENABLE_CPU_PINNING": "NO"}
    made = OpenVinoRunner(mlp, CPU, session=session)
    assert made.about.session == {"openvino.ENABLE_CPU_PINNING": "NO"}
    assert made._compiled.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize(
    ("entries", "words"),
    [({"openvino.FOO": "1"}, "Unsupported property FOO"), ({PRECISION: "int3"}, "Wrong value int3")],
)
def test_settings_it_does_not_have(mlp: Model, entries: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        OpenVinoRunner(mlp, CPU, session=entries)


def test_another_precision_than_asked_for_is_refused(mlp: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_type_name", lambda kind: "f32")
    with pytest.raises(ProviderError, match="would compute in f32 on this processor, not in bf16"):
        OpenVinoRunner(mlp, CPU, session={PRECISION: "bf16"})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "input 'x' is missing"),
        ({"x": X, "z": X}, "'z' is no input"),
        ({"x": X.astype(np.int64)}, "takes float32, but the data are int64"),
        ({"x": X[:, :3]}, r"input 'x' has shape \[5, 3\]"),
        ({"x": X[0]}, r"input 'x' has shape \[4\]"),
    ],
)
def test_inputs_that_do_not_fit(runner: OpenVinoRunner, inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        runner.run(inputs)
    assert caught.value.fix and "x" in caught.value.expected


def test_dtypes_are_those_of_the_file_and_unused_inputs_stay() -> None:
    model = opened(
        """g (float16[n] h, int64[n] i, bool[n] q, float s, uint8[n] u, int32[n] unused)
        => (float16[n] h2, int64[n] j, bool[n] p, float[n] same, uint8[n] v) {
            h2 = Neg(h) j = Abs(i) p = Not(q) c = Cast<to = 1>(h) same = Mul(c, s) v = Identity(u)
        }"""
    )
    inputs = {
        "i": np.array([-7, 2**40]),
        "h": np.array([1.5, -2], np.float16),
        "q": np.array([True, False]),
        "s": np.array(2.0, np.float32),
        "u": np.array([0, 255], np.uint8),
        "unused": np.array([1, 2], np.int32),
    }
    with OpenVinoRunner(model, CPU, session=F32) as runner:
        found, expected = runner.run(inputs), run_onnx(model, inputs)
    assert list(found) == ["h2", "j", "p", "same", "v"]
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        if name != "j":
            np.testing.assert_array_equal(found[name], array)
    assert found["j"][0] == 7


def test_bfloat16_goes_in_and_comes_out_as_float32() -> None:
    model = opened("g (bfloat16[n] x) => (bfloat16[n] y) { f = Cast<to = 1>(x) d = Add(f, f) y = Cast<to = 16>(d) }")
    found = OpenVinoRunner(model, CPU).run({"x": np.array([1.0, -2.5, 1.0039062], np.float32)})["y"]
    assert found.dtype == np.float32 and found.tolist() == [2.0, -5.0, 2.0]


def test_branches() -> None:
    model = opened(
        """g (bool c, float[n] x) => (float[n] y) {
            y = If (c) <
                then_branch = t () => (float[n] a) { a = Neg(x) },
                else_branch = e () => (float[n] b) { b = Abs(x) }
            >
        }"""
    )
    runner = OpenVinoRunner(model, CPU)
    assert runner.run({"c": np.array(True), "x": X[0]})["y"].tolist() == (-X[0]).tolist()
    assert runner.run({"c": np.array(False), "x": X[0]})["y"].tolist() == np.abs(X[0]).tolist()


def test_int8_with_quantize_and_dequantize() -> None:
    model = opened(
        """g (float[n,4] x) => (float[n,3] y) {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            f = DequantizeLinear(w, t)
            y = MatMul(d, f)
        }""",
        {
            "s": np.array(0.02, np.float32),
            "z": np.array(128, np.uint8),
            "t": np.array(0.01, np.float32),
            "w": np.random.default_rng(0).integers(-127, 128, (4, 3), np.int8),
        },
    )
    found = OpenVinoRunner(model, CPU, session=F32).run({"x": X})["y"]
    np.testing.assert_allclose(found, run_onnx(model, {"x": X})["y"], atol=1e-5, rtol=0)


def test_external_data_and_openvinos_own_files(tmp_path: Path, mlp: Model) -> None:
    path = tmp_path / "model.onnx"
    toy.save_apart(toy.mlp(BOTH), path)
    openvino = import_openvino()
    openvino.save_model(openvino.Core().read_model(str(mlp.path)), str(tmp_path / "ir.xml"), compress_to_fp16=False)
    for file in (path, tmp_path / "ir.xml"):
        with OpenVinoRunner(Model(file, "onnx", "onnx"), CPU, session=F32) as runner:
            found = runner.run({"x": X})
        assert list(found) == ["y", "h"]
        np.testing.assert_allclose(found["y"], toy.expected(), atol=1e-5, rtol=0)


def test_outputs_without_names_are_called_as_the_signature_says(tmp_path: Path) -> None:
    openvino = import_openvino()
    from openvino import opset13 as ops

    given = ops.parameter([-1, 4], np.float32, name="x")
    openvino.save_model(openvino.Model([ops.abs(given), ops.relu(given)], [given]), str(tmp_path / "ir.xml"))
    model = Model(tmp_path / "ir.xml", "onnx", "onnx")
    assert all(name.startswith("Result_") for name in OpenVinoRunner(model, CPU).outputs)
    named = model.with_signature(Signature(outputs=tuple(TensorSpec(name, "float32", None) for name in "yz")))
    found = OpenVinoRunner(named, CPU, session=F32).run({"x": X})
    np.testing.assert_array_equal(found["y"], np.abs(X))
    np.testing.assert_array_equal(found["z"], np.maximum(X, 0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (string[n] s) => (string[n] t) { t = Identity(s) }", "takes or gives strings"),
        (
            "g (float[n] x, int64[k] s) => (float[m] y) { y = Reshape(x, s) }",
            "compile the model: .*dynamic rank",
        ),
        (
            "g (float[2,3] x, float[4,5] z) => (float[2,3] y) { y = MatMul(x, z) }",
            "read the model: Incompat.*; Conv",
        ),
    ],
)
def test_models_it_refuses(text: str, words: str) -> None:
    path = fresh_dir() / "m.onnx"
    onnx.save(onnx_model(text), path)
    with pytest.raises(ModelError, match=words) as caught:
        OpenVinoRunner(Model(path, "onnx", "onnx"), CPU)
    assert caught.value.fix == "run it on onnxruntime: leave @openvino out"
    assert "\n" not in caught.value.message


def test_a_missing_file_and_a_closed_runner(mlp: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        OpenVinoRunner(Model(tmp_path / "none.onnx", "onnx", "onnx"), CPU)
    runner = OpenVinoRunner(mlp, CPU)
    runner.close()
    runner.close()
    for call in (lambda: runner.run({"x": X}), lambda: runner.about):
        with pytest.raises(ModelError, match="closed"):
            call()


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(PackageError, match="openvino cannot be imported") as caught:
        import_openvino()
    assert caught.value.fix == "pip install 'optkit[openvino]'"


def test_messages_become_one_line() -> None:
    text = (
        "Exception from src/core.cpp:84:\nCheck 'false' failed at src/x.cpp:151:\nFrontEnd API failed with X:\n"
        "Model wasn't fully converted. Failed operations detailed log:\n-- Conv-16 with a message:\n"
        "While validating ONNX node '<Node(Conv): y>': Check 'rank' failed at y.cpp:3:\nThe rank has to be known.\n\n"
        "Summary:\n-- Conversion is failed for: Conv-16\n\n"
    )
    assert reason(RuntimeError(text)) == "The rank has to be known; Conversion is failed for: Conv-16"
    assert reason(RuntimeError("Plain.")) == "Plain"
    assert reason(RuntimeError("")) == "RuntimeError"


SILENT = """
import sys
events = []
WATCHED = {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.mkdir"}
def hook(event, args):
    if event in WATCHED or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wxa+")):
        events.append((event, args))
sys.addaudithook(hook)
sys.dont_write_bytecode = True
import numpy as np
from optkit.model.model import Model
from optkit.model.signature import Signature, TensorSpec
from optkit.model.target import Target
from optkit.runner.open import open_runner
with open_runner(Model.open(sys.argv[1]), Target(threads=1, engine="openvino")) as runner:
    runner.run({"x": np.ones((2, 4), np.float32)})
print(events, "openvino_telemetry" in sys.modules, "onnxruntime" in sys.modules)
"""


def test_nothing_is_sent_or_written(mlp: Model, tmp_path: Path) -> None:
    """OpenVINO's package tells Intel of each import and writes a client's id, unless its telemetry is kept out."""
    root = Path(__file__).parents[2]
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(mlp.path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[] False False"
    assert list(tmp_path.iterdir()) == []
