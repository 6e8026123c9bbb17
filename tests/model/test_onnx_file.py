"""Reading, checking and writing ONNX files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from optkit.errors import ModelError
from optkit.model.onnx_file import (
    dtype_name,
    external_files,
    load_onnx,
    load_structure,
    onnx_signature,
    save_onnx,
    tensor_bytes,
    walk_graphs,
    walk_tensors,
    weight_bytes,
)

WEIGHT = np.arange(600, dtype=np.float32).reshape(2, 300)


def matmul() -> onnx.ModelProto:
    """x[batch,2] @ w[2,300]; w is 2,400 bytes."""
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[batch, 2] x) => (float[batch, 300] y) { y = MatMul(x, w) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return model


def saved(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    save_onnx(matmul(), path, external=True)
    return path


def edit_entry(path: Path, **entries: str | None) -> None:
    """Rewrite external-data entries of the weight; None drops one."""
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def signature_of(inputs: str, outputs: str = "float[N] y", body: str = "") -> list[str]:
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g ({inputs}) => ({outputs}) {{ {body or "y = Identity(x)"} }}'
    )
    return [str(spec) for spec in onnx_signature(model).inputs]


# --- signatures ---------------------------------------------------------------------------------------------------


def test_named_fixed_and_unnamed_dims() -> None:
    assert signature_of("float[batch, 3, 224, seq] x") == ["x=float32[batch,3,224,seq]"]
    assert signature_of("float[?, 3, ?] x") == ["x=float32[batch,3,x_dim2]"]


def test_unnamed_axis_0_is_batch_only_if_it_can_be_everywhere() -> None:
    assert signature_of("float[?, 3] x, int64[?] m") == ["x=float32[batch,3]", "m=int64[batch]"]
    assert signature_of("float[?, 3] x, int64[4] m") == ["x=float32[x_dim0,3]", "m=int64[4]"]
    assert signature_of("float[?, 3] x, int64[N, ?] m") == ["x=float32[N,3]", "m=int64[N,m_dim1]"]
    assert signature_of("float[?, 3] x, int64[seq, 2] m") == ["x=float32[x_dim0,3]", "m=int64[seq,2]"]
    assert signature_of("float[?, 3] x, int64 m") == ["x=float32[batch,3]", "m=int64[]"]


def test_outputs_share_the_batch() -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[?, 3] x) => (float[?, ?] y) { y = Relu(x) }'
    )
    assert [str(spec) for spec in onnx_signature(model).outputs] == ["y=float32[batch,y_dim1]"]


def test_zero_and_negative_sizes_are_dynamic() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 0, 3])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value], [helper.make_empty_tensor_value_info("y")]
    )
    assert str(onnx_signature(helper.make_model(graph)).inputs[0]) == "x=float32[batch,x_dim1,3]"


def test_initializers_are_no_inputs() -> None:
    model = matmul()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 300]))
    assert [spec.name for spec in onnx_signature(model).inputs] == ["x"]


def test_unknown_rank_and_values_that_are_no_tensors() -> None:
    ranks = helper.make_tensor_value_info("x", TensorProto.STRING, None)
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [None])
    graph = helper.make_graph([], "g", [ranks, sequence], [ranks])
    specs = onnx_signature(helper.make_model(graph)).inputs
    assert [(spec.name, spec.dtype, spec.shape) for spec in specs] == [("x", "string", None), ("s", "sequence", None)]


@pytest.mark.parametrize(
    ("elem", "name"),
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.BOOL, "bool"),
        (TensorProto.UINT8, "uint8"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.STRING, "string"),
        (TensorProto.FLOAT8E4M3FN, "float8_e4m3fn"),
        (0, "undefined"),
        (999, "unknown"),
    ],
)
def test_dtype_names(elem: int, name: str) -> None:
    assert dtype_name(elem) == name


# --- walking ------------------------------------------------------------------------------------------------------


def nested() -> onnx.ModelProto:
    """An If whose branches hold Constants and an initializer, and a function with a Constant."""
    then = parser.parse_graph("then () => (float[4] t) { t = Constant <value = float[4] {1,2,3,4}> () }")
    other = parser.parse_graph("other () => (float[4] e) { e = Identity(held) }")
    other.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "held"))
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    call = helper.make_node("Scale", ["y"], ["z"], domain="own")
    scale = parser.parse_function(
        '<opset_import: ["": 20], domain: "own"> Scale (a) => (b) '
        "{ k = Constant <value = float[1] {2}> () b = Mul(a, k) }"
    )
    graph = helper.make_graph(
        [node, call],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[scale])


def test_walks_subgraphs_constants_and_functions() -> None:
    model = nested()
    assert [graph.name for graph in walk_graphs(model.graph)] == ["g", "other", "then"]
    assert [(name, tensor_bytes(tensor)) for name, tensor in walk_tensors(model)] == [("held", 16), ("t", 16), ("k", 4)]
    assert weight_bytes(model) == 36


# --- saving and loading -------------------------------------------------------------------------------------------


def test_small_model_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_onnx(matmul(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert external_files(path) == []
    assert load_onnx(path) == matmul()


def test_external_data_go_out_and_come_back(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert external_files(path) == [tmp_path / "m.onnx.data"]
    assert path.stat().st_size < 400
    assert (tmp_path / "m.onnx.data").stat().st_size == 2400
    structure = load_structure(path).graph.initializer[0]
    assert not structure.HasField("raw_data")
    np.testing.assert_array_equal(numpy_helper.to_array(load_onnx(path).graph.initializer[0]), WEIGHT)
    onnx.checker.check_model(path)


def test_above_the_threshold_weights_go_out_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optkit.model.onnx_file.EXTERNAL_ABOVE", 2399)
    save_onnx(matmul(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").is_file()
    save_onnx(matmul(), tmp_path / "n.onnx", external=False)
    assert not (tmp_path / "n.onnx.data").exists()


def test_saving_again_replaces_the_data(tmp_path: Path) -> None:
    path = saved(tmp_path)
    save_onnx(load_onnx(path), path, external=True)
    assert (tmp_path / "m.onnx.data").stat().st_size == 2400
    save_onnx(load_onnx(path), path)
    assert not (tmp_path / "m.onnx.data").exists()


def test_typed_values_and_small_tensors(tmp_path: Path) -> None:
    """Values in float_data go out too; tensors under 1 KiB stay in; each starts at a multiple of 64 bytes."""
    model = matmul()
    odd = numpy_helper.from_array(np.arange(333, dtype=np.float32), "odd")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [500], np.arange(500, dtype=np.float32))
    model.graph.initializer.extend([odd, typed, numpy_helper.from_array(np.ones(4, np.float32), "small")])
    save_onnx(model, tmp_path / "m.onnx", external=True)
    tensors = {tensor.name: tensor for tensor in load_structure(tmp_path / "m.onnx").graph.initializer}
    assert [name for name, tensor in tensors.items() if tensor.data_location] == ["w", "odd", "typed"]
    offsets = [int(e.value) for t in tensors.values() for e in t.external_data if e.key == "offset"]
    assert offsets == [0, 2432, 3776]
    loaded = {tensor.name: numpy_helper.to_array(tensor) for tensor in load_onnx(tmp_path / "m.onnx").graph.initializer}
    np.testing.assert_array_equal(loaded["typed"], np.arange(500, dtype=np.float32))


def test_too_many_weights_for_one_file_are_refused(tmp_path: Path) -> None:
    model = matmul()
    for index in range(3):  # 1 GB each by their dims, without the values
        huge = TensorProto(name=f"h{index}", data_type=TensorProto.FLOAT, dims=[250_000_000])
        model.graph.initializer.append(huge)
    with pytest.raises(ModelError, match=r"3,000,002,400 bytes\) do not fit into one ONNX file"):
        save_onnx(model, tmp_path / "m.onnx", external=False)


# --- refusals: the file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
def test_cut_off_file(tmp_path: Path, keep: float) -> None:
    whole = matmul().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ModelError, match="cut off or no ONNX model: its protobuf") as caught:
        load_structure(path)
    assert caught.value.file == str(path)
    assert "export or copy it again" in caught.value.fix


@pytest.mark.parametrize("content", [b"hello world, this is text", b"\x00" * 100, b"{}"])
def test_no_protobuf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="no ONNX model"):
        load_structure(tmp_path / "m.onnx")


def test_cut_off_at_a_field(tmp_path: Path) -> None:
    """A protobuf cut between two fields still parses: what must be there is looked for."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x0a")
    with pytest.raises(ModelError, match="there is no graph in it"):
        load_structure(path)
    model = matmul()
    del model.opset_import[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="does not say its opset"):
        load_structure(path)
    model = matmul()
    del model.graph.output[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="graph has no outputs"):
        load_structure(path)


