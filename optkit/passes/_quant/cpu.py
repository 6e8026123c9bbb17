"""Which integers a machine computes with: what its instructions can and cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from optkit.model.target import Target

ActivationType = Literal["auto", "uint8", "int8", "int16"]
SYMMETRIC = frozenset({"cuda", "tensorrt", "nv_tensorrt_rtx", "rocm", "migraphx"})
"""Providers of graphics processors: their integer kernels know no zero point."""


@dataclass(frozen=True)
class Grid:
    """Integers that floats are rounded to."""

    bits: int
    signed: bool
    symmetric: bool
    """Zero point 0."""

    @property
    def name(self) -> str:
        """As numpy calls the type."""
        return f"{'' if self.signed else 'u'}int{self.bits}"

    def step(self, low: float, high: float) -> tuple[np.float32, int]:
        """Scale and zero point to represent [low, high] and 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        least, top = (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)
        reach = max(-low, high) / top if self.symmetric else (high - low) / (top - least)
        scale = np.float32(reach) if reach >= np.finfo(np.float32).tiny else np.float32(1)
        return scale, 0 if self.symmetric else int(np.clip(round(least - low / float(scale)), least, top))


def activation_grid(asked: ActivationType, target: Target) -> Grid:
    """The integers of activations: what was asked for, else what the target computes fast with.

    | target | activations | why |
    |---|---|---|
    | x86, also for OpenVINO | uint8 | the instructions (VPMADDUBSW, VPDPBUSD) multiply uint8 by int8 |
    | other CPUs (ARM) | int8 | SDOT and SMMLA multiply int8 by int8 |
    | CUDA, TensorRT and the like | int8, zero point 0 | TensorRT takes no other |
    """
    from optkit.model.machine import machine

    symmetric = target.provider in SYMMETRIC
    signed = symmetric or target.provider not in ("cpu", "openvino") or not machine().is_x86
    if asked in ("uint8", "int8"):
        signed = asked == "int8"
    return Grid(16 if asked == "int16" else 8, signed, symmetric and signed)


def wide(grid: Grid) -> Grid:
    """The same with 16 bits."""
    return Grid(16, grid.signed, grid.symmetric)


def reduce_range(asked: bool | None, target: Target) -> bool:
    """Whether weights should use 7 bits: what was asked for, else when uint8 x int8 would saturate on this processor.

    x86 without VNNI adds two products in 16 bits (VPMADDUBSW), and 2 * 255 * 127 does not fit.
    Source: onnxruntime's documentation, "Quantize ONNX models", on U8S8 and saturation.
    """
    from optkit.model.machine import machine

    if asked is not None or target.provider != "cpu":
        return bool(asked)
    return machine().is_x86 and not machine().has_vnni
