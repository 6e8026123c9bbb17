from __future__ import annotations

import sys
from pathlib import Path

import pytest

from optkit.errors import PackageError, ProviderError
from optkit.runner import providers
from optkit.runner.providers import available, import_ort, reason, require, short_name


def test_telemetry_is_off_before_onnxruntime_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    import_ort()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_cpu_is_always_there_and_services_never() -> None:
    assert "cpu" in available()
    assert "azure" not in available()
    assert require("cpu") == require("CPU") == require("CPUExecutionProvider") == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("CUDAExecutionProvider", "cuda"),
        ("DmlExecutionProvider", "directml"),
        ("CoreMLExecutionProvider", "coreml"),
        ("OpenVINOExecutionProvider.AUTO", "openvino.auto"),
        ("MyPlugin", "myplugin"),
    ],
)
def test_short_names(full: str, short: str) -> None:
    assert short_name(full) == short


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("migraphx", "pip install onnxruntime-migraphx"),
        ("DmlExecutionProvider", "onnxruntime-directml"),
        ("opnvino", "did you mean 'openvino'?"),
        ("FooExecutionProvider", "install an onnxruntime that has it"),
    ],
)
def test_a_provider_that_is_not_there_is_refused_with_its_cure(name: str, cure: str) -> None:
    with pytest.raises(ProviderError) as caught:
        require(name)
    assert caught.value.message == f"The execution provider '{name}' is not there."
    assert caught.value.expected.startswith("one of those that can run here: cpu")
    assert cure in caught.value.fix
    assert caught.value.exit_code == 3


@pytest.mark.skipif("cuda" in available(), reason="this machine has CUDA")
def test_cuda_names_the_extra() -> None:
    with pytest.raises(ProviderError, match="optkit\\[gpu\\]"):
        require("cuda")


def test_without_onnxruntime_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PackageError, match="onnxruntime cannot be imported") as caught:
        import_ort()
    assert caught.value.fix == "pip install 'optkit[cpu]'"


def test_a_plugin_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libbroken.so"
    library.write_bytes(b"no library")
    (tmp_path / "onnxruntime_ep_broken.py").write_text(f"def get_library_path(): return {str(library)!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    providers.plugins.cache_clear()
    try:
        with pytest.raises(ProviderError, match=r"onnxruntime_ep_broken is installed but failed: .*libbroken"):
            require("broken")
        assert available()[0] == "cpu"
    finally:
        providers.plugins.cache_clear()


def test_onnxruntimes_messages_become_one_line_without_code() -> None:
    text = "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from a.onnx failed:  Protobuf parsing failed.\nat x"
    assert reason(ValueError(text)) == "Load model from a.onnx failed: Protobuf parsing failed."
    assert reason(ValueError("")) == "ValueError"