def test_values_that_do_not_fit_their_dims(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = matmul()
    model.graph.initializer[0].raw_data = b"\0" * 2396
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"'w' has 2,396 bytes of values, its shape \[2, 300\] needs 2,400"):
        load_structure(path)
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="'w' has 0 bytes"):
        load_structure(path)


def test_values_of_every_dtype_fit(tmp_path: Path) -> None:
    """Typed fields, packed 4-bit values, strings, complex numbers and empty tensors are no damage."""
    model = matmul()
    for index, (dtype, values) in enumerate(
        [
            (TensorProto.FLOAT16, [1, 2, 3]),
            (TensorProto.BFLOAT16, [1, 2, 3]),
            (TensorProto.INT4, [1, 2, 3]),
            (TensorProto.UINT8, [1, 2, 3]),
            (TensorProto.UINT32, [1, 2, 3]),
            (TensorProto.DOUBLE, [1, 2, 3]),
            (TensorProto.BOOL, [1, 0, 1]),
            (TensorProto.COMPLEX64, [1 + 2j, 3, 4]),
            (TensorProto.FLOAT8E4M3FN, [1, 2, 3]),
        ]
    ):
        model.graph.initializer.append(helper.make_tensor(f"t{index}", dtype, [3], values))
    model.graph.initializer.append(helper.make_tensor("packed", TensorProto.INT4, [3], b"\x21\x03", raw=True))
    model.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [2], [b"a", b"bc"]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert len(load_structure(tmp_path / "m.onnx").graph.initializer) == 13


