"""Exports keep names, dynamic dimensions and numbers, and refuse where they cannot."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from optkit.data.synthetic import synthetic
from optkit.errors import PassError
from optkit.model.huggingface import default_signature
from optkit.model.load_torch import load_module
from optkit.model.model import Model
from optkit.model.signature import Signature, parse_signature
from optkit.model.target import Target
from optkit.passes import _torch_export, _torch_tidy, export_onnx
from optkit.passes._parity import compare, other_sizes, resized
from optkit.passes.export_onnx import ExportOnnx
from optkit.runner.open import open_runner, run_dataset
from tests.helpers import run_onnx


class Ctx:
    """What the pipeline gives a pass, as far as this one uses it."""

    def __init__(self, original, workdir):
        self.original, self.workdir, self.target, self.seed = original, workdir, Target(threads=1), 0

    def batches(self, split):
        assert split == "sample"
        return synthetic(self.original.signature, split=split, shapes={}, count=1, batch=1)

    def run(self, model, batches, outputs=None):
        with open_runner(model, self.target, outputs=outputs) as runner:
            yield from run_dataset(runner, batches)

    def load_torch(self, model):
        return load_module(model)


class Heads(nn.Module):
    """A dict with None in it, two dynamic dimensions, and an argument after the one that is fed."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, unused=None, mask=None):
        y = self.linear(x) * mask.unsqueeze(-1)
        return {"logits": y, "nothing": unused, "pooled": y.sum(1)}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        y, (h, _) = self.lstm(x)
        return y, h


class Fixed(nn.Module):
    """Its Python branch is decided while tracing."""

    def forward(self, x):
        return x * 2 if x.shape[1] > 10 else x - 1


class Untraceable(nn.Module):
    def forward(self, x):
        return torch.tensor([sorted(row) for row in x.tolist()])


def pickled(module, tmp_path, signature):
    path = tmp_path / "model.pt"
    torch.manual_seed(0)
    torch.save(module, path)
    inputs = Signature(parse_signature(signature))
    return Model(path=path, form="torch", kind="pickle", trust_pickle=True, signature=inputs)


def export(model, tmp_path, **options):
    work = tmp_path / "work"
    work.mkdir()
    return ExportOnnx(**options)(model, Ctx(model, work))


def agrees(made, model, inputs):
    with open_runner(model, Target(threads=1)) as runner:
        wanted = runner.run(inputs)
    found = run_onnx(made, inputs)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5, err_msg=name)


HEADS = "x=float32[batch,seq,4]; mask=float32[batch,seq]"


def test_names_dimensions_and_numbers(tmp_path):
    model = pickled(Heads().eval(), tmp_path, HEADS)
    outcome = export(model, tmp_path)
    made = outcome.model
    assert (made.form, made.kind, made.lineage) == ("onnx", "onnx", ("export-onnx",))
    assert [str(spec) for spec in made.signature.inputs] == ["x=float32[batch,seq,4]", "mask=float32[batch,seq]"]
    assert [str(spec) for spec in made.signature.outputs] == ["logits=float32[batch,seq,3]", "pooled=float32[batch,3]"]
    assert outcome.changed == len(onnx.load(made.path).graph.node)
    assert outcome.changes == [("graph", f"{outcome.changed} nodes, opset 20, dynamo exporter")]
    assert len(outcome.notes) == 1 and outcome.notes[0].startswith("agrees with torch at batch=3, seq=8: error")
    rng = np.random.default_rng(0)
    for batch, seq in ((1, 1), (5, 7)):
        x = rng.standard_normal((batch, seq, 4), dtype=np.float32)
        agrees(made, model, {"x": x, "mask": np.ones((batch, seq), np.float32)})


def test_the_file_is_one_and_bare(tmp_path):
    made = export(pickled(Heads().eval(), tmp_path, HEADS), tmp_path).model
    assert [file.name for file in made.path.parent.iterdir()] == ["model.onnx"]
    proto = onnx.load(made.path)
    onnx.checker.check_model(proto, full_check=True)
    graph = proto.graph
    assert {tensor.name for tensor in graph.initializer} >= {"linear.bias"}
    assert not graph.value_info and not proto.metadata_props and not graph.metadata_props and not graph.doc_string
    for part in [*graph.node, *graph.initializer, *graph.input, *graph.output]:
        assert not part.metadata_props and not part.doc_string


