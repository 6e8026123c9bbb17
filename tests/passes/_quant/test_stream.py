from __future__ import annotations

import numpy as np
import pytest

from optkit.errors import DataError, PassError
from optkit.passes._base import Pass
from optkit.passes.quantize_static import QuantizeStatic
from optkit.passes.quantize_weights import QuantizeWeights
from optkit.passes.smooth_quant import SmoothQuant
from tests.helpers import normal, onnx_model, run_pass

PASSES = [QuantizeStatic(), QuantizeWeights(method="gptq"), QuantizeWeights(method="awq"), SmoothQuant(mul=True)]


@pytest.mark.parametrize("pass_", PASSES, ids=lambda each: each.sentence())
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_wrong_sample_is_named(pass_: Pass, wrong: float) -> None:
    x = normal(40, 64)
    x[21, 2] = wrong
    model = onnx_model("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, w) }", {"w": normal(64, 64)})
    with pytest.raises(DataError, match="infinite or NaN in input 'x', first in sample 21"):
        run_pass(pass_, model, data={"calibration": {"x": x}})


def test_samples_are_counted_along_their_own_axis() -> None:
    """The number of the sample is that of the row, even where a later row is wrong in an earlier column."""
    x = np.ones((40, 64), np.float32)
    x[9, 63] = x[12, 0] = np.nan
    model = onnx_model("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, w) }", {"w": normal(64, 64)})
    with pytest.raises(DataError, match="first in sample 9"):
        run_pass(QuantizeStatic(), model, data={"calibration": {"x": x}})


@pytest.mark.parametrize("pass_", PASSES, ids=lambda each: each.sentence())
def test_a_tensor_that_turns_wrong_is_named_with_its_batch(pass_: Pass) -> None:
    x = np.abs(normal(40, 64)) + 1
    x[21, 2] = 0
    text = "g (float[n,64] x) => (float[n,64] y) { l = Log(x) e = Mul(l, g) y = MatMul(e, w) }"
    model = onnx_model(text, {"w": normal(64, 64), "g": np.ones(64, np.float32)})
    with pytest.raises(PassError, match=r"tensor 'e' becomes infinite or NaN .* begins with sample 16"):
        run_pass(pass_, model, data={"calibration": {"x": x}})
