"""Session options: what each key sets, whose threads count, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from optkit.errors import ModelError, UsageError
from optkit.model.machine import usable_threads
from optkit.model.target import Target
from optkit.runner.session import (
    PROPERTIES,
    apply,
    check,
    effective,
    provider_options,
    quoted,
    settings,
    threads_of,
)

WANTED = {
    "intra_op_num_threads": "3",
    "inter_op_num_threads": "2",
    "execution_mode": "parallel",
    "enable_cpu_mem_arena": "0",
    "enable_mem_pattern": "0",
}


def applied(entries: dict[str, str], target: Target = Target()) -> ort.SessionOptions:  # noqa: B008 - frozen
    options = ort.SessionOptions()
    apply(options, entries, target)
    return options


def test_each_property_is_set() -> None:
    assert WANTED.keys() == PROPERTIES.keys()
    options = applied(WANTED)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    back = applied({"execution_mode": "sequential", "enable_cpu_mem_arena": "1", "enable_mem_pattern": "1"})
    assert back.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert (back.enable_cpu_mem_arena, back.enable_mem_pattern) == (True, True)


def test_keys_with_a_dot_are_config_entries_as_they_are() -> None:
    options = applied({"session.x": "a;b", "optimization.y": ""})
    assert options.get_session_config_entry("session.x") == "a;b"
    assert options.get_session_config_entry("optimization.y") == ""


@pytest.mark.parametrize(
    ("entries", "stated", "threads"),
    [
        ({}, 0, usable_threads()),
        ({}, 5, 5),
        ({"intra_op_num_threads": "3"}, 0, 3),
        ({"intra_op_num_threads": "3"}, 5, 5),
    ],
)
def test_threads_are_the_targets_then_the_models_then_those_that_may_be_used(
    entries: dict[str, str], stated: int, threads: int
) -> None:
    target = Target(threads=stated)
    assert threads_of(entries, target) == threads
    assert applied(entries, target).intra_op_num_threads == threads
    assert effective(entries, target) == ({} if stated else entries)


def test_names_behind_a_colon_may_have_dots() -> None:
    entries = {"free_dimension_override_by_name:s0.x": "8", "provider_option:a.b": "1", "provider_option:c": "x"}
    (setting,) = settings(entries)
    assert (setting.name, setting.about, setting.value) == ("add_free_dimension_override_by_name", "s0.x", 8)
    assert provider_options(entries | {"session.x": "1"}) == {"a.b": "1", "c": "x"}


def test_the_statements_do_the_same_as_applying() -> None:
    entries = WANTED | {"session.x": 'odd "text"\n\\', "free_dimension_override_by_name:batch": "8"}
    told = [str(setting) for setting in settings(entries)]
    assert told[0] == "options.intra_op_num_threads = 3"
    assert told[-1] == 'options.add_free_dimension_override_by_name("batch", 8)'
    options = ort.SessionOptions()
    exec("\n".join(told), {"options": options, "onnxruntime": ort})
    same = applied(entries)
    for name in PROPERTIES:
        assert getattr(options, name) == getattr(same, name)
    assert options.get_session_config_entry("session.x") == entries["session.x"]


@pytest.mark.parametrize("text", ["a", 'quo"te', "line\nbreak", "back\\slash", "ü 日 \U0001f600", "\x00\x7f", "{}%"])
def test_quoted_text_is_a_literal_of_the_same_text(text: str) -> None:
    import ast

    assert ast.literal_eval(quoted(text)) == text


@pytest.mark.parametrize(
    ("key", "value", "message", "fix"),
    [
        (
            "intra_op_threads",
            "2",
            "There is no session option 'intra_op_threads'.",
            "did you mean intra_op_num_threads?",
        ),
        ("xyz", "2", "There is no session option 'xyz'.", "leave it out"),
        ("provider_option:", "2", "option 'provider_option:'.", "did you mean provider_option:OPTION?"),
        ("execution_mode:x", "2", "There is no session option 'execution_mode:x'.", "did you mean execution_mode?"),
        ("intra_op_num_threads", "0", "intra_op_num_threads does not take '0'.", "write intra_op_num_threads=1"),
        ("intra_op_num_threads", "two", "intra_op_num_threads does not take 'two'.", "write intra_op_num_threads=1"),
        ("inter_op_num_threads", "-1", "inter_op_num_threads does not take '-1'.", "write inter_op_num_threads=1"),
        ("execution_mode", "ORT_PARALLEL", "does not take 'ORT_PARALLEL'.", "write execution_mode=parallel"),
        ("enable_mem_pattern", "true", "enable_mem_pattern does not take 'true'.", "write enable_mem_pattern=1"),
        (
            "free_dimension_override_by_name:b",
            "x",
            ":b does not take 'x'.",
            "write free_dimension_override_by_name:b=1",
        ),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(key: str, value: str, message: str, fix: str) -> None:
    with pytest.raises(UsageError) as asked:
        check({"session.x": "1", key: value})
    assert message in asked.value.message and asked.value.fix == fix
    assert "no session option" not in message or all(name in (asked.value.expected or "") for name in PROPERTIES)
    with pytest.raises(ModelError) as wanted:
        check({key: value}, Path("m.onnx"))
    assert wanted.value.message == asked.value.message and wanted.value.file == "m.onnx"
