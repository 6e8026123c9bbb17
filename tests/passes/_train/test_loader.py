"""Shuffled batches: every sample once an epoch, the same order for a seed, whatever the data look like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from optkit.data.dataset import Array, Arrays, Batch
from optkit.errors import PassError
from optkit.model.signature import Signature, TensorSpec
from optkit.passes._train import loader as loader_module
from optkit.passes._train.loader import Loader, join
from tests.passes._train.jobs import SAMPLES, dataset, digits

PAIR = Signature(
    (TensorSpec("ids", "int64", ("batch", "seq")), TensorSpec("scale", "float32", (3,))),
    (TensorSpec("y", "float32", ("batch", 2)),),
)


@dataclass(frozen=True)
class Ragged:
    """Rows i, i, ... of length 1 + i % 4, padded with -1 within each batch; the last batch has one row too many."""

    rows: Array
    batch: int = 4
    split: str = "train"
    source: str = "memory"
    synthetic: bool = False
    digest: str = ""
    groups: Array | None = None
    labels: Array | None = None

    @property
    def count(self) -> int:
        return len(self.rows)

    def batches(self) -> Iterator[Batch]:
        for start in range(0, self.count, self.batch):
            rows = self.rows[start : start + self.batch]
            ids = np.full((len(rows) + 1, 4 if (rows % 4 == 3).any() else 3), -1, np.int64)
            for place, row in enumerate(rows):
                ids[place, : 1 + int(row) % 4] = row
            yield Batch({"ids": ids, "scale": np.ones(3, np.float32)}, len(rows))

    def subset(self, indices: Array, split: str) -> Ragged:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=self.rows[indices], split=split, labels=labels)


def ragged(count: int = 10, **fields: Any) -> Ragged:
    return replace(Ragged(np.arange(count)), **fields)


def test_an_epoch_has_every_sample_with_its_label_but_for_the_last_that_fill_no_batch() -> None:
    data = dataset(digits(), "train", "calibration")
    whole = np.load(SAMPLES / "data" / "digits_calibration.npz")
    loader = Loader(data, digits().signature, 30, seed=1)
    batches = list(loader)
    assert len(batches) == len(loader) == data.count // 30
    assert all(batch.size == 30 and batch.inputs["image"].dtype == torch.float32 for batch in batches)
    assert all(batch.labels is not None and batch.labels.dtype == torch.int64 for batch in batches)
    seen = {
        image.numpy().tobytes(): int(label)
        for batch in batches
        for image, label in zip(batch.inputs["image"], batch.labels, strict=True)  # type: ignore[arg-type]
    }
    assert len(seen) == 30 * len(loader)
    images = whole[next(name for name in whole.files if whole[name].ndim == 4)].astype(np.float32)
    labels = {image.tobytes(): int(label) for image, label in zip(images, data.labels, strict=True)}
    assert seen.items() <= labels.items()


def orders(loader: Loader, epochs: int) -> list[list[int]]:
    return [[int(row[0]) for batch in loader for row in batch.inputs["ids"]] for _ in range(epochs)]


def test_the_order_is_that_of_the_seed_and_another_each_epoch() -> None:
    one, again, other = (orders(Loader(ragged(), PAIR, 5, seed), 2) for seed in (1, 1, 2))
    assert one == again
    assert sorted(one[0]) == sorted(one[1]) == list(range(10))
    assert one[0] != one[1]
    assert one != other


def test_steps_go_on_in_the_middle_of_an_epoch() -> None:
    loader = Loader(ragged(), PAIR, 2, seed=3)
    whole = [batch.inputs["ids"].tolist() for batch, _ in zip(loader.steps(), range(12), strict=False)]
    rest = [batch.inputs["ids"].tolist() for batch, _ in zip(loader.steps(7), range(5), strict=False)]
    assert rest == whole[7:]


def test_ragged_rows_are_streamed_without_padding_rows_and_constants_repeat() -> None:
    loader = Loader(ragged(), PAIR, 6, seed=0)
    (batch,) = loader
    assert batch.inputs["ids"].shape == (6, 4)
    assert batch.inputs["scale"].tolist() == [1, 1, 1]
    assert all(len(set(row[: 1 + row[0] % 4])) == 1 for row in batch.inputs["ids"].tolist())
    assert (batch.inputs["ids"][:, 0] >= 0).all()


def test_many_samples_are_read_anew_and_come_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(digits(), "train", "calibration")
    kept = [batch.inputs["image"] for batch in Loader(data, digits().signature, 16, seed=4)]
    monkeypatch.setattr(loader_module, "MEMORY_BYTES", 100)
    streamed = [batch.inputs["image"] for batch in Loader(data, digits().signature, 16, seed=4)]
    assert all(torch.equal(a, b) for a, b in zip(kept, streamed, strict=True))


def test_fewer_samples_than_a_batch_are_one_batch() -> None:
    assert [batch.size for batch in Loader(ragged(3), PAIR, 8, seed=0)] == [3]


def test_a_fixed_batch_size_is_kept() -> None:
    fixed = replace(PAIR, inputs=(TensorSpec("ids", "int64", (2, "seq")), PAIR.inputs[1]))
    assert {batch.size for batch in Loader(ragged(), fixed, 8, seed=0)} == {2}


def test_the_teacher_sees_the_inputs_of_each_batch() -> None:
    loader = Loader(ragged(), PAIR, 5, seed=0, teacher=lambda inputs: {"y": inputs["ids"].float() * 2})
    assert all(torch.equal(batch.targets["y"], batch.inputs["ids"] * 2.0) for batch in loader)  # type: ignore[index]


@pytest.mark.parametrize(
    ("given", "dtype"), [("int32", torch.int64), ("bool", torch.int64), ("float64", torch.float32)]
)
def test_labels_become_whole_numbers_or_floats(given: str, dtype: torch.dtype) -> None:
    batch = next(iter(Loader(ragged(labels=np.arange(10).astype(given)), PAIR, 5, seed=0)))
    assert batch.labels is not None
    assert batch.labels.dtype == dtype


def test_a_column_of_class_numbers_is_class_numbers() -> None:
    batch = next(iter(Loader(ragged(labels=np.arange(10)[:, None]), PAIR, 5, seed=0)))
    assert batch.labels is not None
    assert batch.labels.shape == (5,)


def test_labels_that_are_no_numbers_are_refused() -> None:
    labels = np.array([1.0, np.nan, 3.0, np.inf] + [0.0] * 6)
    with pytest.raises(PassError, match="2 of 10 labels of the split train are no finite numbers"):
        Loader(ragged(labels=labels), PAIR, 5, seed=0)


def test_labels_that_are_words_are_refused() -> None:
    with pytest.raises(PassError, match="nothing can be trained on"):
        Loader(ragged(labels=np.array(["a"] * 10)), PAIR, 5, seed=0)


def test_joining_fills_shorter_rows_with_zeros() -> None:
    pieces: list[Arrays] = [{"x": np.ones((1, 2), np.int64)}, {"x": np.ones((2, 3), np.int64)}]
    assert join(pieces, {"x": 0})["x"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_a_teacher_asked_beforehand_is_not_asked_again_and_says_the_same() -> None:
    calls = []

    def teacher(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls.append(len(inputs["image"]))
        return {"logits": inputs["image"].flatten(1)[:, :3] * 2}

    data, signature = dataset(digits(), "train", "calibration"), digits().signature
    asked, live = (Loader(data, signature, 7, seed=3, teacher=teacher) for _ in range(2))
    asked.know_targets()
    assert sum(calls) == data.count
    calls.clear()
    for one, other in zip(asked.epoch(1), live.epoch(1), strict=True):
        torch.testing.assert_close(one.targets, other.targets, rtol=0, atol=0)
    assert len(calls) == len(live)


def test_a_teacher_whose_outputs_are_not_one_a_sample_is_asked_each_time() -> None:
    data, signature = dataset(digits(), "train", "calibration"), digits().signature
    loader = Loader(data, signature, 7, seed=3, teacher=lambda inputs: {"mean": inputs["image"].mean()})
    loader.know_targets()
    assert next(loader.epoch(0)).targets == {"mean": next(loader.epoch(0)).inputs["image"].mean()}
