from __future__ import annotations

import numpy as np
import pytest

from optkit.passes._quant.bias import bias_shift
from optkit.passes.quantize_static import QuantizeStatic
from tests.helpers import normal, onnx_model, open_any, run_onnx, run_pass

ROUNDED = normal(6, 4, seed=1).round(1)


def test_the_shift_is_the_lost_part_of_the_mean() -> None:
    lost, inputs = normal(6, 4, seed=1), normal(100, 4, seed=2) + 3
    wanted = (inputs @ lost.T).mean(axis=0)
    np.testing.assert_allclose(bias_shift(lost, inputs.mean(axis=0).tolist(), 1), wanted, rtol=1e-5)


def test_groups_take_their_own_channels() -> None:
    lost = normal(4, 1, 3, 3, seed=1)
    shift = bias_shift(lost, [1.0, 2.0, 0.0, -1.0], 4)
    np.testing.assert_allclose(shift, lost.sum(axis=(1, 2, 3)) * [1, 2, 0, -1], rtol=1e-5)


def test_means_of_something_else_are_refused() -> None:
    assert bias_shift(ROUNDED, [1.0, 2.0], 1) is None


@pytest.mark.parametrize("op", ["Conv", "Gemm", "Gemm, transposed"])
def test_the_mean_output_is_restored(op: str) -> None:
    """One scale for channels of very different size rounds the small ones badly, all in one direction."""
    rng = np.random.default_rng(0)
    weights = (rng.uniform(0.4, 0.6, (8, 16)) * np.float32(0.02)).astype(np.float32)
    weights[0] *= 200
    x = (rng.uniform(1, 2, (64, 16))).astype(np.float32)
    layer = {
        "Conv": ("float[n,16,1,1] x) => (float[n,8,1,1] y) { y = Conv(x, w) }", weights[:, :, None, None]),
        "Gemm": ("float[n,16] x) => (float[n,8] y) { y = Gemm(x, w) }", weights.T.copy()),
        "Gemm, transposed": ("float[n,16] x) => (float[n,8] y) { y = Gemm<transB = 1>(x, w) }", weights),
    }[op]
    model = open_any(onnx_model(f"g ({layer[0]}", {"w": layer[1]}))
    fed = {"x": x.reshape(64, 16, 1, 1) if op == "Conv" else x}
    reference = run_onnx(model, fed)["y"].reshape(64, 8).mean(axis=0)
    errors = {}
    for corrected in (True, False):
        pass_ = QuantizeStatic(per_channel=False, bias_correction=corrected)
        made = run_pass(pass_, model, data={"calibration": fed}).model
        errors[corrected] = np.abs(run_onnx(made, fed)["y"].reshape(64, 8).mean(axis=0) - reference).max()
    assert errors[True] < 0.05 < 0.1 < errors[False], errors
