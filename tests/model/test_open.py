"""Opening models: detection by content, signatures, and every refusal."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import parser
from torch import nn

from optkit.errors import ModelError, UsageError
from optkit.model.model import Model
from optkit.model.open import open_model
from optkit.model.pickle_file import is_safe_global, state_dict_of
from optkit.model.pt2_file import pt2_signature

FACTORY = "some.module:fn"


class Net(nn.Module):
    """x[batch,4], mask[batch] -> logits, scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.layer(x) * mask[:, None]
        return {"logits": y, "scores": y.softmax(-1)}


class Evil:
    """Would make a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


def onnx_bytes(inputs: str = "float[batch, 2] x", outputs: str = "float[batch, 2] y") -> bytes:
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g ({inputs}) => ({outputs}) {{ y = Relu(x) }}'
    )
    data: bytes = model.SerializeToString()
    return data


def specs(model: Model) -> tuple[str, str]:
    inputs, outputs = model.signature.inputs, model.signature.outputs
    return "; ".join(map(str, inputs)), "; ".join(map(str, outputs))


def refused(path: Path, match: str, **arguments: Any) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        open_model(path, **arguments)
    assert caught.value.exit_code == 3
    assert caught.value.expected
    assert caught.value.fix
    assert caught.value.file is not None
    return caught.value


# --- ONNX ---------------------------------------------------------------------------------------------------------


def test_onnx_by_content_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(onnx_bytes())
    model = Model.open(str(path))
    assert (model.form, model.kind, model.path) == ("onnx", "onnx", path)
    assert specs(model) == ("x=float32[batch,2]", "y=float32[batch,2]")


def test_signature_renames_dynamic_dims_of_inputs_and_outputs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_bytes("float[?, s, 2] x, int64[?] m", "float[?, s, 2] y"))
    model = open_model(path, signature="m=int64[rows]; x=float32[rows,words,2]")
    assert specs(model) == ("x=float32[rows,words,2]; m=int64[rows]", "y=float32[rows,words,2]")


@pytest.mark.parametrize(
    "signature",
    [
        "z=float32[n,2]",
        "x=float16[n,2]",
        "x=float32[n,2,1]",
        "x=float32[n,c]",
        "x=float32[1,2]",
        "x=float32[n,2]; y=int64[n]",
    ],
)
def test_signature_that_does_not_fit(tmp_path: Path, signature: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_bytes())
    with pytest.raises(UsageError, match="does not fit the model") as caught:
        open_model(path, signature=signature)
    assert "x=float32[batch,2]" in caught.value.expected
    assert caught.value.exit_code == 2


def test_cut_off_onnx(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_bytes()[:-20])
    refused(path, "cut off or no ONNX model")


def test_ort(tmp_path: Path) -> None:
    (tmp_path / "m.ort").write_bytes(b"\x20\x00\x00\x00ORTM" + b"\0" * 64)
    model = open_model(tmp_path / "m.ort")
    assert (model.form, model.kind, model.signature.complete) == ("ort", "ort", False)


# --- places -------------------------------------------------------------------------------------------------------


def test_missing_file_with_suggestion(tmp_path: Path) -> None:
    (tmp_path / "digits_cnn.pt2").write_bytes(b"x")
    error = refused(tmp_path / "digit_cnn.pt2", "no such model")
    assert error.fix == f"did you mean {tmp_path / 'digits_cnn.pt2'}?"
    assert "see: ls" in refused(tmp_path / "something", "no such model").fix
    refused(tmp_path / "nowhere" / "m.onnx", "folder does not exist")


def test_link_to_nothing_empty_file_and_special_file(tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(tmp_path / "gone")
    refused(tmp_path / "link.onnx", "link to nothing")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "is empty")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "neither a file nor a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_bytes())
    (tmp_path / "m.onnx").chmod(0)
    refused(tmp_path / "m.onnx", "cannot be read: Permission denied")


def test_name_that_the_system_does_not_take(tmp_path: Path) -> None:
    refused(tmp_path / ("n" * 300), "cannot be read: File name too long")


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    refused(tmp_path, "neither a Hugging Face model nor a bundle")
    (tmp_path / "a.onnx").touch()
    assert str(tmp_path / "a.onnx") in refused(tmp_path, "neither").fix


def test_zip_that_is_none_of_torchs(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "c")
    refused(path, "zip archive, but none of torch's")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/data/aotinductor/model/x.so", "")
    refused(path, "AOTInductor")


# --- torch.export, TorchScript ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "digits.pt"
    batch = torch.export.Dim("batch")
    shapes = {"x": {0: batch}, "mask": {0: batch}}
    program = torch.export.export(Net().eval(), (torch.zeros(2, 4), torch.zeros(2)), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "m.pt"
    torch.jit.trace(nn.Linear(4, 3), torch.zeros(1, 4)).save(path)
    return path


def test_pt2_by_content_with_its_signature(exported: Path) -> None:
    model = open_model(exported)
    assert (model.form, model.kind) == ("torch", "pt2")
    assert specs(model) == (
        "x=float32[batch,4]; mask=float32[batch]",
        "logits=float32[batch,3]; scores=float32[batch,3]",
    )
    assert specs(open_model(exported, signature="x=float32[n,4]; mask=float32[n]"))[1].startswith("logits=float32[n,3]")


def test_pt2_is_checked(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    marker = tmp_path / "ran"
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            inside = "sample_inputs" in name
            new.writestr(name, pickle.dumps(Evil(marker)) if inside else old.read(name))
    refused(path, "could run code")
    assert open_model(path, trust_pickle=True).trust_pickle
    assert not marker.exists()


def program_json(**changes: Any) -> dict[str, Any]:
    """What torch 2.13 writes for ``f(x[s0,s1], ids[s0]) -> (x, ids)``, cut down to what is read."""
    symbol = lambda name: {"as_expr": {"expr_str": f"Symbol('{name}', positive=True, integer=True)"}}  # noqa: E731
    values = {
        "x": {"dtype": 7, "sizes": [symbol("s0"), symbol("s1"), {"as_int": 3}]},
        "ids": {"dtype": 5, "sizes": [symbol("s0")]},
    }
    tree = {"type": "builtins.tuple", "context": "null", "children_spec": [{"children_spec": []}] * 2}
    arg = lambda name: {"arg": {"as_tensor": {"name": name}}}  # noqa: E731
    return {
        "graph": {"tensor_values": values},
        "signature": {
            "input_specs": [{"parameter": {}}, {"user_input": arg("x")}, {"user_input": arg("ids")}],
            "output_specs": [{"user_output": arg("x")}, {"user_output": arg("ids")}],
        },
        "module_call_graph": [{"signature": {"out_spec": json.dumps([1, tree | changes])}}],
    }


def pt2_specs(module: dict[str, Any]) -> tuple[str, str]:
    found = pt2_signature(json.dumps({"graph_module": module}))
    return "; ".join(map(str, found.inputs)), "; ".join(map(str, found.outputs))


def test_pt2_equal_symbols_get_equal_names() -> None:
    assert pt2_specs(program_json()) == (
        "x=float32[batch,x_dim1,3]; ids=int64[batch]",
        "output_0=float32[batch,x_dim1,3]; output_1=int64[batch]",
    )


def test_pt2_symbol_on_axis_0_of_some_inputs_is_no_batch() -> None:
    module = program_json()
    module["graph"]["tensor_values"]["ids"]["sizes"] = [{"as_int": 5}]
    assert pt2_specs(module)[0] == "x=float32[x_dim0,x_dim1,3]; ids=int64[5]"


def test_pt2_outputs_by_key_nested_or_none() -> None:
    keys = program_json(type="x.ModelOutput", context='["last", "cache"]')
    assert pt2_specs(keys)[1].startswith("last=float32[")
    keys["signature"]["output_specs"][1]["user_output"]["arg"] = {"as_none": True}
    assert pt2_specs(keys)[1] == "last=float32[batch,x_dim1,3]"
    nested = program_json(children_spec=[{"children_spec": [{"children_spec": []}]}])
    assert pt2_specs(nested)[1] == ""
    unnamed = program_json()
    unnamed["signature"]["output_specs"][0]["user_output"]["arg"] = {"as_none": True}
    assert pt2_specs(unnamed)[1] == ""


def test_pt2_layout_of_another_torch_gives_no_signature() -> None:
    assert pt2_specs({"graph": {}}) == ("", "")
    assert not pt2_signature(b"[]").inputs


def test_torchscript_takes_the_stated_signature(scripted: Path) -> None:
    model = open_model(scripted, signature="x=float32[batch,4]")
    assert (model.form, model.kind) == ("torch", "torchscript")
    assert specs(model) == ("x=float32[batch,4]", "")
    assert not open_model(scripted).signature.inputs


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_cut_off_archive(exported: Path, scripted: Path, tmp_path: Path, share: float) -> None:
    for source in (exported, scripted):
        whole = source.read_bytes()
        (tmp_path / "m.pt").write_bytes(whole[: int(len(whole) * share)])
        refused(tmp_path / "m.pt", "archive is cut off or damaged")


# --- state_dicts and pickles --------------------------------------------------------------------------------------


def test_state_dict_without_factory_lists_its_keys(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    error = refused(tmp_path / "w.pt", r"state_dict with 2 tensors \(layer.weight, layer.bias\)")
    assert "--factory pkg.module:fn" in error.expected


@pytest.mark.parametrize("new_format", [True, False])
def test_weights_in_all_wrappings(tmp_path: Path, new_format: bool) -> None:
    state = Net().state_dict()
    half = {name: value.bfloat16() for name, value in state.items()}
    parameters = dict(Net().named_parameters())
    path = tmp_path / "w.pt"
    checkpoint = {"epoch": 3, "model": state, "optimizer": {"state": {}, "lr": 0.1}}
    for content in (state, half, parameters, checkpoint, {"state_dict": {"model": state}, "loss": torch.zeros(1)}):
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        model = open_model(path, factory=FACTORY, signature="x=float32[batch,4]")
        assert (model.form, model.kind, model.factory) == ("torch", "weights", FACTORY)
        assert specs(model) == ("x=float32[batch,4]", "")
        refused(path, "state_dict with 2 tensors.*layer.weight")


def test_checkpoint_names_where_the_tensors_are(tmp_path: Path) -> None:
    torch.save({"state_dict": {"model": Net().state_dict()}}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", r"2 tensors under 'state_dict.model' \(")


def test_state_dict_of_checkpoints() -> None:
    def tensor(value: object) -> bool:
        return value == "T"

    assert state_dict_of({"a": "T", "b": "T"}, tensor) == ("", {"a": "T", "b": "T"})
    assert state_dict_of({"net": {"a": "T"}, "loss": "T"}, tensor) == ("net", {"a": "T"})
    assert state_dict_of({"a": "T", "b": "T", "extra": 1}, tensor) == ("", {"a": "T", "b": "T"})
    assert state_dict_of({"a": "T", "b": 1, "c": 2}, tensor) == ("", {})
    assert state_dict_of("T", tensor) == ("", {})
    endless: dict[str, Any] = {"epoch": 1}
    endless["model"] = endless
    assert state_dict_of(endless, tensor) == ("", {})


def test_safe_globals_are_those_of_torch() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals

    assert [name for name in _get_allowed_globals() if not is_safe_global(name)] == []
    for name in ("posix.system", "builtins.eval", "torch.load", "torch.hub.load", "torch.nn.modules.linear.Linear"):
        assert not is_safe_global(name)


@pytest.mark.parametrize("new_format", [True, False])
def test_pickled_module_is_refused_unless_trusted(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "m.pt"
    torch.save(nn.Linear(4, 3), path, _use_new_zipfile_serialization=new_format)
    error = refused(
        path, r"pickled torch.nn.modules.linear.Linear that would run code.*names torch.nn.modules.linear.Linear"
    )
    for word in ("torch.export.save", "state_dict", "--factory"):
        assert word in error.expected
    assert "--trust-pickle" in error.fix
    model = open_model(path, trust_pickle=True, signature="x=float32[batch,4]")
    assert (model.form, model.kind, model.trust_pickle) == ("torch", "pickle", True)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("place", ["alone", "beside", "protocol"])
def test_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path, new_format: bool, place: str) -> None:
    path, marker = tmp_path / "m.pt", tmp_path / "ran"
    content = Evil(marker) if place == "alone" else Net().state_dict() | {"x": Evil(marker)}
    protocol = 4 if place == "protocol" and new_format else 2
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new_format)
    for arguments in ({}, {"factory": FACTORY}):
        error = refused(path, "would run code when it is loaded: it names posix.system", **arguments)
        assert "--trust-pickle" in error.fix
    assert open_model(path, trust_pickle=True, factory=FACTORY if place != "alone" else None).form == "torch"
    assert not marker.exists()


def test_checkpoint_with_other_objects_names_them(tmp_path: Path) -> None:
    torch.save({"model": Net().state_dict(), "args": Namespace(lr=0.1)}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "state_dict with 2 tensors that would run code.*argparse.Namespace", factory=FACTORY)
    assert open_model(tmp_path / "w.pt", factory=FACTORY, trust_pickle=True).kind == "weights"


def test_pickle_that_would_take_all_memory(tmp_path: Path) -> None:
    """LONG_BINPUT of a huge index makes Python's C unpickler allocate tens of gigabytes."""
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}r\xff\xff\xff\xff.")
    refused(path, "dict written by torch.save, with no state_dict", factory=FACTORY)


