"""Matrices of 4 or 8 bits with a scale for every block of a row, and rounding to the nearest of their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optkit.passes._quant.layered import FLOAT

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CHUNK = 1 << 18
"""Weights that are worked on at a time, so that they stay in the processor's cache."""
CALIBRATED = ("gptq", "awq")
"""Methods that look at data."""


def ladder(bits: int) -> tuple[str, ...]:
    """Precisions of a layer of 4 or 8 bits, see ``Layered.ladder``."""
    return ("int4", "int8", FLOAT) if bits == 4 else ("int8", FLOAT)


@dataclass(frozen=True)
class Grid:
    """The values that weights are rounded to: ``(code - zero) * scale``, a scale for ``block`` weights of a row."""

    bits: int
    """4 or 8."""
    block: int
    symmetric: bool
    """Whether zero is the middle code for all blocks, instead of one that is stored for each."""

    @property
    def top(self) -> int:
        """The greatest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero of symmetric blocks."""
        return 1 << (self.bits - 1)

    def fit(self, weights: Floats, axis: int) -> tuple[Floats, Floats]:
        """Scale and zero of blocks that lie along ``axis``, which stays with size 1.

        Asymmetric blocks span from their least to their greatest value. Symmetric ones have a code more below zero than
        above, so the scale takes the sign that gives this code to the value of greatest magnitude.
        """
        low = np.minimum(weights.min(axis=axis, keepdims=True), 0)
        high = np.maximum(weights.max(axis=axis, keepdims=True), 0)
        if self.symmetric:
            scale = np.where(high > -low, high, low) / np.float32(-self.middle)
        else:
            scale = (high - low) / np.float32(self.top)
        # Below the smallest normal float a quotient overflows; such a block is zero for all purposes.
        scale = np.where(np.abs(scale) < np.finfo(np.float32).tiny, np.float32(1), scale)
        zero = np.full_like(scale, self.middle) if self.symmetric else np.rint(-low / scale)
        return scale, np.clip(zero, 0, self.top)

    def codes(self, weights: Floats, scale: Floats, zero: Floats) -> Floats:
        """The codes of the values nearest to ``weights``, as whole floats."""
        found = weights / scale
        np.rint(found, out=found)
        found += zero
        return np.clip(found, 0, self.top, out=found)

    def round(self, weights: Floats, fit: Callable[[Floats], tuple[Floats, Floats]] | None = None) -> Blocks:
        """``weights``, float32[rows, width], each at the nearest value; a chunk of rows at a time.

        Args:
            weights: in any memory layout.
            fit: scale and zero of [rows, blocks, block], as [rows, blocks, 1]; None = ``Grid.fit``.
        """
        made = Blocks.empty(self, *weights.shape)
        step = max(1, CHUNK // max(1, weights.shape[1]))
        for start in range(0, len(weights), step):
            part = self.split(weights[start : start + step])
            scale, zero = fit(part) if fit else self.fit(part, -1)
            made.put(start, self.codes(part, scale, zero), scale[..., 0], zero[..., 0])
        return made

    def split(self, weights: Floats) -> Floats:
        """[rows, width] -> [rows, blocks, block], the last one filled up with zeros."""
        rows, width = weights.shape
        blocks = -(-width // self.block)
        whole = np.zeros((rows, blocks * self.block), np.float32)
        whole[:, :width] = weights
        return whole.reshape(rows, blocks, self.block)


@dataclass(frozen=True)
class Blocks:
    """A quantized matrix [rows, width]."""

    grid: Grid
    width: int
    packed: Bytes
    """[rows, blocks, block * bits / 8]; of two codes in a byte the first has the low bits."""
    scales: Floats
    """[rows, blocks]."""
    zeros: Bytes
    """[rows, blocks]; the middle code everywhere where the grid is symmetric."""

    @classmethod
    def empty(cls, grid: Grid, rows: int, width: int) -> Blocks:
        """Room for so many rows."""
        blocks = -(-width // grid.block)
        packed = np.empty((rows, blocks, grid.block * grid.bits // 8), np.uint8)
        shape = (rows, blocks)
        return cls(grid, width, packed, np.empty(shape, np.float32), np.empty(shape, np.uint8))

    def put(self, start: int, codes: Floats, scales: Floats, zeros: Floats) -> None:
        """Set rows from ``start`` on: codes [rows, blocks, block], scales and zeros [rows, blocks]."""
        rows = slice(start, start + len(codes))
        self.packed[rows] = pack(codes.astype(np.uint8), self.grid.bits)
        self.scales[rows], self.zeros[rows] = scales, zeros

    def codes(self) -> Bytes:
        """[rows, width]."""
        codes = unpack(self.packed, self.grid.bits)
        return codes.reshape(len(codes), -1)[:, : self.width]

    def floats(self) -> Floats:
        """float32[rows, width]: the weights that these stand for."""
        codes = unpack(self.packed, self.grid.bits).astype(np.float32)
        values = (codes - self.zeros[..., None]) * self.scales[..., None]
        return values.reshape(len(values), -1)[:, : self.width]


def pack(codes: Bytes, bits: int) -> Bytes:
    """[..., n] codes -> [..., ceil(n * bits / 8)] bytes, the first of two codes in the low bits."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    found: Bytes = codes[..., ::2] | np.left_shift(codes[..., 1::2], np.uint8(4), dtype=np.uint8)
    return found


def unpack(packed: Bytes, bits: int) -> Bytes:
    """The codes of ``pack``, an even number of them."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
