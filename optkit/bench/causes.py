"""Why may a quantized model be slow on onnxruntime's CPU provider? Clauses that name the cause and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optkit.bench.quantized import Quantized
from optkit.model.machine import Machine

SMALL = 100_000
"""Weights of a matrix below which dynamic int8 costs what it saves: 4 layers of 128 x 128 ran .6 to 1.6 times as fast
as in float32, of 512 x 512 about 5 times (one thread, 1 to 128 rows, AMX)."""
MANY_ROWS = 4
"""Rows from which MatMulNBits no longer pays: 1.9 times as fast as float32 at one row, .9 times at four."""


@dataclass(frozen=True)
class Case:
    """A quantized model, and where it was measured."""

    found: Quantized
    rows: int
    """Product of the dynamic dimensions: the rows of its matrix products."""
    here: Machine


def causes_of(case: Case) -> list[str]:
    """The clauses that apply; empty where the file and the processor show no cause."""
    return [clause for cause in CAUSES if (clause := cause(case))]


def counts(operators: Mapping[str, int], most: int = 4) -> str:
    """``12 LayerNormalization, 4 Gelu``, and how many kinds more."""
    parts = [f"{count} {name}" for name, count in sorted(operators.items(), key=lambda item: (-item[1], item[0]))]
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} other kinds" if len(parts) > most else "")


def _dynamic_convolutions(case: Case) -> str:
    count = case.found.integer["ConvInteger"]
    if not count:
        return ""
    return (
        f"{count} convolutions run as ConvInteger (dynamic int8), for which onnxruntime has no fast kernel, so "
        "quantize them statically (quantize-static) or leave them in float"
    )


def _signed_activations(case: Case) -> str:
    if not case.found.signed or not case.here.is_x86:
        return ""
    return (
        f"{case.found.signed} of {case.found.activations} quantized activations are signed (S8), which x86 processors "
        "multiply slowly, so quantize activations as unsigned (U8)"
    )


def _no_instructions(case: Case) -> str:
    if not case.found.integer or case.here.has_vnni:
        return ""
    return (
        "this processor has no instruction for int8 products (VNNI, AMX, dot product), so int8 saves memory here but "
        "hardly time, and has to be measured where the model will run"
    )


def _small_matrices(case: Case) -> str:
    sizes = [size for size in case.found.dynamic_weights if size]
    mean = sum(sizes) / len(sizes) if sizes else math.inf
    if mean >= SMALL:
        return ""
    return (
        f"its {len(sizes)} dynamic int8 matrices have {mean:,.0f} weights on average, and to find the range of the "
        "activations in each call (DynamicQuantizeLinear) costs what so small products save, so quantize statically "
        "(quantize-static) or leave them in float"
    )


def _many_rows(case: Case) -> str:
    if not case.found.n_bit or case.rows < MANY_ROWS:
        return ""
    level = "" if case.found.accuracy_level >= 4 else "set accuracy_level 4, or "
    return (
        f"{case.found.n_bit} MatMulNBits save reading weights, which is what counts at one row but not at {case.rows}, "
        f"so {level}quantize activations too (quantize-dynamic)"
    )


def _stranded(case: Case) -> str:
    if not case.found.stranded:
        return ""
    return (
        f"{counts(case.found.stranded)} have int8 weights but multiply floats, because their input (of Conv also the "
        "output) is not quantized, so quantize these too, or none of them"
    )


def _conversions(case: Case) -> str:
    left, useful = case.found.conversions, case.found.integer.total()
    if left.total() <= useful:
        return ""
    return (
        f"{left.total()} conversions between int8 and float (QuantizeLinear, DequantizeLinear) cannot be merged and "
        f"stay beside {useful} integer products, around {counts(left)}, so quantize those too where they have integer "
        "kernels, or fewer products"
    )


CAUSES: tuple[Callable[[Case], str], ...] = (
    _dynamic_convolutions,
    _signed_activations,
    _no_instructions,
    _small_matrices,
    _many_rows,
    _stranded,
    _conversions,
)
"""A clause each, empty where it does not apply; what weighs most comes first."""
