from __future__ import annotations

import pytest

from optkit.model.signature import Signature, parse_signature


@pytest.mark.parametrize(
    ("text", "axes", "fixed"),
    [
        ("x=float32[batch,3];y=float32[7,2]", {"x": 0, "y": None}, None),
        ("x=float32[64];scale=float32[]", {"x": None, "scale": None}, None),
        ("x=float32[1]", {"x": 0}, 1),
        ("x=float32[rows]", {"x": 0}, None),
        ("x=float32[seq,N,8]", {"x": 1}, None),
        ("x=float32[d0,3];y=int64[d1]", {"x": 0, "y": 0}, None),
        ("x=float32[4,3];y=int64[4]", {"x": 0, "y": 0}, 4),
        ("input=float32[1,576];state=float32[2,1,128]", {"input": 0, "state": None}, 1),
        ("input=float32[rows,576];state=float32[2,rows,128];sr=int64[]", {"input": 0, "state": None, "sr": None}, None),
    ],
)
def test_the_sample_axis_of_every_input(text: str, axes: dict[str, int | None], fixed: int | None) -> None:
    signature = Signature(parse_signature(text))
    assert signature.batch_axes() == axes
    assert signature.fixed_batch() == fixed


@pytest.mark.parametrize(
    ("sizes", "shapes"),
    [
        ({}, [("batch", 3, "seq"), ("batch", "past + seq"), ("batch", "past + 1")]),
        ({"batch": 4}, [(4, 3, "seq"), (4, "past + seq"), (4, "past + 1")]),
        ({"seq": 5, "past": 2}, [("batch", 3, 5), ("batch", 7), ("batch", 3)]),
        ({"past": 0}, [("batch", 3, "seq"), ("batch", "past + seq"), ("batch", 1)]),
        ({"past + seq": 9}, [("batch", 3, "seq"), ("batch", 9), ("batch", "past + 1")]),
    ],
)
def test_dynamic_dimensions_can_be_fixed(sizes: dict[str, int], shapes: list[tuple[int | str, ...]]) -> None:
    inputs = parse_signature("x=float32[batch,3,seq];mask=int64[batch,past + seq];z=int64[batch,past + 1]")
    fixed = Signature(inputs, inputs).fixed(sizes)
    assert [spec.shape for spec in fixed.inputs] == shapes
    assert fixed.outputs == fixed.inputs


def test_sizes_that_another_signature_has_fixed() -> None:
    mine = Signature(parse_signature("x=float32[batch,3,seq];y=int64[batch,past + seq];z=int64[n]"))
    theirs = Signature(parse_signature("x=float32[4,3,seq];y=int64[batch,9];other=int64[7]"))
    assert mine.sizes_in(theirs) == {"batch": 4, "past + seq": 9}
    assert theirs.sizes_in(mine) == {}


def test_names_of_what_counts_samples() -> None:
    assert Signature(parse_signature("x=float32[seq,N,8];y=float32[N]")).batch_dims == ("N",)
    assert Signature(parse_signature("x=float32[d0,3];y=int64[d1]")).batch_dims == ("d0", "d1")
    assert Signature(parse_signature("x=float32[4,3];y=float32[seq]")).batch_dims == ("seq",)
    assert Signature(parse_signature("x=float32[4,3]")).batch_dims == ()
