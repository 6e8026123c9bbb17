"""The lines of Python that open a result in plain onnxruntime with the options that its manifest states."""

from __future__ import annotations

from pathlib import Path

from optkit.model.bundle import is_alone
from optkit.model.manifest import Manifest
from optkit.model.target import Target
from optkit.runner.session import SECOND, THREADS, complete, provider_options, quoted

SPELLED = {
    "cann": "CANN",
    "coreml": "CoreML",
    "cpu": "CPU",
    "cuda": "CUDA",
    "directml": "Dml",
    "migraphx": "MIGraphX",
    "onednn": "Dnnl",
    "openvino": "OpenVINO",
    "qnn": "QNN",
    "rocm": "ROCM",
    "tensorrt": "Tensorrt",
    "tensorrt-rtx": "NvTensorRTRTX",
    "webgpu": "WebGpu",
    "xnnpack": "Xnnpack",
}
"""Short name of a provider -> onnxruntime's, without ``ExecutionProvider``."""


def model_name(manifest: Manifest) -> str:
    """The file of the result: in a bundle ``model.onnx`` or ``model.ort``, alone as it was asked for."""
    if manifest.output is not None and is_alone(manifest.output):
        return Path(manifest.output).name
    return "model.ort" if manifest.result.form == "ort" else "model.onnx"


def result_threads(manifest: Manifest) -> int:
    """Intra-op threads that the result computes with: those stated for the target, else its own, else all usable."""
    own = int(manifest.session.get(THREADS, manifest.environment.threads))
    return manifest.environment.threads if _stated_threads(manifest) else own


def _stated_threads(manifest: Manifest) -> int:
    """Intra-op threads that the target stated; 0 = none."""
    return int(manifest.recipe.get("target", {}).get("threads", 0))


def open_model(manifest: Manifest) -> str:
    """``open_model.py`` of a bundle: after it, ``session`` is what ``optkit run`` would have used where it was made."""
    provider = manifest.environment.provider
    target = Target(provider, _stated_threads(manifest))
    entries = {THREADS: str(result_threads(manifest)), **manifest.session}
    providers = _providers(provider, manifest.session)
    return "\n".join(
        [
            '"""Opens the model in plain onnxruntime with the options that it was measured with."""',
            "",
            "from pathlib import Path",
            "",
            "import onnxruntime",
            "",
            "options = onnxruntime.SessionOptions()",
            *map(str, complete(entries, target)),
            f"path = Path(__file__).with_name({quoted(model_name(manifest))})",
            f"session = onnxruntime.InferenceSession(path, options, providers={providers})",
            "",
        ]
    )


def full_name(provider: str) -> str:
    """``cuda`` -> ``CUDAExecutionProvider``."""
    return f"{SPELLED.get(provider, provider)}ExecutionProvider"


def _providers(provider: str, session: dict[str, str]) -> str:
    first, own = quoted(full_name(provider)), provider_options(session)
    pairs = ", ".join(f"{quoted(name)}: {quoted(value)}" for name, value in own.items())
    listed = [f"({first}, {{{pairs}}})" if own else first, *map(quoted, SECOND.get(full_name(provider), ()))]
    return f"[{', '.join(listed)}]"
