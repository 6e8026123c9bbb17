"""ONNX -> int8 IR of OpenVINO by NNCF; runs in the environment ``nncf``: MODEL SAMPLES.npz OUT.xml transformer|none."""

import sys
from collections import defaultdict

sys.modules["openvino_telemetry"] = None  # both do without it, and send nothing

import nncf  # noqa: E402
import numpy as np  # noqa: E402
import openvino  # noqa: E402


def main(model: str, samples: str, out: str, kind: str) -> None:
    """Everything that is not given stays at NNCF's default: preset performance, fast bias correction."""
    feeds: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
    with np.load(samples) as file:
        for key in file.files:
            index, _, name = key.partition("/")
            feeds[int(index)][name] = file[key]
    graph = openvino.Core().read_model(model)
    data = nncf.Dataset([feeds[index] for index in sorted(feeds)])
    chosen = nncf.ModelType.TRANSFORMER if kind == "transformer" else None
    quantized = nncf.quantize(graph, data, model_type=chosen, subset_size=len(feeds))
    openvino.save_model(quantized, out, compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
