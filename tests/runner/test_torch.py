"""Torch models run by name, and give arrays by name."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from optkit.errors import DataError, ModelError, PackageError
from optkit.model.model import Model
from optkit.model.signature import Signature, parse_signature
from optkit.runner.torch import TorchRunner


class Masked(nn.Module):
    def forward(self, x, mask):
        return {"sum": (x * mask).sum(-1), "half": x.to(torch.bfloat16)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("runner") / "m.pt"
    torch.save(Masked(), path)
    inputs = parse_signature("x=float32[batch,3]; mask=int64[batch,3]")
    return Model(path=path, form="torch", kind="pickle", trust_pickle=True, signature=Signature(inputs))


X = np.arange(6, dtype=np.float32).reshape(2, 3)
MASK = np.array([[1, 1, 0], [0, 0, 1]])


def test_outputs_by_name(model):
    with TorchRunner(model, threads=1) as runner:
        assert torch.get_num_threads() == 1
        found = runner.run({"mask": MASK, "x": X})
        assert runner.outputs == ("sum", "half")
    assert found["sum"].tolist() == [1.0, 5.0]
    assert found["half"].dtype == np.float32
    np.testing.assert_array_equal(found["half"], X)


def test_a_bound_call_gives_the_modules_own_outputs(model):
    with TorchRunner(model, threads=1) as runner:
        found = runner.bind({"mask": MASK, "x": X})()
        assert found["sum"].tolist() == [1.0, 5.0]
        assert found["half"].dtype is torch.bfloat16 and found["sum"].is_inference()
        with pytest.raises(DataError):
            runner.bind({"x": X})


def test_what_is_told_about_it(model):
    runner = TorchRunner(model, threads=1)
    about = runner.about
    assert (about.engine, about.provider, about.version) == ("torch", "cpu", torch.__version__)
    assert type(about.version) is str  # else whoever gets it from another process imports torch
    assert about.load_s > 0 and about.session_s == 0 and about.import_s < 0.1
    assert (about.placement, about.precision, about.spinning, about.session) == ({}, "", None, {})
    runner.close()
    with pytest.raises(ModelError, match="closed"):
        assert runner.about


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its C++ compiler: the graphs it finds run as they are."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def test_compiled_modules_give_the_same_for_any_shape(model, traced):
    with TorchRunner(model, threads=1, compile=True) as runner:
        assert runner.about.engine == "torch-compile" and runner.about.session_s > 0
        for rows in (2, 1):
            assert runner.run({"x": X[:rows], "mask": MASK[:rows]})["sum"].tolist() == [1.0, 5.0][:rows]
        assert runner.bind({"x": X, "mask": MASK})()["sum"].tolist() == [1.0, 5.0]


def test_compiled_exports(tmp_path, traced):
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.ones(2, 3),)), tmp_path / "m.pt2")
    opened = Model.open(tmp_path / "m.pt2")
    with TorchRunner(opened, threads=1) as plain, TorchRunner(opened, threads=1, compile=True) as compiled:
        (expected,), (found,) = plain.run({"input": X}).values(), compiled.run({"input": X}).values()
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def test_torchscript_is_not_compiled(tmp_path):
    torch.jit.trace(nn.ReLU(), torch.ones(2, 3)).save(tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"TorchScript, which torch\.compile leaves as it is") as caught:
        TorchRunner(Model(tmp_path / "m.pt", "torch", "torchscript"), threads=1, compile=True)
    assert "MODEL@eager" in caught.value.fix


class InvalidCxxCompiler(RuntimeError):
    """As torch._inductor.exc has it."""


class CppCompileError(RuntimeError):
    """As torch._inductor.exc has it."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InvalidCxxCompiler("No working C++ compiler found in cpp.cxx: (None, 'g++')"), "No working C"),
        (
            CppCompileError("C++ compile error\n\nOutput:\na.cpp:1: fatal error: Python.h: none"),
            "works: a.cpp:1",
        ),
    ],
)
def test_without_a_compiler_one_sentence_says_what_to_install(model, monkeypatch, error, words):
    def fail(*args, **kwargs):
        wrapped = RuntimeError("InductorError")
        wrapped.inner_exception = error
        raise wrapped

    monkeypatch.setattr(torch, "compile", lambda module: fail)
    with TorchRunner(model, threads=1, compile=True) as runner, pytest.raises(PackageError, match=words) as caught:
        runner.run({"x": X, "mask": MASK})
    assert "apt install g++" in caught.value.fix


