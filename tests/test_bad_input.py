"""The issue's list of bad input, on the real command line: one clear sentence, the right code, nothing left behind."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from tests.command import (
    SAMPLES,
    Answer,
    assert_refused,
    assert_same_in_json,
    call,
    finish,
    plugins,
    start,
    write_data,
    write_mlp,
    write_recipe,
)
from tests.helpers import normal

WITH_EXPORT = ("export-onnx", "quantize-dynamic")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / ".cache"))


def refused(tmp_path: Path, *argv: object, kind: str, code: int = 3, words: tuple[str, ...], fix: str = "") -> Answer:
    """``optkit optimize ARGV -o out`` is refused, in words and as JSON, and leaves nothing anywhere."""
    before = sorted(tmp_path.iterdir())
    asked = ("optimize", *argv, "-o", tmp_path / "out", "--no-bench")
    told = call(*asked)
    assert_refused(told, code, *words, fix=fix)
    assert_same_in_json(call(*asked, "--json"), told, kind)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != ".cache"] == before
    work = tmp_path / ".cache" / "work"
    assert not work.exists() or not any(work.iterdir())
    return told


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    write_mlp(tmp_path / "model.onnx")
    fix = f"did you mean {tmp_path / 'model.onnx'}?"
    refused(tmp_path, tmp_path / "modell.onnx", kind="model-error", words=("There is no such model",), fix=fix)
    refused(tmp_path, tmp_path / "no" / "m.onnx", kind="model-error", words=("folder does not exist",), fix="check")


def test_a_truncated_onnx_file(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "m.onnx")
    model.write_bytes(model.read_bytes()[:-300])
    refused(tmp_path, model, kind="model-error", words=(str(model), "cut off"), fix="again")


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", bytes(range(256)) * 8])
def test_a_file_that_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path, tmp_path / "m.onnx", kind="model-error", words=(str(tmp_path / "m.onnx"), "ONNX"))


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights lie in ``w.bin`` beside it."""
    model = onnx.load(write_mlp(tmp_path / "m.onnx"))
    onnx.save(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    return tmp_path / "m.onnx"


def test_external_data_that_are_missing(tmp_path: Path, external: Path) -> None:
    (tmp_path / "w.bin").unlink()
    refused(tmp_path, external, kind="model-error", words=("w.bin", "are missing"), fix="w.bin")


def test_external_data_that_are_cut_off(tmp_path: Path, external: Path) -> None:
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:100])
    refused(tmp_path, external, kind="model-error", words=("w.bin", "ends at byte 512, the file has 100"), fix="again")


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin"])
def test_external_data_outside_the_folder(tmp_path: Path, external: Path, place: str) -> None:
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = place
    external.write_bytes(model.SerializeToString())
    refused(tmp_path, external, kind="model-error", words=(place, "outside"))


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_a_pickle(tmp_path: Path) -> None:
    import torch

    marker = tmp_path / "marker"
    torch.save({"weight": torch.ones(2), "run": Touch(marker)}, tmp_path / "m.pt")
    refused(tmp_path, tmp_path / "m.pt", kind="model-error", words=("would run code", "getattr"), fix="--trust-pickle")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Touch(marker)))
    refused(tmp_path, tmp_path / "m.pkl", kind="model-error", words=("a Python pickle",), fix="torch.export.save")
    assert not marker.exists()