def test_an_opset_that_was_asked_for(tmp_path):
    outcome = export(pickled(Heads().eval(), tmp_path, HEADS), tmp_path, opset=18)
    assert "opset 18" in outcome.changes[0][1]
    assert outcome.model.lineage == ("export-onnx: {opset: 18}",)


def test_the_torchscript_exporter_gives_the_same_names(tmp_path):
    model = pickled(Heads().eval(), tmp_path, HEADS)
    outcome = export(model, tmp_path, exporter="torchscript")
    assert outcome.changes[0][1].endswith("torchscript exporter")
    assert [spec.name for spec in outcome.model.signature.outputs] == ["logits", "pooled"]
    names = {tensor.name for tensor in onnx.load(outcome.model.path).graph.initializer}
    assert "linear.bias" in names and not any(name.startswith("inner.") for name in names)
    agrees(outcome.model, model, {"x": np.ones((3, 2, 4), np.float32), "mask": np.ones((3, 2), np.float32)})


def test_a_recurrent_net_keeps_its_length_dynamic(tmp_path):
    model = pickled(Recurrent().eval(), tmp_path, "x=float32[batch,seq,4]")
    made = export(model, tmp_path).model
    assert [str(s) for s in made.signature.outputs] == ["output_0=float32[batch,seq,3]", "output_1=float32[1,batch,3]"]
    agrees(made, model, {"x": np.linspace(-1, 1, 60, dtype=np.float32).reshape(5, 3, 4)})


def test_torch_export_archives_bring_their_dimensions(tmp_path):
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.manual_seed(0)
    args = (torch.ones(2, 5, 4),)
    shapes = {"x": {0: batch}, "mask": {0: batch}}
    program = torch.export.export(Heads().eval(), args, {"mask": torch.ones(2, 5)}, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "m.pt2")
    model = Model.open(tmp_path / "m.pt2")
    made = export(model, tmp_path).model
    assert [str(spec) for spec in made.signature.inputs] == ["x=float32[batch,5,4]", "mask=float32[batch,5]"]
    assert [str(spec) for spec in made.signature.outputs] == ["logits=float32[batch,5,3]", "pooled=float32[batch,3]"]
    agrees(made, model, {"x": np.ones((7, 5, 4), np.float32), "mask": np.ones((7, 5), np.float32)})


def test_torchscript_goes_through_its_own_exporter(tmp_path):
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    torch.jit.script(module).save(tmp_path / "m.pt")
    model = Model.open(tmp_path / "m.pt", signature="pixels=float32[batch,4]")
    outcome = export(model, tmp_path)
    assert "does not take TorchScript" in outcome.notes[0]
    assert [str(spec) for spec in outcome.model.signature.inputs] == ["pixels=float32[batch,4]"]
    agrees(outcome.model, model, {"pixels": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)})


def test_hugging_face(tmp_path):
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=128)).save_pretrained(tmp_path / "bert")
    model = Model.open(tmp_path / "bert")
    model = model.with_signature(default_signature(model))
    made = export(model, tmp_path).model
    assert [str(s) for s in made.signature.inputs] == ["input_ids=int64[batch,seq]", "attention_mask=int64[batch,seq]"]
    ids = np.arange(15).reshape(3, 5)
    agrees(made, model, {"input_ids": ids, "attention_mask": (ids % 5 < 4).astype(np.int64)})


def test_a_module_that_no_exporter_gets_right(tmp_path):
    model = pickled(Untraceable(), tmp_path, "x=float32[batch,4]")
    with pytest.raises(PassError) as caught:
        export(model, tmp_path)
    assert "the dynamo exporter failed" in caught.value.message
    assert "the torchscript exporter failed" in caught.value.message
    assert caught.value.exit_code == 3 and "--signature" in caught.value.fix


def test_a_branch_frozen_by_tracing_is_found(tmp_path):
    model = pickled(Fixed(), tmp_path, "x=float32[batch,seq]")
    with pytest.raises(PassError, match=r"output 'output_0' differs from torch at batch=3, seq=8") as caught:
        export(model, tmp_path, exporter="torchscript")
    assert "allowed 0.001" in caught.value.message


def test_the_fallback_says_why(tmp_path, monkeypatch):
    def failing(source, opset):
        raise RuntimeError("outer\nadvice") from ValueError("the true cause\nmore")

    monkeypatch.setattr(export_onnx, "export_dynamo", failing)
    outcome = export(pickled(Heads().eval(), tmp_path, HEADS), tmp_path)
    assert outcome.notes[0] == (
        "the dynamo exporter failed: ValueError: the true cause; the torchscript exporter was used instead"
    )
    assert outcome.changes[0][1].endswith("torchscript exporter")