def test_what_torch_compile_cannot_do_is_not_blamed_on_the_compiler(model, traced):
    with TorchRunner(model, threads=1, compile=True) as runner, pytest.raises(ModelError) as caught:
        runner.run({"x": X, "mask": MASK[:, :2]})
    assert caught.value.message.startswith("torch.compile failed on x=float32[2, 3], mask=int64[2, 2]: ")
    assert "if MODEL@eager runs" in caught.value.fix


@pytest.mark.large
def test_torch_compile_with_its_compiler(model):
    with TorchRunner(model, threads=1, compile=True) as runner:
        assert runner.run({"x": X, "mask": MASK})["sum"].tolist() == [1.0, 5.0]


def test_threads_are_given_back(model):
    before = torch.get_num_threads()
    runner = TorchRunner(model, threads=before + 1)
    assert torch.get_num_threads() == before + 1
    runner.close()
    runner.close()
    assert torch.get_num_threads() == before
    with pytest.raises(ModelError, match="closed"):
        runner.run({"x": X, "mask": MASK})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": X}, "input 'mask' is missing"),
        ({"x": X, "mask": MASK, "extra": X}, "'extra' is no input"),
        ({"x": X[0], "mask": MASK}, "input 'x' has 1 dimensions and not 2"),
        ({"x": X, "mask": X}, "input 'mask' is float32 and not int64"),
    ],
)
def test_inputs_that_do_not_fit(model, inputs, words):
    with TorchRunner(model, threads=1) as runner, pytest.raises(DataError) as caught:
        runner.run(inputs)
    assert words in caught.value.message
    assert caught.value.expected == "x=float32[batch,3]; mask=int64[batch,3]"


def test_harmless_dtypes_are_converted(model):
    read_only = X.astype(np.float64)
    read_only.flags.writeable = False
    with TorchRunner(model, threads=1) as runner:
        found = runner.run({"x": read_only, "mask": MASK.astype(np.int32)})
    assert found["sum"].dtype == np.float32 and found["sum"].tolist() == [1.0, 5.0]


def test_a_forward_that_fails_is_one_sentence(model):
    with TorchRunner(model, threads=1) as runner, pytest.raises(ModelError, match=r"torch failed on x=float32\[2, 3\]"):
        runner.run({"x": X, "mask": MASK[:, :2]})


def test_torchscript_arguments_by_position(tmp_path):
    torch.jit.trace(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.ones(2, 3)).save(tmp_path / "m.pt")
    signature = Signature(parse_signature("pixels=float32[batch,3]"))
    model = Model(path=tmp_path / "m.pt", form="torch", kind="torchscript", signature=signature)
    with TorchRunner(model, threads=1) as runner:
        assert runner.run({"pixels": -X})["output_0"].max() == 0.0


def test_outputs_do_not_share_memory_with_the_model(tmp_path):
    torch.save(Counter(), tmp_path / "m.pt")
    model = Model(path=tmp_path / "m.pt", form="torch", kind="pickle", trust_pickle=True)
    with TorchRunner(model, threads=1) as runner:
        first = runner.run({"x": X})["output_0"]
        runner.run({"x": X})
    assert first.tolist() == [1.0]


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        return self.count.add_(1)


class Leaves(nn.Module):
    def forward(self, x):
        raise SystemExit(0)


class LeavesWhenOpened(nn.Module):
    def __setstate__(self, state):
        raise SystemExit(0)


@pytest.mark.parametrize(("module", "words"), [(Leaves, "torch failed on x="), (LeavesWhenOpened, "cannot open m.pt")])
def test_a_module_that_ends_the_process_is_an_error_of_the_model(tmp_path, module, words):
    torch.save(module(), tmp_path / "m.pt")
    signature = Signature(parse_signature("x=float32[batch,3]"))
    model = Model(tmp_path / "m.pt", form="torch", kind="pickle", trust_pickle=True, signature=signature)
    with pytest.raises(ModelError, match=f"{words}.*SystemExit: 0"), TorchRunner(model, threads=1) as runner:
        runner.run({"x": X})
