from __future__ import annotations

from pathlib import Path

import pytest

from optkit.errors import PackageError, UsageError
from optkit.runner import engine
from optkit.runner.engine import Chosen, parse_engine


@pytest.mark.parametrize(
    ("text", "path", "chosen"),
    [
        ("model.onnx", "model.onnx", Chosen()),
        ("model.pt@eager", "model.pt", Chosen("torch")),
        ("model.pt@compile", "model.pt", Chosen("torch-compile")),
        ("model.onnx@openvino", "model.onnx", Chosen("openvino")),
        (
            "model.onnx@openvino:bf16",
            "model.onnx",
            Chosen("openvino", session={"openvino.INFERENCE_PRECISION_HINT": "bf16"}),
        ),
        ("model.onnx@cpu", "model.onnx", Chosen("onnxruntime", "cpu")),
        ("model.onnx@cuda", "model.onnx", Chosen("onnxruntime", "cuda")),
        ("a@b/m@2.onnx@openvino", "a@b/m@2.onnx", Chosen("openvino")),
        ("a@b/model.onnx", "a@b/model.onnx", Chosen()),
        ("@eager", "@eager", Chosen()),
    ],
)
def test_what_follows_the_last_at_is_the_engine(text: str, path: str, chosen: Chosen) -> None:
    assert parse_engine(text) == (Path(path), chosen)


def test_a_path_that_exists_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "model@openvino"
    path.write_bytes(b"")
    assert parse_engine(str(path)) == (path, Chosen())
    assert parse_engine(f"{path}@openvino") == (path, Chosen("openvino"))


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("m.onnx@openvin", "did you mean m.onnx@openvino?"),
        ("m.onnx@openvino:b16", "did you mean m.onnx@openvino:bf16?"),
        ("m.pt@Compile", "did you mean m.pt@compile?"),
        ("m@v2.onnx", "leave @v2.onnx out"),
        ("m.onnx@", "leave @ out"),
    ],
)
def test_unknown_engines_are_refused_with_a_guess(text: str, fix: str) -> None:
    with pytest.raises(UsageError, match=f"and no file '{text}'") as caught:
        parse_engine(text)
    assert caught.value.fix == fix
    for name in ("eager", "compile", "openvino", "openvino:f32", "openvino:bf16", "cuda", "onednn", "cpu"):
        assert f" {name}" in caught.value.expected


def test_plugins_may_have_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "available", lambda: ("cpu", "quick"))
    assert parse_engine("m.onnx@quick")[1] == Chosen("onnxruntime", "quick")


def test_without_onnxruntime_the_known_names_are_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[str, ...]:
        raise PackageError("onnxruntime cannot be imported.")

    monkeypatch.setattr(engine, "available", missing)
    with pytest.raises(UsageError, match="no engine 'quick'"):
        parse_engine("m.onnx@quick")