# --- refusals: external data --------------------------------------------------------------------------------------


def test_external_data_missing(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"tensor 'w' are missing: there is no file 'm.onnx.data'") as caught:
        load_structure(path)
    assert f"copy 'm.onnx.data' into {tmp_path}" in caught.value.fix
    with pytest.raises(ModelError, match="missing"):
        load_onnx(path)


def test_external_data_cut_off(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(
        ModelError, match=r"'m.onnx.data' are cut off: the tensor 'w' ends at byte 2,400, the file has 1,000"
    ):
        load_structure(path)
    edit_entry(path, length=None, offset=None)
    with pytest.raises(ModelError, match="ends at byte 2,400"):
        load_structure(path)


def test_external_offset_behind_the_end(tmp_path: Path) -> None:
    path = saved(tmp_path)
    edit_entry(path, offset="64")
    with pytest.raises(ModelError, match="ends at byte 2,464, the file has 2,400"):
        load_structure(path)


def test_external_length_does_not_fit_the_dims(tmp_path: Path) -> None:
    path = saved(tmp_path)
    edit_entry(path, length="2000")
    with pytest.raises(ModelError, match=r"'w' are 2,000 bytes in 'm.onnx.data', its shape \[2, 300\] needs 2,400"):
        load_structure(path)


@pytest.mark.parametrize("entry", [{"offset": "-4"}, {"length": "many"}, {"offset": "²"}])
def test_external_numbers_that_are_none(tmp_path: Path, entry: dict[str, str]) -> None:
    path = saved(tmp_path)
    edit_entry(path, **entry)
    with pytest.raises(ModelError, match=r"have the (offset|length) '"):
        load_structure(path)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../secret", "C:\\w.bin", "..\\w.bin", "\\w"])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    save_onnx(matmul(), path, external=True)
    (tmp_path / "secret").write_bytes(b"\0" * 2400)
    edit_entry(path, location=location)
    with pytest.raises(
        ModelError, match=r"of the tensor 'w' are refused: its path leads outside the model's folder"
    ) as caught:
        load_structure(path)
    assert location in caught.value.message


def test_external_data_by_a_link_outside(tmp_path: Path) -> None:
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    save_onnx(matmul(), path, external=True)
    data = path.parent / "m.onnx.data"
    data.rename(tmp_path / "secret")
    data.symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="link that leads outside"):
        load_structure(path)


def test_external_data_in_a_subfolder_are_fine(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "m.onnx.data").rename(tmp_path / "weights" / "w.bin")
    edit_entry(path, location="weights/w.bin")
    assert external_files(path) == [tmp_path / "weights" / "w.bin"]
    np.testing.assert_array_equal(numpy_helper.to_array(load_onnx(path).graph.initializer[0]), WEIGHT)


@pytest.mark.parametrize("name", ["t", "held", "k"])
def test_external_data_of_hidden_tensors_are_checked(tmp_path: Path, name: str) -> None:
    """In a branch's Constant, a branch's initializer, and a function's Constant."""
    model = nested()
    tensor = next(tensor for found, tensor in walk_tensors(model) if found == name)
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../out.bin")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=rf"'\.\./out\.bin' of the tensor '{name}' are refused"):
        load_structure(path)
    with pytest.raises(ModelError, match="are refused"):
        external_files(path)
