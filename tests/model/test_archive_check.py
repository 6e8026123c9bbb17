"""No archive that could run code is opened, and none of those that torch writes is refused."""

import io
import json
import pickle
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

from optkit.errors import ModelError
from optkit.model.archive_check import check_pt2, check_torchscript, pickle_problem, script_problem
from optkit.model.load_torch import load_exported, load_module
from optkit.model.model import Model
from optkit.model.program_check import is_plain_expression, is_plain_guard


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.constant = torch.ones(3)

    def forward(self, x, mask=None):
        y = self.linear(x) + self.constant
        return {"logits": y, "sum": (y * mask).sum(-1)}


@pytest.fixture(scope="module")
def pt2(tmp_path_factory):
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"x": {0: batch}, "mask": {0: batch}}
    program = torch.export.export(
        Small().eval(), (torch.ones(2, 4),), {"mask": torch.ones(2, 3)}, dynamic_shapes=shapes
    )
    path = tmp_path_factory.mktemp("pt2") / "small.pt2"
    torch.export.save(program, path)
    return path


def edit(source: Path, target: Path, change, extra=()):
    """Copy a zip; ``change(name, data)`` gives a member's new content, or None to drop it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
        for name, data in extra:
            new.writestr(name, data)
    return target


def in_json(ending, change):
    def edited(name, data):
        if not name.endswith(ending):
            return data
        document = json.loads(data)
        change(document)
        return json.dumps(document)

    return edited


def as_model(path, kind="pt2", **more):
    return Model(path=path, form="torch", kind=kind, **more)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.marker}",))


def saved(value, **kwargs):
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


def refused(path, marker, *words):
    """Both the check and the loader refuse, naming the reason, and nothing ran."""
    with pytest.raises(ModelError) as caught:
        load_exported(as_model(path))
    assert caught.value.exit_code == 3
    assert "--trust-pickle" in caught.value.fix
    for word in words:
        assert word in caught.value.message
    assert not marker.exists()


def test_what_torch_writes_is_accepted(pt2):
    check_pt2(pt2, False)
    assert len(list(load_exported(as_model(pt2)).graph_signature.user_inputs)) == 2


def test_sample_inputs_that_call_a_shell(pt2, tmp_path):
    marker = tmp_path / "marker"
    evil = edit(
        pt2,
        tmp_path / "evil.pt2",
        lambda name, data: saved((Evil(marker),)) if name.endswith("sample_inputs/model.pt") else data,
    )
    refused(evil, marker, "sample_inputs/model.pt", "system")


def test_sample_inputs_in_the_old_pickle_format(pt2, tmp_path):
    marker = tmp_path / "marker"
    data = saved((Evil(marker),), _use_new_zipfile_serialization=False)
    evil = edit(pt2, tmp_path / "evil.pt2", lambda name, old: data if name.endswith("inputs/model.pt") else old)
    refused(evil, marker, "old format")


def test_a_pickle_behind_zip_bytes(pt2, tmp_path):
    marker = tmp_path / "marker"
    data = pickle.dumps(Evil(marker)) + saved((torch.ones(1),))
    evil = edit(pt2, tmp_path / "evil.pt2", lambda name, old: data if name.endswith("inputs/model.pt") else old)
    refused(evil, marker, "other data before or behind")


@pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0"])
def test_constants_that_are_objects(pt2, tmp_path, name):
    marker = tmp_path / "marker"

    def change(document):
        next(iter(document["config"].values()))["path_name"] = name

    evil = edit(
        pt2,
        tmp_path / "evil.pt2",
        in_json("constants_config.json", change),
        [(f"small/data/constants/{name}", pickle.dumps(Evil(marker)))],
    )
    refused(evil, marker, name)


@pytest.mark.parametrize("config", ["weights_config.json", "constants_config.json"])
def test_pickled_tensors(pt2, tmp_path, config):
    marker = tmp_path / "marker"

    def change(document):
        next(iter(document["config"].values()))["use_pickle"] = True

    def edited(name, data):
        if name.endswith(("weights/weight_0", "constants/tensor_0")):
            return saved(Evil(marker))
        return in_json(config, change)(name, data)

    refused(edit(pt2, tmp_path / "evil.pt2", edited), marker, "use_pickle")


def test_a_size_that_is_code(pt2, tmp_path):
    """sympy.sympify, which torch.export.load feeds with sizes, evaluates Python."""
    marker = tmp_path / "marker"

    def change(document):
        size = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]
        size["as_expr"]["expr_str"] = f"exec(\"import os; os.system('touch {marker}')\")"

    refused(edit(pt2, tmp_path / "evil.pt2", in_json("models/model.json", change)), marker, "exec(")


@pytest.mark.parametrize("name", ["metadata", "as_string", "target"])
def test_a_size_that_is_code_in_a_tensor_with_a_misleading_name(pt2, tmp_path, name):
    marker = tmp_path / "marker"

    def change(document):
        values = document["graph_module"]["graph"]["tensor_values"]
        values[name] = json.loads(json.dumps(values["x"]))
        values[name]["sizes"][0]["as_expr"]["expr_str"] = f"exec(\"import os; os.system('touch {marker}')\")"

    refused(edit(pt2, tmp_path / "evil.pt2", in_json("models/model.json", change)), marker, "exec(")


def test_a_size_that_is_code_does_run_when_trusted(pt2, tmp_path):
    """The danger is real: the same archive, trusted, leaves its mark. If this fails, torch has become safer."""
    marker = tmp_path / "marker"

    def change(document):
        size = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]
        size["as_expr"]["expr_str"] = f"exec(\"import os; os.system('touch {marker}')\")"

    evil = edit(pt2, tmp_path / "evil.pt2", in_json("models/model.json", change))
    with pytest.raises(ModelError, match=r"torch\.export\.load cannot open"):
        load_exported(as_model(evil, trust_pickle=True))
    assert marker.exists()


def test_operators_guards_and_names_that_are_code(pt2, tmp_path):
    def target(document):
        document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"

    def file_op(document):
        document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

    def guard(document):
        document["guards_code"] = ["__import__('os').system('true')"]

    def name(document):
        document["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = ["x=exec('1')", "mask"]

    cases = {"torch.os.system": target, "from_file": file_op, "__import__": guard, "x=exec": name}
    for number, (word, change) in enumerate(cases.items()):
        evil = edit(pt2, tmp_path / f"evil{number}.pt2", in_json("models/model.json", change))
        refused(evil, tmp_path / "marker", word)


def test_a_tree_that_imports_a_module(pt2, tmp_path):
    spec = torch.utils._pytree.treespec_dumps(torch.utils._pytree.tree_structure(defaultdict(list, x=1)))

    def change(document):
        document["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec

    refused(edit(pt2, tmp_path / "evil.pt2", in_json("models/model.json", change)), tmp_path / "m", "imported by name")


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ([("small/data/aotinductor/model/model.so", b"\x7fELF")], "compiled code"),
        ([("small/data/other/thing", b"")], "none of the members"),
        ([("small/DATA/sample_inputs/model.pt", b"")], "twice"),
        ([("elsewhere/archive_version", b"0")], "outside its folder"),
    ],
)
def test_members_that_do_not_belong(pt2, tmp_path, extra, word):
    evil = edit(pt2, tmp_path / "evil.pt2", lambda _, data: data, extra)
    refused(evil, tmp_path / "marker", word)
    check_pt2(evil, True)


def test_unknown_version(pt2, tmp_path):
    evil = edit(pt2, tmp_path / "e.pt2", lambda name, data: b"7" if name.endswith("archive_version") else data)
    refused(evil, tmp_path / "marker", "version is 7")


def test_other_zips_and_no_zips(tmp_path):
    path = tmp_path / "a.pt2"
    path.write_bytes(b"no zip")
    with pytest.raises(ModelError, match="cannot be read as an archive"):
        check_pt2(path, False)
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(ModelError, match="holds no exported program"):
        check_pt2(path, False)
    with pytest.raises(ModelError, match="no TorchScript archive"):
        check_torchscript(path, False)


def test_expressions_and_guards():
    assert is_plain_expression("Add(Symbol('s0', positive=True, integer=True), Integer(1))")
    assert is_plain_expression("s0*(s1 + 2)//3")
    assert is_plain_expression("FloorDiv(Mul(Integer(2), Symbol('s77')), Float('1.5', precision=53))")
    for code in ("exec('1')", "Symbol('s').__class__", "Add('exec(1)', 2)", "(lambda: 1)()", "[x for x in s0]", "a\nb"):
        assert not is_plain_expression(code), code
    assert is_plain_guard("L['x'].size()[0] == L['mask'].size()[0] and 2 <= L['x'].size()[1] * 3")
    assert is_plain_guard("not math.isnan(L['args'][0])")
    for code in ("L.__class__", "open('f')", "L['\"+exec(1)+\"'] == 1", "L['x'].tofile('f')", "(y := 1)"):
        assert not is_plain_guard(code), code


def test_pickles_are_read_not_run(tmp_path):
    assert pickle_problem(pickle.dumps({"a": [1, 2.5, None]}, protocol=2)) == ""
    assert pickle_problem(pickle.dumps(Evil(tmp_path / "m"), protocol=2)).endswith("system")
    assert "STACK_GLOBAL" in pickle_problem(pickle.dumps(Evil(tmp_path / "m"), protocol=4)) or (
        "opcode" in pickle_problem(pickle.dumps(Evil(tmp_path / "m"), protocol=4))
    )
    assert "not a readable pickle" in pickle_problem(b"\x80\x02}q")
    assert not (tmp_path / "m").exists()


class Writes(nn.Module):
    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, x):
        torch.save(x, self.path)
        return x


def test_torchscript_that_writes_a_file(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "writes.pt"
    torch.jit.script(Writes(str(marker))).save(str(path))
    with pytest.raises(ModelError, match="aten::save") as caught:
        load_module(as_model(path, "torchscript"))
    assert "--trust-pickle" in caught.value.fix and caught.value.exit_code == 3
    assert not marker.exists()
    load_module(as_model(path, "torchscript", trust_pickle=True))(torch.ones(1))
    assert marker.exists()


def test_torchscript_that_torch_writes_is_accepted(tmp_path):
    path = tmp_path / "fine.pt"
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    torch.jit.script(nn.LSTM(4, 3)).save(str(path))
    check_torchscript(path, False)
    torch.jit.trace(module, torch.ones(2, 4)).save(str(path))
    check_torchscript(path, False)


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("x = torch.save(y, 'f')", "aten::save"),
        ("x = torch . save(y, 'f')", "aten::save"),
        ("x = ops.aten.save(y, 'f')", "aten::save"),
        ("x = y.save('f')", "aten::save"),
        ('x = getattr(torch, "save")', "aten::save"),
        ("x = getattr(torch, 'sa' + 've')", "not plain"),
        ('x = getattr(torch, "\\x73ave")', "not plain"),
        ("x = torch.from_file('f')", "aten::from_file"),
        ("x = ops.mylib.thing(y)", "mylib"),
        ("o = ops", "around"),
        ("x = __torch__.torch.classes.my.Thing()", "custom class"),
        ("x = 1 # torch", "comments"),
        ("x = torch.\\\n  relu(y)", "line breaks"),
        ("x = '", "cannot be read"),
    ],
)
def test_torchscript_spellings(code, word):
    assert word in script_problem(code.encode())


def test_torchscript_code_that_is_fine():
    code = b'def forward(self: __torch__.M, x: Tensor) -> Tensor:\n  _0 = getattr(self, "0")\n  return torch.relu(x)\n'
    assert script_problem(code) == ""
    assert script_problem(b"y = ops.prim.device(x)\nz = self.saved\n") == ""
