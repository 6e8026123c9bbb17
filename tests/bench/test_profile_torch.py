"""Profiling on torch: its events as calls, then a small real run for its structure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from optkit.bench.events import own_times
from optkit.bench.profile import profile_model
from optkit.bench.profile_torch import torch_calls
from optkit.data.synthetic import synthetic
from optkit.model.model import Model
from optkit.model.target import Target
from tests.command import SAMPLES


def event(name: str, start: float, end: float, *children: Any, flops: int = 0, thread: int = 1, **more: Any) -> Any:
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    about = {"input_shapes": [], "input_dtypes": []} | more
    return SimpleNamespace(name=name, time_range=span, flops=flops, thread=thread, cpu_children=children, **about)


def test_counted_operations_go_to_the_operator_that_works():
    shapes = {"input_shapes": [[4, 3], [], [[2, 2], [2, 2]]], "input_dtypes": ["float", "Scalar", ""]}
    worker = event("aten::mkldnn_convolution", 12.0, 90.0, **shapes)
    middle = event("aten::convolution", 11.0, 95.0, worker)
    top = event("aten::conv2d", 10.0, 99.0, middle, flops=640)
    mark = event("optkit: call", 0.0, 200.0, top)
    add = event("aten::add", 100.0, 110.0, flops=12)
    elsewhere = event("aten::relu", 50.0, 60.0, thread=2)
    (call,) = torch_calls([mark, top, middle, worker, add, elsewhere])
    assert [each.name for each in call.events] == [each.name for each in (top, middle, worker, add)]
    assert [each.operations for each in call.events] == [None, None, 640, None]
    assert [str(tensor) for tensor in call.events[2].inputs] == ["float32[4,3]"]
    assert [own for _, own in own_times(call.events)] == [5.0, 6.0, 78.0, 10.0]


def test_work_that_no_child_does_stays():
    copy = event("aten::copy_", 11.0, 80.0)
    top = event("aten::addmm", 10.0, 99.0, copy, flops=640)
    (call,) = torch_calls([event("optkit: call", 0.0, 200.0, top), top, copy])
    assert [each.operations for each in call.events] == [640, None]


@pytest.fixture
def cnn() -> Model:
    factory = f"{SAMPLES / 'models.py'}:digits_cnn"
    return Model.open(SAMPLES / "digits_cnn.safetensors", factory=factory, signature="image=float32[batch,1,8,8]")


def test_a_small_real_profile(cnn: Model, tmp_path, capfd: pytest.CaptureFixture[str]):
    inputs = [each.inputs for each in synthetic(cnn.signature, split="x", shapes={}, count=8, batch=8).batches()]
    found = profile_model(cnn, Target("cpu", 1), inputs, tmp_path, seconds=0.2)
    assert found.engine == "torch" and found.cost_s == 0.0
    works = {str(node.inputs[1]): node.work for node in found.nodes if "convolution" in node.name and node.work}
    # 3 x 3 convolutions that keep 8 x 8: 1 -> 16 and 16 -> 32 channels, 8 samples
    assert works["float32[16,1,3,3]"].operations == 2 * 8 * 64 * 16 * 9
    assert works["float32[32,16,3,3]"].operations == 2 * 8 * 64 * 32 * 16 * 9
    assert all(work.bytes is None and work.kind == "fp32" for work in works.values())
    products = [node.work.operations for node in found.nodes if node.name == "aten::addmm" and node.work]
    assert sorted(products) == [2 * 8 * 96 * 10, 2 * 8 * 512 * 96]
    assert found.calls and list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""
