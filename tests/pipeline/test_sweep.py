"""The points of a sweep, and what candidates are fed there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optkit.data.spec import DataSource
from optkit.errors import ModelError, UsageError
from optkit.model.model import Model
from optkit.model.signature import Signature, parse_signature
from optkit.pipeline.gather import Source
from optkit.pipeline.sweep import Supply, common_inputs, points_of, rows_of, sample_dim
from tests.helpers import normal

TOKENS = "ids=int64[batch,seq]; mask=int64[batch,seq]"


def model(text: str) -> Model:
    return Model(Path("m.onnx"), "onnx", "onnx", Signature(parse_signature(text)))


def supply(text: str, **more: object) -> Supply:
    return Supply(Signature(parse_signature(text)), **more)


@pytest.fixture
def real(tmp_path: Path) -> Source:
    np.savez(tmp_path / "x.npz", x=normal(11, 4))
    return Source(DataSource(source="x.npz", batch=3), tmp_path, False)


def test_points_are_every_combination_threads_fastest() -> None:
    found = points_of(supply(TOKENS), {"seq": [16, 32], "batch": [1]}, [1, 2], {"m": model(TOKENS)})
    small, large = {"seq": 16, "batch": 1}, {"seq": 32, "batch": 1}
    assert found == [(small, 1), (small, 2), (large, 1), (large, 2)]
    assert points_of(supply(TOKENS), {}, [4], {"m": model(TOKENS)}) == [({}, 4)]


def test_batch_stands_for_the_sample_axis_whatever_its_name() -> None:
    assert sample_dim(Signature(parse_signature("x=float32[s0,4]"))) == "s0"
    assert points_of(supply("x=float32[s0,4]"), {"batch": [2]}, [1], {}) == [({"s0": 2}, 1)]


def test_sums_of_dimensions_are_swept_by_their_parts() -> None:
    text = "ids=int64[batch,seq]; mask=int64[batch,past + seq]"
    found = supply(text).at({"past": 3, "seq": 5, "batch": 2})
    assert {name: array.shape for name, array in found.batches[0].items()} == {"ids": (2, 5), "mask": (2, 8)}


@pytest.mark.parametrize(
    ("text", "dims", "message", "expected"),
    [
        (TOKENS, {"sequence": [8]}, "The dimension 'sequence' does not exist.", "batch, seq"),
        ("x=float32[1,4]", {"batch": [8]}, "The dimension 'batch' is fixed in m.", "all sizes are fixed"),
        ("x=float32[1,4]", {"seq": [8]}, "The dimension 'seq' does not exist.", "all sizes are fixed"),
        (TOKENS, {"seq": [0]}, "0 is no number for the dimension seq.", "from 1"),
    ],
)
def test_dimensions_that_cannot_be_swept(text: str, dims: dict[str, list[int]], message: str, expected: str) -> None:
    with pytest.raises(UsageError) as told:
        points_of(supply(text), dims, [1], {"m": model(text)})
    assert told.value.message == message and expected in told.value.expected


def test_threads_below_one_are_refused() -> None:
    with pytest.raises(UsageError, match="-2 is no number for threads"):
        points_of(supply(TOKENS), {}, [-2], {})


def test_common_inputs_take_the_sizes_that_any_candidate_has_fixed() -> None:
    found = common_inputs({"a": model("x=float32[batch,seq,4]"), "b": model("x=float32[n,16,4]")})
    assert [str(spec) for spec in found] == ["x=float32[batch,16,4]"]
    with pytest.raises(UsageError, match="'seq' is fixed in b") as told:
        models = {"a": model("x=float32[batch,seq,4]"), "b": model("x=float32[n,16,4]")}
        points_of(Supply(Signature(found)), {"seq": [8]}, [1], models)
    assert told.value.expected == "one of the dynamic dimensions: batch"


@pytest.mark.parametrize("other", ["y=float32[batch,4]", "x=float32[batch,5]", "x=float32[batch,4,1]", TOKENS])
def test_candidates_with_other_inputs_are_refused_by_name(other: str) -> None:
    with pytest.raises(ModelError) as told:
        common_inputs({"a.onnx": model("x=float32[batch,4]"), "b.onnx": model(other)})
    assert told.value.message == "b.onnx does not take the inputs of the baseline a.onnx."
    assert "x=float32[batch,4]" in told.value.expected and other.partition(";")[0] in told.value.expected


def test_real_data_come_in_full_batches_of_the_size_asked_for(real: Source) -> None:
    place = supply("x=float32[batch,4]", source=real)
    own, other = place.at({}), place.at({"batch": 5})
    assert [len(batch["x"]) for batch in own.batches] == [3, 3, 3, 3]
    assert [len(batch["x"]) for batch in other.batches] == [5, 5, 5, 5]
    assert (own.synthetic, own.dims, other.dims) == (False, {"batch": 3}, {"batch": 5})
    assert Path(own.source) == real.base / "x.npz"
    np.testing.assert_array_equal(other.batches[1]["x"], normal(11, 4)[2:7])


def test_too_few_samples_are_repeated_which_is_said(real: Source) -> None:
    """11 samples: batches begin at 0, 2, 5 and 8, so that there are four different ones all the same."""
    found = supply("x=float32[batch,4]", source=real).at({"batch": 16})
    wanted = [normal(11, 4)[np.arange(start, start + 16) % 11] for start in (0, 2, 5, 8)]
    np.testing.assert_array_equal([batch["x"] for batch in found.batches], wanted)
    assert found.note == "11 samples, used repeatedly to fill 4 batches of 16" and not found.synthetic


def test_enough_samples_are_used_once(real: Source) -> None:
    found = supply("x=float32[batch,4]", source=real).at({"batch": 2})
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in found.batches]), normal(11, 4)[:8])
    assert found.note == ""


def test_other_sizes_than_the_batch_make_inputs_up_which_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", ids=np.ones((9, 12), np.int64), mask=np.ones((9, 12), np.int64))
    source = Source(DataSource(source="x.npz", batch=3), tmp_path, False)
    place = supply(TOKENS, source=source)
    found = place.at({"seq": 20, "batch": 2})
    assert found.synthetic and found.source == "" and found.dims == {"batch": 2, "seq": 20}
    assert found.note == "real inputs come in their own sizes: where seq is set, they are made up"
    assert (place.at({}).synthetic, place.at({}).dims) == (False, {"batch": 3, "seq": 12})


def test_made_up_batches_rotate_and_depend_on_the_seed() -> None:
    found = supply("x=float32[batch,4]", shapes={"batch": 6}).at({})
    assert len(found.batches) == 4 and found.dims == {"batch": 6}
    assert not np.array_equal(found.batches[0]["x"], found.batches[1]["x"])
    again, other = supply("x=float32[batch,4]").at({}), supply("x=float32[batch,4]", seed=1).at({})
    assert again.dims == {"batch": 8}
    assert again.digest == supply("x=float32[batch,4]").at({}).digest != other.digest


def test_sizes_that_differ_from_batch_to_batch_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n".join(f'{{"ids": {[1] * count}}}' for count in (2, 3, 5, 4)))
    source = Source(DataSource(source="t.jsonl", batch=2), tmp_path, False)
    found = supply("ids=int64[batch,seq]", source=source).at({})
    assert [batch["ids"].shape for batch in found.batches] == [(2, 3), (2, 5), (2, 5), (2, 4)]
    assert found.dims == {"batch": 2}


@pytest.mark.parametrize(
    ("text", "rows"), [("x=float32[batch,4]", 8), ("x=float32[4,4]; s=float32[]", 4), ("x=float32[6]", 1)]
)
def test_samples_of_a_batch(text: str, rows: int) -> None:
    place = supply(text)
    assert rows_of(place.signature, place.at({}).batches[0]) == rows
