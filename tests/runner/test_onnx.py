from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from optkit.errors import DataError, ModelError, ProviderError
from optkit.model.model import Model
from optkit.model.signature import Signature, TensorSpec
from optkit.model.target import Target
from optkit.runner import onnx as room
from optkit.runner.onnx import OnnxRunner
from tests.helpers import onnx_model
from tests.runner import toy
from tests.runner.toy import W, X

CPU = Target("cpu", threads=1)


def saved(proto: onnx.ModelProto, folder: Path, **facts: object) -> Model:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return Model(path, "onnx", "onnx", **facts)  # type: ignore[arg-type]


@pytest.fixture
def mlp(tmp_path: Path) -> Model:
    return saved(toy.mlp(), tmp_path)


def test_outputs_by_name_equal_numpys(mlp: Model) -> None:
    with OnnxRunner(mlp, CPU) as runner:
        assert runner.outputs == ("y",)
        assert runner.provider == "cpu"
        found = runner.run({"x": X})
    np.testing.assert_allclose(found["y"], toy.expected(), atol=1e-5, rtol=0)


def test_a_bound_call_computes_the_same(mlp: Model) -> None:
    runner = OnnxRunner(mlp, CPU)
    np.testing.assert_array_equal(runner.bind({"x": X})()[0], runner.run({"x": X})["y"])  # type: ignore[index]
    with pytest.raises(DataError):
        runner.bind({})


def test_a_bound_call_says_what_the_engine_finds_and_ends_with_the_runner(mlp: Model) -> None:
    runner = OnnxRunner(mlp, CPU)
    wrong, right = runner.bind({"x": X[0]}), runner.bind({"x": X})
    with pytest.raises(DataError, match="do not fit the model"):
        wrong()
    runner.close()
    with pytest.raises(ModelError, match="closed"):
        right()


def test_what_is_told_about_it(mlp: Model) -> None:
    import onnxruntime as ort

    about = OnnxRunner(mlp, CPU).about
    assert (about.engine, about.provider, about.version) == ("onnxruntime", "cpu", ort.__version__)
    assert about.load_s == 0 and about.session_s > 0 and 0 <= about.import_s < 0.1
    assert (about.spinning, about.precision, about.session) == (True, "", {})
    assert sum(about.placement["cpu"].values()) in {2, 3}  # with or without the Add fused
    quiet = OnnxRunner(mlp, CPU, session={"session.intra_op.allow_spinning": "0"}).about
    assert (quiet.spinning, quiet.session) == (False, {"session.intra_op.allow_spinning": "0"})


def test_inner_tensors_and_outputs_in_the_order_asked_for(mlp: Model) -> None:
    with OnnxRunner(mlp, CPU, outputs=["r", "y", "h"]) as runner:
        found = runner.run({"x": X})
    assert list(found) == ["r", "y", "h"]
    np.testing.assert_allclose(found["h"], X @ W, atol=1e-5, rtol=0)
    np.testing.assert_allclose(found["r"], np.maximum(X @ W, 0), atol=1e-5, rtol=0)


