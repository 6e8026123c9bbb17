"""Where it was measured, as a fact of the manifest."""

from __future__ import annotations

import os
import platform

from optkit import __version__
from optkit.model.machine import machine
from optkit.model.manifest import Artifact, Environment
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline.job import library_versions

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxslim", "onnxruntime", "openvino", "torch", "transformers")


def environment(target: Target, load_average: float | None = None) -> Environment:
    """Machine, versions and target of this process; the load average is the caller's, from before it measured."""
    here = machine()
    return Environment(
        optkit=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=here.cpu,
        cpu_features=tuple(here.features),
        cores=here.logical_cores,
        threads=target.threads or here.usable_threads,
        provider=target.provider,
        packages=library_versions(*_PACKAGES),
        physical_cores=here.physical_cores,
        affinity=here.affinity,
        cpu_limit=here.cpu_limit,
        memory_bytes=here.memory_bytes,
        load_average=load_average,
        gpus=here.gpus,
    )


def load_average() -> float | None:
    """Processes that wanted to run, on average over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def artifact(model: Model, *, name: str | None = None) -> Artifact:
    """A model as a fact."""
    return Artifact(
        path=name or str(model.path),
        form=model.form,
        kind=model.kind,
        digest=model.digest,
        size_bytes=model.size_bytes,
        inputs=tuple(str(spec) for spec in model.signature.inputs),
        outputs=tuple(str(spec) for spec in model.signature.outputs),
    )
