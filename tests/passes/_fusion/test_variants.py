from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optkit.data.dataset import Arrays, Dataset
from optkit.errors import DataError
from optkit.model.model import Model
from optkit.passes._base import NOISE, NOISE_INT8
from optkit.passes._fusion.variants import Variants, same
from tests.helpers import fresh_dir, onnx_model, open_any, run_onnx
from tests.passes.test_export_onnx import Ctx

THIRD = np.float32(1 / 3)
GELU = """g (float[n,8] x) => (float[n,8] y) {
    d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half) }"""
VALUES = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}


def floats(*values: float) -> Any:
    return np.float32(values)


def test_a_result_that_is_the_same_everywhere_may_be_rounded():
    before = np.full(4, THIRD)
    assert same(before, np.nextafter(before, np.float32(1)), NOISE)
    assert not same(before, before + np.float32(1e-5), NOISE)
    assert same(np.zeros(4, np.float32), np.zeros(4, np.float32), NOISE)
    assert not same(np.zeros(4, np.float32), floats(0, 0, 0, 1e-9), NOISE)


def test_noise_is_a_share_of_the_standard_deviation():
    before = floats(-1, 1)
    assert same(before, before + np.float32(0.0009), NOISE)
    assert not same(before, before + np.float32(0.0011), NOISE)


def test_nan_and_infinity_have_to_stay_where_they_are():
    before = floats(np.nan, np.inf, 1, 2)
    assert same(before, before.copy(), NOISE)
    assert not same(before, floats(np.nan, -np.inf, 1, 2), NOISE)
    assert not same(before, floats(0, np.inf, 1, 2), NOISE)
    assert not same(floats(1, 2), floats(1, np.nan), NOISE)


def test_integers():
    before = np.arange(100)
    off = np.where(before < 4, before + 1, before)
    assert not same(before, off, NOISE)
    assert same(before, off, NOISE_INT8)
    assert not same(before, before.astype(np.int32), NOISE)


class Here(Ctx):
    """Runs models, but for batches whose largest value is below ``least``, as if they did not take them."""

    least = -np.inf

    def run(self, model: Model, batches: Dataset, outputs: Any = None) -> Iterator[Arrays]:
        del outputs
        for batch in batches.batches():
            if max(float(np.max(array)) for array in batch.inputs.values()) < self.least:
                raise DataError("no such batch")
            yield run_onnx(model, batch.inputs, plain=True)


def variants(text: str, least: float = -np.inf, **constants: Any) -> Variants:
    model = open_any(onnx_model(text, constants))
    ctx = Here(model, fresh_dir())
    ctx.least = least
    return Variants(model, ctx, "fuse-graph")


def test_gelu_is_compared_on_both_batches():
    made = variants(GELU, **VALUES)
    assert made.notes == []
    assert made(frozenset({"gelu"})).problem == ""
    assert made.notes == []


def test_that_nothing_was_compared_is_told():
    made = variants(GELU, least=np.inf, **VALUES)
    assert made(frozenset({"gelu"})).problem == ""
    assert made.notes == ["not compared with the model, which takes no made-up batch: no such batch"]
    only_zeros_failed = variants(GELU, least=0.01, **VALUES)
    assert only_zeros_failed(frozenset({"gelu"})).problem == ""
    assert only_zeros_failed.notes == []


@pytest.mark.parametrize(("epsilon", "problem"), [(1e-6, ""), (0.0, "its y differs on a batch of zeros")])
def test_a_lost_epsilon_shows_on_zeros(epsilon: float, problem: str):
    text = "g (float[n,8] x) => (float[n,8] y) { a = Abs(x) s = Add(a, eps) y = Div(x, s) }"
    made = variants(text, eps=np.float32(1e-6))
    lost = open_any(onnx_model(text, {"eps": np.float32(epsilon)}))
    assert made._differs(replace(made.model, path=lost.path)) == problem
