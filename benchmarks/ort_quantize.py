"""ONNX -> int8 ONNX by onnxruntime's quantizers, all options at their defaults: KIND MODEL FOLDER [SAMPLES.npz].

KIND is dynamic, static or fused (onnxscript's optimize_for_ort, then dynamic). Writes model.onnx, and note.txt where
the plain call failed and a detour was needed.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static


class Samples(CalibrationDataReader):
    """One sample after the other from an .npz of ``INDEX/INPUT`` arrays."""

    def __init__(self, path: str) -> None:
        feeds: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
        with np.load(path) as file:
            for key in file.files:
                index, _, name = key.partition("/")
                feeds[int(index)][name] = file[key]
        self._rest = iter([feeds[index] for index in sorted(feeds)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample; None at the end."""
        return next(self._rest, None)


def main(kind: str, model: str, folder: str, samples: str = "") -> None:
    """Try the plain call; where it fails, try again without the file's value_info."""
    place = Path(folder)
    out = str(place / "model.onnx")
    calls: dict[str, Callable[[str], None]] = {
        "dynamic": lambda source: quantize_dynamic(source, out),
        "static": lambda source: quantize_static(source, out, Samples(samples)),
        "fused": lambda source: quantize_dynamic(source, out, extra_options={"DefaultTensorType": 1}),
    }
    source = fused(model, place / "fused.onnx") if kind == "fused" else model
    try:
        calls[kind](source)
    except Exception as error:  # noqa: BLE001 - whatever it is goes into the note
        failed = next(line for line in reversed(str(error).splitlines()) if line.strip())
        calls[kind](cleared(source, place / "cleared.onnx"))
        (place / "note.txt").write_text(f"value_info removed; with it: {type(error).__name__}: {failed[:160]}\n")
    for left in [*place.glob("fused.*"), *place.glob("cleared.*")]:
        left.unlink()


def fused(model: str, out: Path) -> str:
    """Attention, SkipLayerNormalization, BiasGelu and others as onnxruntime's own operators."""
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    done, counts = optimize_for_ort(onnx_ir.load(model))
    if not any(counts.values()):
        raise SystemExit("RuntimeError: optimize_for_ort fused nothing")
    onnx_ir.save(done, out, external_data=f"{out.name}.data")
    return str(out)


def cleared(model: str, out: Path) -> str:
    """The model without the shapes of inner tensors that its exporter wrote down."""
    graph = onnx.load(model)
    del graph.graph.value_info[:]
    onnx.save(graph, out, save_as_external_data=True, location=f"{out.name}.data")
    return str(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
