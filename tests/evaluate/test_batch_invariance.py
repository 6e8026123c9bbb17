"""Shifts by batch neighbours against known answers, with numpy functions for models."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
import pytest

from optkit.data.dataset import Arrays, Batch
from optkit.evaluate.batch_invariance import (
    ROWS,
    SAMPLES,
    copies,
    measure_shifts,
    neighbourhoods,
    output_axis,
    reason_not_to,
    rows_of,
)
from optkit.evaluate.rows import OutputOptions
from optkit.model.signature import Signature, TensorSpec
from tests.evaluate.toy import ToyData

SIGNATURE = Signature((TensorSpec("x", "float32", ("batch", 3)),), (TensorSpec("y", "float32", ("batch", 3)),))
X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def shift(model: Callable[[Arrays], Arrays], batch: Batch | None = None, name: str = "y") -> float | None:
    return measure_shifts(model, [batch or Batch({"x": X}, len(X))], SIGNATURE)[name].value


def test_a_model_of_independent_samples_shifts_by_exactly_zero():
    assert shift(lambda inputs: {"y": np.tanh(inputs["x"]) * 3}) == 0.0


def test_the_shift_is_the_largest_over_the_standard_deviation():
    def centred(inputs: Arrays) -> Arrays:
        return {"y": inputs["x"] - inputs["x"].mean(axis=0, keepdims=True)}

    # Among copies of itself a sample less the mean is 0, so that all of its answer is shift.
    expected = float(np.abs(X - X.mean(axis=0)).max() / np.std(X - X.mean(axis=0)))
    assert shift(centred) == pytest.approx(expected, rel=1e-5)


def test_integer_outputs_count_the_elements_that_change():
    def ranked(inputs: Arrays) -> Arrays:
        return {"y": (inputs["x"] > inputs["x"].mean()).astype(np.int64)}

    apart = np.stack([row > row.mean() for row in X])
    assert shift(ranked) == pytest.approx(float(((X.mean() < X) != apart).mean()))
    assert shift(lambda inputs: {"y": np.sign(inputs["x"]).astype(np.int64)}) == 0.0


def test_what_becomes_nan_by_its_neighbours_is_infinitely_far():
    def torn(inputs: Arrays) -> Arrays:
        alike = (inputs["x"] == inputs["x"][:1]).all()
        return {"y": inputs["x"] if alike else np.full_like(inputs["x"], np.nan)}

    assert shift(torn) == inf
    assert shift(lambda inputs: {"y": np.full_like(inputs["x"], np.nan)}) == 0.0


def test_a_constant_output_is_measured_against_its_size():
    def constant(inputs: Arrays) -> Arrays:
        alike = (inputs["x"] == inputs["x"][:1]).all()
        return {"y": np.full(len(inputs["x"]), 10 if alike else 11, np.float32)}

    assert shift(constant) == pytest.approx(1 / 11)


def test_masked_positions_do_not_count():
    signature = Signature(
        (TensorSpec("ids", "float32", ("batch", "seq")), TensorSpec("attention_mask", "int64", ("batch", "seq"))),
        (TensorSpec("y", "float32", ("batch", "seq", 1)),),
    )
    mask = np.array([[1, 1, 0], [1, 0, 0]])

    def model(inputs: Arrays) -> Arrays:  # the masked positions see the whole batch, the others themselves
        seen = np.where(inputs["attention_mask"] == 1, inputs["ids"], inputs["ids"].sum())
        return {"y": seen[..., None].astype(np.float32)}

    batch = Batch({"ids": X[:2], "attention_mask": mask}, 2)
    assert measure_shifts(model, [batch], signature)["y"].value == 0.0
    bare = {"y": OutputOptions(mask=False)}
    assert (measure_shifts(model, [batch], signature, bare)["y"].value or 0) > 0.1


def test_padding_rows_are_neighbours_and_not_samples():
    fed = []

    def model(inputs: Arrays) -> Arrays:
        fed.append(inputs["x"].shape)
        return {"y": inputs["x"] + inputs["x"].sum()}

    found = measure_shifts(model, [Batch({"x": X}, 2)], SIGNATURE)["y"]
    assert (found.samples, fed) == (2, [(6, 3)] * 3)


def test_constants_stay_and_states_are_copied_along_their_own_axis():
    state = np.arange(24.0).reshape(2, 4, 3)
    axes = {"x": 0, "state": 1, "rate": None}
    made = copies({"x": X[:4], "state": state, "rate": np.array(16_000)}, axes, 2)
    np.testing.assert_array_equal(made["x"], np.stack([X[2]] * 4))
    np.testing.assert_array_equal(made["state"], np.stack([state[:, 2]] * 4, axis=1))
    assert made["rate"] == 16_000


@pytest.mark.parametrize(
    ("dims", "shape", "axis"),
    [
        (("batch", 3), (8, 3), 0),
        ((2, "batch", 3), (2, 8, 3), 1),
        (("unknown", "other"), (8, 8), 0),
        (("a", "b", "c"), (2, 8, 3), 1),
        (("a", "b", "c"), (2, 8, 8), None),
        ((), (), None),
    ],
)
def test_the_axis_of_samples(dims: tuple[int | str, ...], shape: tuple[int, ...], axis: int | None):
    signature = Signature(SIGNATURE.inputs, (TensorSpec("y", "float32", dims),))
    assert output_axis(signature, "y", shape, rows=8) == axis


def test_an_output_without_samples_is_not_measured():
    assert shift(lambda inputs: {"y": np.float32(inputs["x"].sum())}) is None


def test_batches_of_one_are_put_together():
    data = ToyData({"x": np.arange(60, dtype=np.float32).reshape(20, 3)}, batch=1)
    made = list(neighbourhoods(data.batches(), SIGNATURE))
    assert [(batch.size, rows_of(batch, SIGNATURE)) for batch in made] == [(ROWS, ROWS)] * (SAMPLES // ROWS)
    np.testing.assert_array_equal(made[1].inputs["x"][:, 0], np.arange(24, 48, 3))


def test_samples_of_other_lengths_are_not_neighbours():
    signature = Signature((TensorSpec("x", "float32", ("batch", "seq")),))
    lengths = [3, 4, 3, 5, 3]
    batches = [Batch({"x": np.ones((1, length), np.float32)}, 1) for length in lengths]
    made = list(neighbourhoods(batches, signature))
    assert [batch.inputs["x"].shape for batch in made] == [(3, 3)]


def test_as_many_samples_as_asked():
    made = list(neighbourhoods(ToyData({"x": np.zeros((20, 3))}, batch=4).batches(), SIGNATURE, samples=6))
    assert [batch.size for batch in made] == [4, 2]
    assert [len(batch.inputs["x"]) for batch in made] == [4, 4]


def test_why_a_sample_has_no_neighbours():
    fixed = Signature((TensorSpec("x", "float32", (1, 3)),))
    single = Signature((TensorSpec("x", "float32", (7,)),))
    assert reason_not_to(SIGNATURE) == ""
    assert reason_not_to(fixed) == "its batch size is fixed at 1: a sample has no neighbours"
    assert reason_not_to(single) == "no input has a batch axis: a call is one sample"
