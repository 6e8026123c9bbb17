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
