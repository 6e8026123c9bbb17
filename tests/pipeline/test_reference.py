"""The original's outputs in the cache: batch by batch, under their own names, large ones mapped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from optkit.data.dataset import Array, Arrays
from optkit.pipeline import reference
from optkit.pipeline.job import Job
from optkit.pipeline.reference import NAMES, ensure_references, original_outputs, output_bytes
from tests.helpers import MemoryData
from tests.pipeline import toy
from tests.pipeline.toy import arrays, make_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


def test_outputs_come_back_batch_by_batch_and_are_computed_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    data = MemoryData("evaluation", arrays(20, 6))
    found = list(original_outputs(job, data))
    assert [{name: array.shape for name, array in batch.items()} for batch in found] == [
        {"y": (rows, 3), "side": (rows, 2)} for rows in (8, 8, 4)
    ]
    whole = np.concatenate([batch["y"] for batch in found])
    np.testing.assert_allclose(whole, data.arrays["x"] @ toy.WEIGHTS["w"], atol=1e-5, rtol=0)
    monkeypatch.setattr(reference, "open_runner", None)
    assert len(list(original_outputs(job, data))) == 3


def test_their_size_is_known_without_reading_them(job: Job) -> None:
    data = MemoryData("evaluation", arrays(20, 6))
    heads = 2 * 128
    assert output_bytes(job, data) == [rows * 5 * 4 + heads for rows in (8, 8, 4)]


@pytest.mark.parametrize("mapped", [False, True])
def test_every_kind_of_array_and_name_survives(job: Job, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    made: list[Arrays] = [
        {"a/b:0": np.arange(6.0).reshape(2, 3), "../text": np.array(["x", "yz"], object), "scalar": np.float16(2.5)},
        {"a/b:0": np.zeros((0, 3)), "../text": np.array([], object), "scalar": np.array(True)},
    ]

    def outputs(*_: object) -> Iterator[Arrays]:
        yield from made

    monkeypatch.setattr(reference, "run_dataset", outputs)
    monkeypatch.setattr(reference, "MAPPED_BYTES", 0 if mapped else 2**20)
    found = list(original_outputs(job, MemoryData("evaluation", arrays(3))))
    assert [list(batch) for batch in found] == [["a/b:0", "../text", "scalar"]] * 2
    for before, after in zip(made, found, strict=True):
        for name, array in after.items():
            assert isinstance(array, np.memmap) is mapped
            assert array.shape == before[name].shape
            assert array.tolist() == before[name].tolist()
    assert found[0]["../text"].dtype.kind == "U"


def test_what_is_written_into_a_mapped_array_does_not_reach_the_cache(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MAPPED_BYTES", 0)
    data = MemoryData("evaluation", arrays(8, 6))
    first = next(original_outputs(job, data))["y"]
    kept: Array = first.copy()
    first[:] = 7
    np.testing.assert_array_equal(next(original_outputs(job, data))["y"], kept)
    (folder,) = ensure_references(job, [data])
    assert sorted(file.name for file in folder.iterdir()) == ["000000-0.npy", "000000-1.npy", "entry.json", NAMES]