def test_tensor_alone_and_damaged_pickle(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(torch.zeros(3), path)
    refused(path, "tensor written by torch.save, with no state_dict", factory=FACTORY)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}q\x00(X\x05")
    refused(path, "its pickle cannot be read", factory=FACTORY)
    torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:150])
    refused(path, "its pickle cannot be read", factory=FACTORY)


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "w.bin"
    save_file(Net().state_dict(), path, metadata={"format": "pt"})
    assert open_model(path, factory=FACTORY).kind == "weights"
    refused(path, "state_dict with 2 tensors .*layer.weight")
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    refused(path, r"safetensors file is cut off.*tensors end at byte \d+, the file has \d+", factory=FACTORY)
    path.write_bytes(whole[:40])
    refused(path, "its header cannot be read", factory=FACTORY)


def test_factory_arguments(tmp_path: Path, scripted: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    for factory in ("module", "module:", ":fn", "module:not a name"):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            open_model(tmp_path / "w.pt", factory=factory)
        assert "pkg.module:fn or FILE.py:fn" in caught.value.expected
    with pytest.raises(ModelError, match=r"file gone\.py does not exist"):
        open_model(tmp_path / "w.pt", factory="gone.py:fn")
    with pytest.raises(UsageError, match="is a TorchScript archive"):
        open_model(scripted, factory=FACTORY)


# --- folders ------------------------------------------------------------------------------------------------------


def write_huggingface(folder: Path, **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 30} | config))
    (folder / "model.safetensors").write_bytes(b"not read")


