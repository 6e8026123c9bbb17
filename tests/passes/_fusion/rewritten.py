"""``rewritten``: what one family makes of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from optkit.model.model import Model
from optkit.passes._fusion.family import Fired
from optkit.passes._fusion.shapes import know_shapes
from optkit.passes._ir import load_ir, remove_unused, save_ir
from tests.helpers import fresh_dir, open_any, run_onnx


def rewritten(family: Callable[[Any], Fired], proto: onnx.ModelProto) -> tuple[Model, Model, Fired]:
    """(before, after, what was done), with the shapes known that the pass would know."""
    before = open_any(proto)
    graph, path = load_ir(before.path), fresh_dir() / "model.onnx"
    know_shapes(graph)
    fired = family(graph)
    remove_unused(graph)
    save_ir(graph, path)
    return before, open_any(path), fired


def assert_same(after: Model, before: Model, inputs: dict[str, Any], tolerance: float) -> None:
    """Outputs by onnxruntime without rewrites of its own, within an absolute tolerance."""
    found, expected = (run_onnx(model, inputs, plain=True) for model in (after, before))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance)
