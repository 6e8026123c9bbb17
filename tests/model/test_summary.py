"""Facts by reading files: ONNX with subgraphs and external data, torch's kinds, ORT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from optkit.errors import ModelError
from optkit.model.model import Model
from optkit.model.summary import Weight, summarize
from tests.helpers import normal, onnx_model


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


PARAMETERS = 3 * 8 * 9 + 8 + 8 * 5 + 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network in every torch form."""
    folder = tmp_path_factory.mktemp("torch")
    module = Net().eval()
    image = torch.zeros(2, 3, 8, 8)
    dims = {"image": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(module, (image,), dynamic_shapes=dims), folder / "net.pt2")
    torch.jit.script(module).save(str(folder / "net.ts.pt"))
    torch.save(module.state_dict(), folder / "state.pt")
    torch.save(module.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    optimizer = torch.optim.Adam(module.parameters())
    module(image).sum().backward()
    optimizer.step()
    torch.save(
        {"epoch": 1, "model": module.state_dict(), "optimizer": optimizer.state_dict()}, folder / "checkpoint.pt"
    )
    torch.save(module, folder / "module.pt")
    return folder


@pytest.mark.parametrize("name", ["net.pt2", "net.ts.pt", "state.pt", "legacy.pt", "checkpoint.pt", "module.pt"])
def test_every_torch_form_tells_its_parameters(files: Path, name: str) -> None:
    factory = "torch.nn:Module" if name in ("state.pt", "legacy.pt", "checkpoint.pt") else None
    summary = summarize(Model.open(files / name, factory=factory, trust_pickle=name == "module.pt"))
    assert summary.parameters == PARAMETERS
    assert [(group.dtype, group.elements, group.bytes) for group in summary.weights] == [
        ("float32", PARAMETERS, 4 * PARAMETERS)
    ]
    assert {layer.op: (layer.count, layer.elements) for layer in summary.layers} == {"Conv": (1, 216), "Gemm": (1, 40)}


def test_a_torch_export_archive_tells_operators_and_signature(files: Path) -> None:
    summary = summarize(Model.open(files / "net.pt2"))
    assert summary.operators == {"aten.conv2d": 1, "aten.linear": 1, "aten.mean.dim": 1, "aten.relu": 1}
    assert summary.inputs == ("image=float32[batch,3,8,8]",)
    assert summary.dynamic == ("batch",)
    assert summary.producer == f"torch {torch.__version__}"
    assert summary.opsets["aten"] >= 10


def test_a_torchscript_archive_tells_the_operators_of_its_code(files: Path) -> None:
    summary = summarize(Model.open(files / "net.ts.pt"))
    assert {"aten.conv2d", "aten.linear", "aten.relu", "aten.mean"} <= summary.operators.keys()
    assert any("archive's code" in note for note in summary.notes)


def test_ties_and_dtypes_in_a_state_dict(tmp_path: Path) -> None:
    shared = torch.zeros(6, 4, dtype=torch.bfloat16)
    state = {"emb.weight": shared, "head.weight": shared, "count": torch.zeros(3, dtype=torch.int64)}
    torch.save(state, tmp_path / "s.pt")
    summary = summarize(Model.open(tmp_path / "s.pt", factory="torch.nn:Module"))
    assert [(each.dtype, each.elements, each.bytes) for each in summary.weights] == [
        ("bfloat16", 24, 48),
        ("int64", 3, 24),
    ]
    assert summary.parameters == 24


def test_a_huggingface_folder_sums_its_shards(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 9, "transformers_version": "5.1"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"embeddings.word.weight": torch.zeros(9, 4)}, tmp_path / "model-1.safetensors")
    save_file({"layer.weight": torch.zeros(4, 4, dtype=torch.float16)}, tmp_path / "model-2.safetensors")
    summary = summarize(Model.open(tmp_path))
    assert (summary.architecture, summary.producer, summary.parameters) == ("BertModel", "transformers 5.1", 52)
    assert {layer.op: layer.elements for layer in summary.layers} == {"Gather": 36, "Gemm": 16}
    assert {group.dtype: group.bytes for group in summary.weights} == {"float32": 144, "float16": 32}


