"""What the processor's int8 instructions can and cannot do."""

from __future__ import annotations

from optkit.model.target import Target


def reduce_range(asked: bool | None, target: Target) -> bool:
    """Whether weights should use 7 bits: what was asked for, else when uint8 x int8 would saturate on this processor.

    x86 without VNNI adds two products in 16 bits (VPMADDUBSW), and 2 * 255 * 127 does not fit.
    Source: onnxruntime's documentation, "Quantize ONNX models", on U8S8 and saturation.
    """
    from optkit.model.machine import machine

    if asked is not None or target.provider != "cpu":
        return bool(asked)
    return machine().is_x86 and not machine().has_vnni
