from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from optkit.data.dataset import Batch
from optkit.model.signature import Signature, TensorSpec
from optkit.passes._base import Outcome
from optkit.passes._quant.moments import measure
from optkit.passes._quant.unpadded import few, shown, unpadded
from tests.helpers import MemoryData, normal, onnx_model, run_pass
from tests.pipeline.toy import Toy

TEXT = Signature(tuple(TensorSpec(name, "int64", ("batch", "seq")) for name in ("input_ids", "attention_mask")))


def text(masks: list[list[int]]) -> MemoryData:
    mask = np.array(masks)
    ids = np.arange(mask.size).reshape(mask.shape)
    return MemoryData("calibration", {"input_ids": ids, "attention_mask": mask}, batch=2)


def test_whole_batches_stay_whole() -> None:
    found = list(unpadded(text([[1, 1]] * 5), TEXT, limit=100))
    assert [size for _, size in found] == [2, 2, 1]
    np.testing.assert_array_equal(found[1][0]["input_ids"], [[4, 5], [6, 7]])


def test_padded_samples_come_alone_and_short() -> None:
    found = list(unpadded(text([[1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]]), TEXT, limit=100))
    assert [arrays["input_ids"].tolist() for arrays, _ in found] == [[[0, 1, 2]], [[4, 5]], [[9]]]
    assert all(arrays["attention_mask"].all() for arrays, _ in found)


def test_the_limit_counts_samples() -> None:
    assert sum(size for _, size in unpadded(text([[1, 1]] * 7), TEXT, limit=3)) == 3


def test_other_inputs_keep_their_sequence() -> None:
    pixels = TensorSpec("pixels", "float32", ("batch", 3))
    data = text([[1, 0], [1, 1]])
    data.arrays["pixels"] = np.ones((2, 3), np.float32)
    found = list(unpadded(data, Signature((*TEXT.inputs, pixels)), limit=100))
    assert [arrays["pixels"].shape for arrays, _ in found] == [(1, 3), (1, 3)]
    assert [arrays["input_ids"].shape for arrays, _ in found] == [(1, 1), (1, 2)]


def test_padding_rows_of_a_fixed_batch_are_left_out() -> None:
    class Fixed(MemoryData):
        def batches(self):
            for batch in super().batches():
                yield type(batch)(batch.inputs, 1)

    data = Fixed("calibration", text([[1, 1]] * 4).arrays, batch=2)
    assert [len(arrays["input_ids"]) for arrays, _ in unpadded(data, TEXT, limit=100)] == [1, 1]


def test_too_few_data_are_told() -> None:
    context: Any = SimpleNamespace(
        batches=lambda split: text([[1, 1, 0]] * 20), original=SimpleNamespace(signature=TEXT)
    )
    assert few(context, 128, 4) == []
    assert few(context, 128, 5) == ["only 40 positions of calibration text for a layer of 5 inputs: 50 are usual"]
    context.original.signature = Signature((TensorSpec("pixels", "float32", ("batch", 3)),))
    assert few(context, 8, 4) == ["only 8 calibration samples: 128 are usual"]


def test_only_what_the_mask_shows_counts_in_moments() -> None:
    model = onnx_model(
        "g (int64[batch,seq] attention_mask, float[batch,seq,3] x) => (float[batch,seq,3] y)"
        " { wide = Cast<to=1>(attention_mask) y = Mul(x, two) }",
        {"two": np.float32(2)},
    )
    mask, x = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1]]), normal(3, 3, 3, seed=4)
    data = MemoryData("calibration", {"attention_mask": mask, "x": x}, batch=2)
    found: dict[str, Any] = {}

    class Measure(Toy):
        def reads(self) -> tuple[str, ...]:
            return ("calibration",)

        def __call__(self, model: Any, ctx: Any) -> Any:
            found.update(measure(model, {"y": 3}, ctx, ctx.batches("calibration")))
            return Outcome(model, 0)

    run_pass(Measure(), model, data={"calibration": data})
    rows = 2 * x[mask == 1]
    assert found["y"].rows == 5
    np.testing.assert_allclose(found["y"].square, rows.T @ rows, rtol=1e-5)


def test_flat_rows_are_the_positions_of_the_mask_and_others_all_count() -> None:
    batch = Batch({"attention_mask": np.array([[1, 0], [1, 1], [0, 0]])}, size=2)
    flat = np.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(shown(flat, batch), flat[[0, 2, 3]])
    pooled = np.ones((2, 5))
    assert shown(pooled, batch) is pooled
    assert shown(flat, Batch({"x": flat}, size=4)) is flat


def test_a_fixed_batch_stays_whole_and_full() -> None:
    signature = Signature((TensorSpec("x", "float32", (3, 2)),))

    class Padded(MemoryData):
        def batches(self) -> Iterator[Batch]:
            yield from (Batch({"x": np.ones((3, 2))}, size) for size in (3, 1))

    found = list(unpadded(Padded("calibration", {"x": normal(4, 2)}), signature, limit=100))
    assert [(arrays["x"].shape, size) for arrays, size in found] == [((3, 2), 3), ((3, 2), 1)]
