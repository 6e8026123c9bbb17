from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from optkit.model.signature import Signature, TensorSpec
from optkit.passes._quant.unpadded import few, unpadded
from tests.helpers import MemoryData

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