def test_onnx_with_a_subgraph_and_a_constant(tmp_path: Path) -> None:
    inner = "then_g () => (float[2,2] t) { c = Constant <value = float[2,2] {1, 2, 3, 4}> () t = MatMul(x, c) }"
    text = f"""g (float[2,2] x, bool[] b) => (float[2,2] y) {{
        y = If <then_branch = {inner}, else_branch = else_g () => (float[2,2] e) {{ e = Relu(x) }}> (b) }}"""
    onnx.save(onnx_model(text), tmp_path / "m.onnx")
    summary = summarize(Model.open(tmp_path / "m.onnx"))
    assert summary.operators == {"Constant": 1, "If": 1, "MatMul": 1, "Relu": 1}
    assert summary.parameters == 4
    assert [(layer.op, layer.count, layer.elements) for layer in summary.layers] == [("MatMul", 1, 4)]
    assert (summary.opsets, summary.ir_version) == ({"ai.onnx": 20}, 10)


def test_a_weight_behind_a_transpose_and_used_twice_counts_once(tmp_path: Path) -> None:
    text = """g (float[n,4] x, int64[k] i) => (float[n,6] y, float[k,4] e) {
        wt = Transpose<perm=[1,0]>(w) y = MatMul(x, wt) e = Gather(w, i) }"""
    onnx.save(onnx_model(text, {"w": normal(6, 4)}), tmp_path / "m.onnx")
    summary = summarize(Model.open(tmp_path / "m.onnx"))
    assert summary.parameters == 24
    assert {layer.op: layer.count for layer in summary.layers} == {"MatMul": 1, "Gather": 1}
    assert summary.dynamic == ("n", "k")


def test_shapes_and_strings_are_no_parameters(tmp_path: Path) -> None:
    text = "g (float[2,2] x) => (float[4] y) { y = Reshape(x, s) }"
    onnx.save(onnx_model(text, {"s": np.array([4], np.int64)}), tmp_path / "m.onnx")
    assert summarize(Model.open(tmp_path / "m.onnx")).parameters == 0
    assert Weight("w", "string", (3,)).bytes == 0
    assert Weight("w", "int4", (3,)).bytes == 2
    assert Weight("w", "float8_e4m3fn", (3,)).bytes == 3


def big_onnx(folder: Path, *, tensors: int = 6, side: int = 10_000) -> Path:
    """2.4 GB of external weights that take no room on disk."""
    size = side * side * 4
    weights, nodes, last = [], [], "x"
    for index in range(tensors):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[side, side])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "big.data"), ("offset", index * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"y{index}"]))
        last = f"y{index}"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", side]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "g", [values[0]], [values[1]], weights)
    path = folder / "big.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with (folder / "big.data").open("wb") as file:
        file.truncate(tensors * size)
    return path


def test_more_than_2_gb_of_external_weights_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = big_onnx(tmp_path)
    opened: list[str] = []
    original = Path.open

    def spy(self: Path, *args: object, **kwargs: object) -> object:
        opened.append(self.name)
        return original(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", spy)
    summary = summarize(Model.open(path))
    assert "big.data" not in opened
    assert (summary.parameters, summary.size_bytes) == (600_000_000, 2_400_000_000 + path.stat().st_size)
    assert [(file.path, file.bytes) for file in summary.external] == [("big.data", 2_400_000_000)]


def test_ort_files_tell_as_much_as_onnx_ones(tmp_path: Path) -> None:
    import onnxruntime as ort

    text = "g (float[batch,4] x) => (float[batch,3] y) { h = MatMul(x, w) y = Relu(h) }"
    onnx.save(onnx_model(text, {"w": normal(4, 3)}), tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    summary = summarize(Model.open(tmp_path / "m.ort"))
    assert summary.operators == {"MatMul": 1, "Relu": 1}
    assert (summary.inputs, summary.outputs) == (("x=float32[batch,4]",), ("y=float32[batch,3]",))
    assert (summary.parameters, summary.opsets) == (12, {"ai.onnx": 20})
    content = (tmp_path / "m.ort").read_bytes()
    (tmp_path / "cut.ort").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cut off or damaged"):
        summarize(Model.open(tmp_path / "cut.ort"))


def test_torch_is_not_imported(files: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from optkit.model.model import Model; "
        "from optkit.model.summary import summarize\n"
        "for name in sys.argv[1:]: summarize(Model.open(Path(name), trust_pickle=True))\n"
        "assert not {'torch', 'onnxruntime', 'transformers'} & sys.modules.keys(), sorted(sys.modules)"
    )
    names = [str(files / name) for name in ("net.pt2", "net.ts.pt", "module.pt")]
    subprocess.run([sys.executable, "-c", code, *names], check=True)