def test_huggingface_folder(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    model = open_model(tmp_path)
    assert (model.form, model.kind, model.path) == ("torch", "huggingface", tmp_path)
    assert specs(model) == ("input_ids=int64[batch,seq]; attention_mask=int64[batch,seq]", "")
    assert not model.assets.preprocess
    assert specs(open_model(tmp_path, signature="input_ids=int64[b,s]")) == ("input_ids=int64[b,s]", "")


def test_huggingface_tokenizer_becomes_preprocessing(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assets = open_model(tmp_path).assets
    assert assets.preprocess == {"input_ids": {"kind": "text", "tokenizer": "."}}
    assert assets.folder == tmp_path


def test_huggingface_bin_weights_are_looked_into(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "neither a Hugging Face model")
    torch.save(Net().state_dict(), tmp_path / "pytorch_model.bin")
    assert open_model(tmp_path).kind == "huggingface"
    torch.save(Evil(tmp_path / "ran"), tmp_path / "pytorch_model.bin")
    refused(tmp_path, "posix.system")
    assert not (tmp_path / "ran").exists()


def test_config_json_of_something_else(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    refused(tmp_path, "names no architecture")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "is no JSON")
    (tmp_path / "config.json").write_text("[]")
    refused(tmp_path, "is no object")


def manifest() -> dict[str, Any]:
    artifact = {"path": "m", "form": "onnx", "kind": "onnx", "digest": "0", "size_bytes": 1}
    step = {"id": "q", "name": "q", "config": {}, "size_bytes": 1, "digest": "0"}
    return {
        "recipe_name": "int8",
        "created": "2025-01-01T00:00:00Z",
        "original": artifact,
        "baseline": artifact,
        "result": artifact | {"inputs": ["x=float32[batch,2]"], "outputs": ["y=float32[batch,2]"]},
        "recipe": {},
        "steps": [
            step | {"title": "Fuse nodes.", "status": "changed"},
            step | {"title": "Do nothing.", "status": "no effect"},
        ],
        "verdict": {
            "held": True,
            "measured_on": {"split": "evaluation", "source": "e.npz", "samples": 1, "batch": 1, "synthetic": False},
        },
        "timing": None,
        "session": {"session.intra_op.allow_spinning": "0"},
        "environment": {
            "optkit": "0", "python": "3", "platform": "l", "cpu": "c", "cpu_features": [], "cores": 1, "threads": 1,
            "provider": "cpu", "packages": {},
        },
    }  # fmt: skip


def write_bundle(folder: Path, model: str = "model.onnx", **changes: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest() | changes))
    content = onnx_bytes() if model == "model.onnx" else b"\x20\x00\x00\x00ORTM" + b"\0" * 64
    (folder / model).write_bytes(content)


def test_bundle_brings_session_lineage_and_preprocessing(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    (tmp_path / "preprocess.json").write_text('{"x": {"kind": "text", "tokenizer": "preprocess/tok"}}')
    model = open_model(tmp_path)
    assert (model.path, model.kind) == (tmp_path / "model.onnx", "onnx")
    assert model.session == {"session.intra_op.allow_spinning": "0"}
    assert model.lineage == ("Fuse nodes.",)
    assert model.assets.preprocess == {"x": {"kind": "text", "tokenizer": "preprocess/tok"}}
    assert model.assets.folder == tmp_path


def test_bundle_with_ort_has_the_signature_of_its_manifest(tmp_path: Path) -> None:
    write_bundle(tmp_path, "model.ort")
    model = open_model(tmp_path)
    assert (model.form, model.kind) == ("ort", "ort")
    assert specs(model) == ("x=float32[batch,2]", "y=float32[batch,2]")
    assert specs(open_model(tmp_path, signature="x=float32[n,2]"))[1] == "y=float32[n,2]"


def test_bundle_that_cannot_be_read(tmp_path: Path) -> None:
    write_bundle(tmp_path, schema_version=2)
    error = refused(tmp_path, "manifest cannot be used: schema_version: ")
    assert str(tmp_path / "model.onnx") in error.fix
    (tmp_path / "manifest.json").write_text("{")
    refused(tmp_path, "manifest cannot be used")
    write_bundle(tmp_path)
    (tmp_path / "preprocess.json").write_text('{"x": 1}')
    refused(tmp_path, "preprocess.json cannot be read")
    (tmp_path / "model.onnx").unlink()
    refused(tmp_path, "lost its model")


# --- what opening must not do -------------------------------------------------------------------------------------


def test_opening_imports_neither_torch_nor_onnxruntime(tmp_path: Path, exported: Path, scripted: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_bytes())
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    write_huggingface(tmp_path / "hf")
    shutil.copy(exported, tmp_path / "e.pt2")
    code = (
        "import sys; from optkit.model.open import open_model as o\n"
        f"o({str(scripted)!r}); o('e.pt2'); o('w.pt', factory='a.b:c'); o('hf')\n"
        "assert 'onnx' not in sys.modules, 'onnx'\n"
        "o('m.onnx').digest\n"
        "print([name for name in ('torch', 'onnxruntime', 'transformers', 'safetensors') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