def test_declared_outputs_alone_need_no_second_look_at_the_file(mlp: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    known = mlp.with_signature(Signature(outputs=(TensorSpec("y", "float32", ("batch", 3)),)))
    monkeypatch.delattr(room, "_with_outputs")
    assert OnnxRunner(known, CPU, outputs=["y"]).outputs == ("y",)


def test_unknown_tensor_names_are_refused(mlp: Model) -> None:
    with pytest.raises(ModelError, match="no tensor named nope, neither") as caught:
        OnnxRunner(mlp, CPU, outputs=["h", "nope", "neither"])
    assert caught.value.expected == "names of its outputs (y) or of inner tensors of its main graph"


def test_inner_tensors_beside_external_data_in_a_read_only_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    toy.save_apart(toy.mlp(), path)
    before = sorted(tmp_path.iterdir())
    tmp_path.chmod(0o500)
    try:
        found = OnnxRunner(Model(path, "onnx", "onnx"), CPU, outputs=["h"]).run({"x": X})
    finally:
        tmp_path.chmod(0o700)
    np.testing.assert_allclose(found["h"], X @ W, atol=1e-5, rtol=0)
    assert sorted(tmp_path.iterdir()) == before == [path, tmp_path / "w.data"]


def test_ort_files_run_but_show_no_inner_tensors(mlp: Model, tmp_path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(mlp.path), options, providers=["CPUExecutionProvider"])
    model = Model(tmp_path / "model.ort", "ort", "ort")
    np.testing.assert_allclose(OnnxRunner(model, CPU).run({"x": X})["y"], toy.expected(), atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="no tensor named h"):
        OnnxRunner(model, CPU, outputs=["h"])


def test_placement_names_every_node(mlp: Model) -> None:
    runner = OnnxRunner(mlp, CPU, optimize=False)
    assert runner.placement() == {"cpu": {"Add": 1, "MatMul": 1, "Relu": 1}}


def test_session_entries_are_merged_and_the_argument_wins(tmp_path: Path) -> None:
    model = saved(toy.mlp(), tmp_path, session={"a.b": "1", "c.d": "1"})
    options = OnnxRunner(model, Target(threads=3), session={"c.d": "2"}).session.get_session_options()
    assert (options.get_session_config_entry("a.b"), options.get_session_config_entry("c.d")) == ("1", "2")
    assert options.intra_op_num_threads == 3


def test_a_missing_provider_is_refused(mlp: Model) -> None:
    with pytest.raises(ProviderError, match="'migraphx' is not there"):
        OnnxRunner(mlp, Target("migraphx"))


def test_a_provider_that_does_not_start_is_refused_instead_of_the_cpu(
    mlp: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with an onnxruntime-gpu whose CUDA libraries are missing: it lists the provider, then opens a CPU session."""
    monkeypatch.setattr(room, "require", lambda name: "CUDAExecutionProvider")
    monkeypatch.setattr(room, "built_in", lambda: {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"})
    with pytest.warns(UserWarning, match="not in available"), pytest.raises(ProviderError) as caught:
        OnnxRunner(mlp, Target("cuda"))
    assert caught.value.message.startswith("The execution provider 'cuda' did not start")
    assert capsys.readouterr().out == ""


def test_a_missing_or_broken_file_is_the_models_fault(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        OnnxRunner(Model(tmp_path / "none.onnx", "onnx", "onnx"), CPU)
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    with pytest.raises(ModelError, match=r"cannot load the model: .*Protobuf parsing failed"):
        OnnxRunner(Model(tmp_path / "bad.onnx", "onnx", "onnx"), CPU)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "input 'x' is missing"),
        ({"x": X, "z": X}, "'z' is no input"),
        ({"x": X.astype(np.int64)}, "takes float32, but the data are int64"),
        ({"x": X[:, :3]}, "Got: 3 Expected: 4"),
        ({"x": X[0]}, "Got: 1 Expected: 2"),
    ],
)
def test_inputs_that_do_not_fit_are_the_datas_fault(mlp: Model, inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        OnnxRunner(mlp, CPU).run(inputs)
    assert caught.value.fix


def test_floats_change_width_and_whole_numbers_only_where_no_value_changes(tmp_path: Path) -> None:
    model = saved(
        onnx_model("g (float[n] x, int32[n] i) => (float[n] y, int32[n] j) { y = Neg(x) j = Abs(i) }"), tmp_path
    )
    runner = OnnxRunner(model, CPU)
    found = runner.run({"x": np.array([1.5, -2.0]), "i": np.array([-7, 3])})
    assert found["y"].dtype == np.float32 and found["j"].dtype == np.int32
    assert found["y"].tolist() == [-1.5, 2.0] and found["j"].tolist() == [7, 3]
    with pytest.raises(DataError, match="takes int32, but the data are int64"):
        runner.run({"x": np.array([1.5]), "i": np.array([2**40])})


def test_scalars_stay_scalars(tmp_path: Path) -> None:
    model = saved(onnx_model("g (float[n] x, float s) => (float[n] y) { y = Mul(x, s) }"), tmp_path)
    found = OnnxRunner(model, CPU).run({"x": np.ones(3, np.float32), "s": np.array(2.0, np.float32)})
    assert found["y"].tolist() == [2.0, 2.0, 2.0]


def test_bfloat16_goes_in_and_comes_out_as_float32(tmp_path: Path) -> None:
    text = "g (bfloat16[n] x) => (bfloat16[n] y) { f = Cast<to = 1>(x) d = Add(f, f) y = Cast<to = 16>(d) }"
    runner = OnnxRunner(saved(onnx_model(text), tmp_path), CPU)
    found = runner.run({"x": np.array([1.0, -2.5, 1.0039062], np.float32)})["y"]
    assert found.dtype == np.float32
    assert found.tolist() == [2.0, -5.0, 2.0]  # 1.0039062 lies half way between bfloat16 1 and 1.0078125; ties to even
    assert runner.run({"x": np.zeros(0, np.float32)})["y"].shape == (0,)


def test_strings_and_halves(tmp_path: Path) -> None:
    model = saved(
        onnx_model("g (string[n] s, float16[n] x) => (string[n] t, float16[n] y) { t = Identity(s) y = Neg(x) }"),
        tmp_path,
    )
    found = OnnxRunner(model, CPU).run({"s": np.array(["a", "b"]), "x": np.array([1, 2], np.float16)})
    assert found["t"].tolist() == ["a", "b"]
    assert found["y"].dtype == np.float16 and found["y"].tolist() == [-1.0, -2.0]


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    model = saved(onnx_model("g (float[n] x) => (seq(float[n]) y) { y = SequenceConstruct(x) }"), tmp_path)
    with pytest.raises(ModelError, match="Output 'y' is a list, not a tensor"):
        OnnxRunner(model, CPU).run({"x": X[0]})


def test_a_failing_operator_is_the_models_fault(tmp_path: Path) -> None:
    model = saved(onnx_model("g (float[n] x, int64[k] s) => (float[m] y) { y = Reshape(x, s) }"), tmp_path)
    with pytest.raises(ModelError, match=r"onnxruntime failed to run the model: .*Reshape"):
        OnnxRunner(model, CPU).run({"x": X[0], "s": np.array([3])})


def test_a_closed_runner_says_so(mlp: Model) -> None:
    runner = OnnxRunner(mlp, CPU)
    runner.close()
    runner.close()
    for call in (lambda: runner.run({"x": X}), lambda: runner.about):
        with pytest.raises(ModelError, match="closed"):
            call()


def test_the_file_may_go_once_the_runner_is_open(mlp: Model) -> None:
    runner = OnnxRunner(mlp, CPU)
    shutil.rmtree(mlp.path.parent)
    assert runner.run({"x": X})["y"].shape == (5, 3)
