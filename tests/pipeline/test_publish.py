"""What is published: names from a model never lead out of the output, and the model alone says what it lacks."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optkit.cli.render import show_manifest
from optkit.errors import UsageError
from optkit.model.model import Assets, Model
from optkit.passes.to_ort_format import ToOrtFormat
from optkit.pipeline.infer import infer
from optkit.pipeline.names import file_name, member_name
from optkit.pipeline.optimize import optimize
from optkit.pipeline.outputs import write_npz
from optkit.pipeline.publish import publish
from optkit.report.markdown import markdown
from tests.pipeline import toy

ENTRIES = {"session.intra_op.allow_spinning": "0", "session.x": "1"}


def text_model(tmp_path: Path, *names: str) -> Model:
    """A model whose inputs of these names are said to be texts."""
    (tmp_path / "token").mkdir()
    (tmp_path / "token" / "tokenizer.json").write_text("{}")
    entries = {name: {"kind": "text", "tokenizer": "token"} for name in names}
    return replace(Model.open(toy.write_model(tmp_path / "m.onnx")), assets=Assets(entries, tmp_path))


def test_names_of_inputs_stay_inside_the_bundle(tmp_path: Path) -> None:
    names = ["../../../pwned", "/abs", "..", "a/b", "a_b", "input_ids"]
    manifest = optimize(toy.write_model(tmp_path / "first.onnx"), toy.ScaleBy(), bench=False)
    out = tmp_path / "deep" / "er" / "out"
    publish(manifest, text_model(tmp_path, *names), out, force=False)
    entries: dict[str, Any] = json.loads((out / "preprocess.json").read_text())
    folders = [entries[name]["tokenizer"].removeprefix("preprocess/") for name in names]
    assert folders == [".._.._.._pwned", "_abs", "_..", "a_b", "a_b_1", "input_ids"]
    assert sorted(path.name for path in (out / "preprocess").iterdir()) == sorted(folders)
    assert all((out / entry["tokenizer"] / "tokenizer.json").is_file() for entry in entries.values())
    assert [path.name for path in (tmp_path / "deep").rglob("*pwned*")] == [".._.._.._pwned"]


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..\\x", "C:\\x", "C:/x", "a/../../x"])
def test_names_of_outputs_stay_inside_the_folder_where_they_are_unpacked(tmp_path: Path, name: str) -> None:
    write_npz(tmp_path / "y.npz", {name: np.ones(2), "a/b": np.zeros(1), "y:0": np.zeros(3)})
    found, *others = zipfile.ZipFile(tmp_path / "y.npz").namelist()
    assert not {"/", "\\", ":"} & set(found)
    assert others == ["a/b.npy", "y:0.npy"]
    assert np.load(tmp_path / "y.npz")[found.removesuffix(".npy")].tolist() == [1, 1]


def test_names_that_become_the_same_are_told_apart() -> None:
    assert file_name("a/b", {"a_b", "a_b_1"}) == "a_b_2"
    assert member_name("../y", {".._y"}) == ".._y_1"
    assert len(file_name("x" * 500)) == 100


def test_the_model_alone_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    manifest = optimize(text_model(tmp_path, "x"), toy.Session(entries=ENTRIES), out, bench=False)
    session, preprocess = manifest.notes
    assert session.endswith("set the config entries session.intra_op.allow_spinning=0, session.x=1")
    assert preprocess == "out.onnx alone does not include the preprocessing of x: a bundle does"
    assert f"- {session}\n- {preprocess}" in markdown(manifest)
    show_manifest(manifest)
    told = capsys.readouterr().out
    assert f"Note: {session}" in told
    assert f"Note: {preprocess}" in told
    assert optimize(tmp_path / "m.onnx", toy.ScaleBy(), tmp_path / "plain.onnx", bench=False).notes == ()
    assert optimize(tmp_path / "m.onnx", toy.Session(entries=ENTRIES), tmp_path / "bundle", bench=False).notes == ()


WANTED = {
    "execution_mode": "parallel",
    "inter_op_num_threads": "2",
    "intra_op_num_threads": "1",
    "session.intra_op.allow_spinning": "0",
    "enable_cpu_mem_arena": "0",
    "free_dimension_override_by_name:other": "5",
}


def test_the_model_alone_says_which_options_are_set_where(tmp_path: Path) -> None:
    toy.write_model(tmp_path / "m.onnx")
    entries = {"a.b": "1", "execution_mode": "parallel", "enable_mem_pattern": "0", "provider_option:x": "2"}
    (note,) = optimize(tmp_path / "m.onnx", toy.Session(entries=entries), tmp_path / "out.onnx", bench=False).notes
    assert note.endswith(
        "wants: set the config entries a.b=1; of SessionOptions execution_mode=parallel, enable_mem_pattern=0; "
        "of the execution provider x=2"
    )


def test_an_ort_file_alone_is_the_model_alone(tmp_path: Path) -> None:
    toy.write_model(tmp_path / "m.onnx")
    place = tmp_path / "to"
    manifest = optimize(tmp_path / "m.onnx", [toy.ScaleBy(), ToOrtFormat()], place / "out.ort", bench=False, threads=1)
    assert [file.name for file in place.iterdir()] == ["out.ort"]
    opened = Model.open(place / "out.ort")
    assert (opened.form, opened.digest) == ("ort", manifest.result.digest)
    assert "out.ort" in markdown(manifest) and "recipe.yaml" not in markdown(manifest)
    again = optimize(
        tmp_path / "m.onnx", [toy.ScaleBy(), ToOrtFormat()], place / "out.ort", bench=False, threads=1, force=True
    )
    assert again.result.digest == manifest.result.digest


def test_a_result_of_another_format_than_the_ending_is_not_written(tmp_path: Path) -> None:
    """As where the step that writes the ORT file was rolled back."""
    path = toy.write_model(tmp_path / "m.onnx")
    manifest = optimize(path, toy.ScaleBy(), tmp_path / "out", bench=False)
    with pytest.raises(UsageError, match=r"out\.ort, but the result of the recipe is an ONNX file"):
        publish(manifest, Model.open(path), tmp_path / "out.ort", force=False)
    assert not (tmp_path / "out.ort").exists()


OPENED = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from open_model import options, session
np.savez(sys.argv[3], **dict(zip(["y", "side"], session.run(None, {"x": np.load(sys.argv[2])["x"]}))))
print(options.intra_op_num_threads, options.inter_op_num_threads, options.execution_mode.name)
print(options.enable_cpu_mem_arena, options.get_session_config_entry("session.intra_op.allow_spinning"))
print("optkit" in sys.modules)
"""


def test_plain_onnxruntime_opens_a_bundle_with_the_same_options_and_gives_the_same(tmp_path: Path) -> None:
    toy.write_model(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **toy.arrays(5))
    passes = [toy.ScaleBy(), toy.Session(entries=WANTED)]
    manifest = optimize(tmp_path / "m.onnx", passes, tmp_path / "out", bench=False)
    assert manifest.session == WANTED
    command = [sys.executable, "-c", OPENED, *(str(tmp_path / name) for name in ("out", "x.npz", "plain.npz"))]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == ["1 2 ORT_PARALLEL", "False 0", "False"]
    ran = infer(tmp_path / "out", inputs=tmp_path / "x.npz", batch=5, output=tmp_path / "y.npz")
    assert ran.facts.threads == 1
    with np.load(tmp_path / "plain.npz") as plain, np.load(tmp_path / "y.npz") as own:
        for name in ("y", "side"):
            np.testing.assert_array_equal(plain[name], own[name])
    assert optimize(tmp_path / "m.onnx", passes, tmp_path / "out", bench=False, force=True).output