def test_plans_that_cannot_work():
    script = Model(path=None, form="torch", kind="torchscript")
    assert "does not take TorchScript" in ExportOnnx(exporter="dynamo").applies(script, Target())
    archive = Model(path=None, form="torch", kind="pt2")
    assert "torch.export archives" in ExportOnnx(exporter="torchscript").applies(archive, Target())
    assert ExportOnnx().applies(script, Target()) == ExportOnnx().applies(archive, Target()) == ""
    assert ExportOnnx.title() == "Export a torch model to ONNX."


def test_names_that_the_exporter_made_up():
    graph = onnx.parser.parse_graph("g (float[batch,seq] x) => (float[Relu_0,4,seq,made] y) { y = Relu(x) }")
    proto = onnx.helper.make_model(graph)
    assert _torch_tidy.relax_outputs(proto, {"y": (3, 5, 8, 7)}, {"batch": 3, "seq": 8})
    assert [d.dim_param for d in proto.graph.output[0].type.tensor_type.shape.dim] == ["batch", "y_dim1", "seq", "made"]
    assert not _torch_tidy.relax_outputs(proto, {"y": (3, 5, 8, 7)}, {"batch": 3, "seq": 8})


def test_unknown_inputs(tmp_path):
    model = pickled(Heads(), tmp_path, "")
    with pytest.raises(PassError, match=r"inputs of model\.pt are not known") as caught:
        export(model, tmp_path)
    assert "--signature" in caught.value.fix


def test_other_shapes_and_resizing():
    signature = Signature(parse_signature("x=float32[batch,seq]; c=float32[3]"))
    inputs = {"x": np.arange(6).reshape(2, 3), "c": np.arange(3)}
    assert other_sizes({"batch": 2, "seq": 8}, signature) == [
        {"batch": 3, "seq": 4},
        {"batch": 3, "seq": 8},
        {"batch": 2, "seq": 8},
    ]
    assert other_sizes({"batch": 2, "seq": 16, "other": 16}, signature)[0] == {"batch": 3, "seq": 8, "other": 9}
    assert other_sizes({}, signature) == [{}]
    made = resized(inputs, signature, {"batch": 3, "seq": 2})
    assert made["x"].tolist() == [[0, 1], [3, 4], [0, 1]] and made["c"].tolist() == [0, 1, 2]


def test_comparison():
    one = np.float32([0, 1, 2, 3])
    assert compare({"y": one}, {"y": one + np.float32(1e-4)}, "s") == pytest.approx(1e-4 / one.std(), rel=1e-3)
    assert compare({"y": np.float32([1, -np.inf])}, {"y": np.float32([1, -np.inf])}, "s") == 0.0
    for wanted, found, words in [
        (one, one + 1, "error / output std 0.89, allowed 0.001"),
        (one, one[:2], "shape"),
        (one, np.float32([0, 1, np.nan, 3]), "NaN or infinity"),
        (np.array([1, 2]), np.array([1, 3]), "differs from torch at batch=3: 1 of 2 int64 values, allowed 0"),
        (np.zeros(9999, bool), np.arange(9999) == 7, "1 of 9999 bool values, allowed 0"),
        (one, one.astype(np.float64), "is float64 at batch=3, and float32 in torch"),
    ]:
        with pytest.raises(PassError, match=words):
            compare({"y": wanted}, {"y": found}, "batch=3")
    with pytest.raises(PassError, match="outputs z instead of y"):
        compare({"y": one}, {"z": one}, "s")


def test_torchscript_that_returns_a_dict(tmp_path):
    torch.jit.script(Dicts()).save(tmp_path / "m.pt")
    outcome = export(Model.open(tmp_path / "m.pt", signature="x=float32[batch,4]"), tmp_path)
    assert [spec.name for spec in outcome.model.signature.outputs] == ["a"]


def test_nothing_is_printed(tmp_path, capfd):
    with pytest.raises(PassError):
        torch.jit.script(Unknown()).save(tmp_path / "m.pt")
        export(Model.open(tmp_path / "m.pt", signature="x=float32[batch,4]"), tmp_path)
    assert capfd.readouterr().out == ""
    assert torch._C._jit_onnx_log.__name__ != "<lambda>"
    assert _torch_export.root_cause(RuntimeError("a.\nb")) == "RuntimeError: a"


class Dicts(nn.Module):
    def forward(self, x):
        return {"a": x + 1}


class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.i1(x)
