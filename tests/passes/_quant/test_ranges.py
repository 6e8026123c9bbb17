from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optkit.errors import DataError, PassError
from optkit.evaluate.limits import Limits
from optkit.model.target import Target
from optkit.passes.quantize_static import QuantizeStatic
from optkit.pipeline.cache import Cache
from optkit.pipeline.context import StepContext
from optkit.pipeline.job import Job
from tests.helpers import MemoryData, fresh_dir, normal, onnx_model, open_any, run_pass
from tests.passes._quant.static_layers import X, cnn, layered_of

LINE = "g (float[n,4] x) => (float[n,4] y) { e = Log(x) y = MatMul(e, w) }"


def test_an_input_that_is_not_finite_names_sample_and_input() -> None:
    model = onnx_model(LINE, {"w": normal(4, 4)})
    x = np.ones((40, 4), np.float32)
    x[21, 2] = np.nan
    given = onnx_model("g (float[n,4] x) => (float[n,4] y) { y = MatMul(x, w) }", {"w": normal(4, 4)})
    with pytest.raises(DataError, match="infinite or NaN in input 'x', first in sample 21"):
        run_pass(QuantizeStatic(), given, data={"calibration": {"x": x}})
    x[21, 2] = 0
    with pytest.raises(PassError, match=r"tensor 'e' becomes infinite or NaN .* begins with sample 16"):
        run_pass(QuantizeStatic(), model, data={"calibration": {"x": x}})


def test_another_choice_of_nodes_does_not_calibrate_again(monkeypatch: Any) -> None:
    runs = []
    real = StepContext.run

    def counted(self: StepContext, *args: Any, **options: Any) -> Any:
        runs.append(self.step)
        return real(self, *args, **options)

    monkeypatch.setattr(StepContext, "run", counted)
    model = open_any(cnn())
    job = Job(
        original=model,
        target=Target(threads=1),
        splits={split: MemoryData(split, X) for split in ("calibration", "evaluation")},
        limits=Limits(),
        exact=False,
        cache=Cache(fresh_dir()),
        synthetic_calibration=True,
        seed=0,
    )
    passes = [QuantizeStatic(), QuantizeStatic(exclude=("conv1",)), QuantizeStatic(include=("conv2",), ops=("Conv",))]
    passes += [QuantizeStatic(include=("conv1",), ops=("Conv",)), QuantizeStatic(calibration="mse")]
    done = [each(model, StepContext(job, fresh_dir(), each.name())) for each in passes]
    assert "conv1" in dict(done[0].changes) and "conv1" not in dict(done[1].changes)
    # For the first, for other operators, and for another calibrator: one sample, then all.
    assert len(runs) == 3 * 2
    direct = run_pass(passes[1], model, data={"calibration": X})
    assert done[1].model.path.read_bytes() == direct.model.path.read_bytes()


def test_many_activations_are_fetched_in_several_runs_with_the_same_result(monkeypatch: Any) -> None:
    whole = layered_of(QuantizeStatic(calibration="percentile"), cnn()).build({}).model
    monkeypatch.setattr("optkit.passes._quant.ranges.MEMORY", 100_000)
    parts = layered_of(QuantizeStatic(calibration="percentile"), cnn()).build({}).model
    assert parts.path.read_bytes() == whole.path.read_bytes()
