from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optkit.model.target import Target
from optkit.passes._quant.cpu import ActivationType, Grid, activation_grid, reduce_range, wide

MACHINES = {
    "x86 with VNNI": SimpleNamespace(is_x86=True, has_vnni=True),
    "x86 without VNNI": SimpleNamespace(is_x86=True, has_vnni=False),
    "ARM": SimpleNamespace(is_x86=False, has_vnni=True),
}
UINT8, INT8, SYMMETRIC = Grid(8, False, False), Grid(8, True, False), Grid(8, True, True)


@pytest.mark.parametrize(
    ("machine", "provider", "grid", "narrow"),
    [
        ("x86 with VNNI", "cpu", UINT8, False),
        ("x86 without VNNI", "cpu", UINT8, True),
        ("ARM", "cpu", INT8, False),
        ("x86 with VNNI", "openvino", UINT8, False),
        ("x86 without VNNI", "cuda", SYMMETRIC, False),
        ("ARM", "tensorrt", SYMMETRIC, False),
    ],
)
def test_integers_follow_processor_and_provider(
    monkeypatch: Any, machine: str, provider: str, grid: Grid, narrow: bool
) -> None:
    monkeypatch.setattr("optkit.model.machine.machine", lambda: MACHINES[machine])
    target = Target(provider=provider)
    assert activation_grid("auto", target) == grid
    assert reduce_range(None, target) is narrow


@pytest.mark.parametrize(
    ("asked", "provider", "grid"),
    [
        ("uint8", "cuda", UINT8),
        ("int8", "cpu", INT8),
        ("int16", "cpu", Grid(16, False, False)),
        ("int16", "tensorrt", Grid(16, True, True)),
    ],
)
def test_what_is_asked_for_counts(monkeypatch: Any, asked: ActivationType, provider: str, grid: Grid) -> None:
    monkeypatch.setattr("optkit.model.machine.machine", lambda: MACHINES["x86 with VNNI"])
    assert activation_grid(asked, Target(provider=provider)) == grid
    assert wide(UINT8) == Grid(16, False, False)


@pytest.mark.parametrize(
    ("grid", "low", "high", "scale", "zero"),
    [
        (UINT8, 0.0, 6.0, 6 / 255, 0),
        (UINT8, -1.0, 1.55, 0.01, 100),
        (UINT8, 2.0, 5.1, 5.1 / 255, 0),
        (INT8, 0.0, 6.0, 6 / 255, -128),
        (SYMMETRIC, -1.0, 2.54, 0.02, 0),
        (Grid(16, False, False), 0.0, 65.535, 0.001, 0),
        (UINT8, 0.0, 0.0, 1.0, 0),
    ],
)
def test_scale_and_zero_point(grid: Grid, low: float, high: float, scale: float, zero: int) -> None:
    found = grid.step(low, high)
    assert found[0] == pytest.approx(scale, rel=1e-6) and found[0].dtype == np.float32
    assert found[1] == zero