def edited(source: Path, target: Path, change: Callable[[str, bytes], bytes], **extra: bytes) -> Path:
    """A copy of a zip archive with some members changed, and others added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        root = old.namelist()[0].split("/")[0]
        for name, content in extra.items():
            new.writestr(f"{root}/data/constants/{name}", content)
    return target


def test_an_exported_program_whose_sample_inputs_would_run_code(tmp_path: Path) -> None:
    import torch

    marker, buffer = tmp_path / "marker", io.BytesIO()
    torch.save((Touch(marker),), buffer)

    def change(name: str, content: bytes) -> bytes:
        return buffer.getvalue() if name.endswith("sample_inputs/model.pt") else content

    model = edited(SAMPLES / "digits_mlp.pt", tmp_path / "m.pt2", change)
    refused(
        tmp_path, model, kind="model-error", words=("could run code", "sample_inputs/model.pt"), fix="--trust-pickle"
    )
    assert not marker.exists()


def test_an_exported_program_with_an_opaque_object(tmp_path: Path) -> None:
    import torch

    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.ones(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.shift

    plain, marker = tmp_path / "plain.pt2", tmp_path / "marker"
    torch.export.save(torch.export.export(Shifted(), (torch.ones(2, 3),)), plain)

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("constants_config.json"):
            return content
        config = json.loads(content)
        next(iter(config["config"].values()))["path_name"] = "opaque_obj_0"
        return json.dumps(config).encode()

    model = edited(plain, tmp_path / "m.pt2", change, opaque_obj_0=pickle.dumps(Touch(marker)))
    refused(tmp_path, model, kind="model-error", words=("opaque_obj_0",), fix="--trust-pickle")
    assert not marker.exists()


def test_a_torchscript_archive_that_saves_files(tmp_path: Path) -> None:
    import torch

    class Saves(torch.nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, self.path)
            return x

    marker = tmp_path / "marker"
    torch.jit.script(Saves(str(marker))).save(str(tmp_path / "m.pt"))
    asked = (tmp_path / "m.pt", "--signature", "x=float32[batch,3]")
    refused(tmp_path, *asked, kind="model-error", words=("aten::save",), fix="--trust-pickle")
    assert not marker.exists()


WEIGHTS = SAMPLES / "digits_mlp.safetensors"


def test_a_state_dict_without_a_factory(tmp_path: Path) -> None:
    words = ("state_dict with 6 tensors", "layers.1.weight", "without the code")
    refused(tmp_path, WEIGHTS, kind="model-error", words=words, fix="--factory")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("from models import *", ("has no function 'make'",)),
        ("def make(): raise RuntimeError('no licence')", ("make", "RuntimeError", "no licence")),
        ("def make(): return 3", ("int",)),
        ("import no_such_module_of_mine", ("no_such_module_of_mine",)),
        ("def make(:", ("SyntaxError",)),
        (
            "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))",
            ("layers.1.weight", "missing", "1.bias"),
        ),
        (
            "from torch import nn\ndef make():\n  m = nn.Module()\n  m.layers = nn.Sequential(nn.Flatten(), "
            "nn.Linear(64, 7), nn.ReLU(), nn.ReLU(), nn.Linear(192, 128), nn.ReLU(), nn.ReLU(), nn.Linear(128, 10))\n"
            "  return m",
            ("layers.1.weight", "[192, 64]", "[7, 64]"),
        ),
    ],
    ids=["no function", "raises", "no module", "import", "syntax", "other keys", "other shapes"],
)
def test_a_factory_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: tuple[str, ...]
) -> None:
    monkeypatch.syspath_prepend(SAMPLES)
    (tmp_path / "my_factory.py").write_text(body)
    asked = (WEIGHTS, "--factory", f"{tmp_path / 'my_factory.py'}:make", "-r", "fp32")
    refused(tmp_path, *asked, "--signature", "image=float32[batch,1,8,8]", kind="model-error", words=words)


def test_a_factory_file_that_is_missing(tmp_path: Path) -> None:
    asked = (WEIGHTS, "--factory", f"{tmp_path / 'my_factory.py'}:make")
    refused(tmp_path, *asked, kind="model-error", words=("my_factory.py", "does not exist"), fix="path")


# --- recipe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "words", "fix"),
    [
        ("passes:\n  - quantise-dynamic\n", "3:5", "no pass 'quantise-dynamic'", "did you mean 'quantize-dynamic'?"),
        (
            "passes:\n  - quantize-dynamic: {per_chanel: true}\n",
            "3:24",
            "no option 'per_chanel'",
            "did you mean 'per_channel'?",
        ),
        ("passes:\n  - quantize-dynamic:\n      per_channel: 7\n", "4:7", "valid boolean", "optkit passes show"),
        ("passes:\n  - quantize-dynamic: {per_channel: true\n", "4:1", "not valid YAML", "look at this line"),
        ("passes: [simplify]\nname: a\nname: b\n", "4:1", "'name' stands here a second time", "remove one"),
        ("passes: [simplify]\nlimit: {cosine: 0.9}\n", "3:1", "no key 'limit'", "did you mean 'limits'?"),
    ],
    ids=["unknown pass", "unknown option", "wrong type", "syntax", "duplicate key", "unknown key"],
)
def test_a_mistake_in_the_recipe(tmp_path: Path, text: str, place: str, words: str, fix: str) -> None:
    model, recipe = write_mlp(tmp_path / "m.onnx"), tmp_path / "r.yaml"
    recipe.write_text(f"version: 1\n{text}")
    asked = (model, "-r", recipe)
    refused(tmp_path, *asked, kind="recipe-error", words=(f"{recipe}:{place}: ", words), fix=fix)
    error = call("optimize", *asked, "--json").body["error"]
    assert f"{error['file']}:{error['line']}:{error['column']}" == f"{recipe}:{place}"


def test_a_recipe_that_is_missing(tmp_path: Path) -> None:
    asked = (write_mlp(tmp_path / "m.onnx"), "-r", "int9.yaml")
    words = ("no recipe 'int9.yaml'", "fp32, int4, int8, int8-static")
    refused(tmp_path, *asked, kind="recipe-error", words=words, fix="did you mean 'int8'?")


# --- data -----------------------------------------------------------------------------------------------------------

X = normal(24, 8, seed=9)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": X, "b": X}, ("nothing named 'x'", "found a, b")),
        ({"x": X.astype(np.int64)}, ("are int64", "float32")),
        ({"x": X.astype(np.complex64)}, ("are complex64", "float32")),
        ({"x": X[:, :7]}, ("Axis 1", "size 7", "size 8")),
        ({"x": X[:, :, None]}, ("3 axes", "x=float32[batch,8]")),
        ({"x": X[:0]}, ("no samples", "at least one")),
        ({"x": np.where(np.arange(24)[:, None] == 21, np.nan, X)}, ("nan in row 21", "finite")),
        ({"x": np.where(np.arange(24)[:, None] == 2, np.inf, X)}, ("inf in row 2", "finite")),
        ({"x": X, "labels": np.zeros(5, np.int64)}, ("labels 5, x 24",)),
        ({"x": np.array([{"a": 1}] * 24)}, ("Python objects", "never loaded")),
    ],
    ids=["names", "int", "complex", "size", "rank", "empty", "nan", "inf", "labels", "objects"],
)
def test_data_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], words: tuple[str, ...]) -> None:
    model, recipe = write_mlp(tmp_path / "m.onnx"), write_recipe(tmp_path / "r.yaml")
    asked = (model, "-r", recipe, "--data", write_data(tmp_path / "x.npz", **arrays))
    refused(tmp_path, *asked, kind="data-error", words=words)


def test_data_that_are_no_data(tmp_path: Path) -> None:
    model, recipe = write_mlp(tmp_path / "m.onnx"), write_recipe(tmp_path / "r.yaml")
    asked = (model, "-r", recipe, "--data")
    refused(tmp_path, *asked, tmp_path / "no.npz", kind="data-error", words=("no.npz", "do not exist"))
    (tmp_path / "x.npz").write_bytes(write_data(tmp_path / "y.npz").read_bytes()[:400])
    refused(tmp_path, *asked, tmp_path / "x.npz", kind="data-error", words=("x.npz", "cannot be read as .npz"))
    refused(tmp_path, *asked, "evalution=x.npz", kind="usage-error", code=2, words=("no split 'evalution'",))


def test_nan_in_data_other_than_the_first_batch_stop_check_too(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "m.onnx")
    data = write_data(tmp_path / "x.npz", x=np.where(np.arange(24)[:, None] == 21, np.nan, X))
    assert_refused(call("check", model, model, "--data", data), 3, "nan in row 21", fix="remove the sample")


def test_libraries_add_nothing_to_the_words(tmp_path: Path) -> None:
    """In a process of its own, where what C++ code writes to stderr shows too."""
    model, cut = write_mlp(tmp_path / "m.onnx"), tmp_path / "cut.onnx"
    cut.write_bytes(model.read_bytes()[:-300])
    data = write_data(tmp_path / "x.npz", x=X[:, :7])
    asked = ("-r", write_recipe(tmp_path / "r.yaml"), "--data", data, "-o", tmp_path / "out", "--no-bench")
    runs = [start("optimize", path, *asked) for path in (cut, model)]
    for run, words in zip(runs, ("cut off", "size 7"), strict=True):
        assert_refused(finish(run), 3, words)
    assert not (tmp_path / "out").exists()


# --- the plan: chain, packages, provider ----------------------------------------------------------------------------


def test_a_chain_whose_forms_do_not_fit(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml")
    words = ("'quantize-dynamic' takes onnx", "in the form torch")
    asked = (SAMPLES / "digits_mlp.pt", "-r", recipe)
    refused(tmp_path, *asked, kind="recipe-error", words=words, fix="put '- export-onnx' before it")
    write_recipe(recipe, "export-onnx", "export-onnx: {id: again}")
    refused(tmp_path, *asked, kind="recipe-error", words=("more than one pass that exports",), fix="remove export-onnx")


def test_a_pass_whose_package_is_missing(tmp_path: Path) -> None:
    from optkit.passes._base import Pass

    class NeedsMuch(Pass):
        """Needs a package that nobody has."""

        forms: ClassVar = {"onnx": "onnx"}
        kind: ClassVar = "exact"
        needs = ("optkit_no_such_package",)

    model, recipe = write_mlp(tmp_path / "m.onnx"), write_recipe(tmp_path / "r.yaml", "needs-much")
    words = ("'needs-much' needs the package optkit_no_such_package", "not installed")
    with plugins(much=NeedsMuch):
        fix = "pip install optkit_no_such_package"
        refused(tmp_path, model, "-r", recipe, kind="package-error", words=words, fix=fix)


@pytest.mark.parametrize(
    ("package", "model", "extra"),
    [("onnxruntime", SAMPLES / "digits_mlp.onnx", "cpu"), ("torch", SAMPLES / "digits_mlp.pt", "torch")],
)
def test_an_engine_that_is_missing(tmp_path: Path, package: str, model: Path, extra: str) -> None:
    asked = ("optimize", model, "-r", "fp32", "-o", tmp_path / "out", "--no-bench")
    answer = finish(start(*asked, before=f"import sys; sys.modules['{package}'] = None"))
    assert_refused(answer, 3, package, fix=f"pip install 'optkit[{extra}]'")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "fix"), [("cuda", "optkit[gpu]"), ("cdua", "did you mean 'cuda'?")])
def test_a_provider_that_is_not_there(tmp_path: Path, name: str, fix: str) -> None:
    model, recipe = write_mlp(tmp_path / "m.onnx"), write_recipe(tmp_path / "r.yaml")
    words = (f"'{name}' is not there", "can run here: cpu")
    refused(tmp_path, model, "-r", recipe, "--provider", name, kind="provider-error", words=words, fix=fix)
    for argv in (("run", model), ("check", model, model)):
        assert_refused(call(*argv, "--provider", name), 3, *words, fix=fix)
    write_recipe(recipe, more=f"target: {{provider: {name}}}\n")
    refused(tmp_path, model, "-r", recipe, kind="provider-error", words=words, fix=fix)


def test_static_quantization_without_calibration_data(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "m.onnx")
    words = ("no calibration data", "real samples")
    refused(tmp_path, model, "-r", "int8-static", kind="data-error", words=words, fix="--data calibration=FILE.npz")


def test_a_metric_that_cannot_be_measured(tmp_path: Path) -> None:
    model, data = write_mlp(tmp_path / "m.onnx"), write_data(tmp_path / "x.npz")
    asked = (model, "-r", write_recipe(tmp_path / "r.yaml"), "--data", data)
    words = ("without labelled evaluation data",)
    refused(tmp_path, *asked, "--metric", "top1", kind="data-error", words=words, fix="labels")
    words = ("metric_drop cannot be checked",)
    refused(tmp_path, *asked, "--limit", "metric_drop=0.01", kind="data-error", words=words, fix="labelled")
    refused(tmp_path, *asked, "--limit", "cosin=0.9", kind="usage-error", code=2, words=("'cosin'",), fix="'cosine'")
