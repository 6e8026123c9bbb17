"""The lines that open a result in plain onnxruntime: valid Python that sets what the manifest says."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
import pytest

from optkit.model.manifest import Manifest
from optkit.report.markdown import markdown
from optkit.report.snippet import SPELLED, full_name, model_name, open_model, result_threads
from optkit.report.waterfall import timing_lines
from optkit.runner.providers import short_name
from tests.report.test_waterfall import HERE, artifact, manifest

OWN = {"intra_op_num_threads": "1"}


def stated(threads: int, **more: Any) -> Manifest:
    return manifest(**more).model_copy(update={"recipe": {"target": {"threads": threads}}})


def test_every_option_is_one_line() -> None:
    session = {**OWN, "execution_mode": "parallel", "session.x": 'a"b', "free_dimension_override_by_name:n": "4"}
    text = open_model(manifest(session=session))
    compile(text, "open_model.py", "exec")
    assert text.splitlines()[6:] == [
        "options = onnxruntime.SessionOptions()",
        "options.intra_op_num_threads = 1",
        "options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL",
        'options.add_session_config_entry("session.x", "a\\"b")',
        'options.add_free_dimension_override_by_name("n", 4)',
        'path = Path(__file__).with_name("model.onnx")',
        'session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])',
    ]


def test_threads_are_those_stated_then_those_of_the_result_then_those_that_were_used() -> None:
    assert result_threads(manifest()) == HERE.threads == 2
    assert result_threads(manifest(session=OWN)) == 1
    assert result_threads(stated(2, session=OWN)) == 2
    assert "options.intra_op_num_threads = 2\n" in open_model(stated(2, session=OWN))


def test_the_report_says_where_the_result_takes_other_threads_than_the_baseline() -> None:
    assert "2 threads (the result: 1)" in timing_lines(manifest(session=OWN))[-1]
    assert "(the result" not in timing_lines(stated(2, session=OWN))[-1]


@pytest.mark.parametrize(
    ("provider", "listed"),
    [
        ("cuda", '[("CUDAExecutionProvider", {"prefer_nhwc": "1"})]'),
        ("tensorrt", '[("TensorrtExecutionProvider", {"prefer_nhwc": "1"}), "CUDAExecutionProvider"]'),
    ],
)
def test_providers_come_with_their_options(provider: str, listed: str) -> None:
    made = manifest(session={"provider_option:prefer_nhwc": "1"})
    made = made.model_copy(update={"environment": HERE.model_copy(update={"provider": provider})})
    assert f"providers={listed})" in open_model(made)


def test_directml_gets_what_it_asks_for() -> None:
    made = manifest().model_copy(update={"environment": HERE.model_copy(update={"provider": "directml"})})
    assert "options.enable_mem_pattern = False" in open_model(made) and "DmlExecutionProvider" in open_model(made)


def test_provider_names_are_onnxruntimes() -> None:
    known = {short_name(name): name for name in ort.get_all_providers()}
    for short in SPELLED.keys() - {"rocm"}:
        assert full_name(short) == known[short]


def test_the_file_is_the_one_that_is_written() -> None:
    assert model_name(manifest()) == "model.onnx"
    assert model_name(manifest(result=artifact("r", 9, "ort", "ort"))) == "model.ort"
    assert model_name(manifest().model_copy(update={"output": "a/b.onnx"})) == "b.onnx"


def test_the_report_has_the_same_lines_where_something_was_written() -> None:
    assert "InferenceSession" not in markdown(manifest(session=OWN))
    made = manifest(session=OWN).model_copy(update={"output": "out"})
    assert f"(`open_model.py`):\n\n```python\n{open_model(made)}```" in markdown(made)
    alone = made.model_copy(update={"output": "out/x.onnx"})
    assert 'with_name("x.onnx")' in markdown(alone) and "open_model.py" not in markdown(alone)
