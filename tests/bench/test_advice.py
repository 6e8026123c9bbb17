from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.bench import advice
from optkit.bench.advice import warnings_for
from optkit.bench.facts import BenchPoint, CandidateFacts, OpenLoop, Percentile, Phases, Steady
from optkit.model.machine import machine
from optkit.model.manifest import Environment, Ratio
from tests.bench.graphs import MERGED, dynamic_conv, dynamic_matmul, floats, nbits, qdq
from tests.helpers import open_any

VNNI = ("avx2", "avx512_vnni")


@pytest.fixture(autouse=True)
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(machine(), arch="x86_64")
    monkeypatch.setattr(advice, "machine", lambda: here)


def environment(**more: Any) -> Environment:
    facts: dict[str, Any] = {
        "optkit": "1",
        "python": "3.11",
        "platform": "Linux",
        "cpu": "a processor",
        "cpu_features": VNNI,
        "cores": 4,
        "physical_cores": 2,
        "affinity": 4,
        "threads": 2,
        "provider": "cpu",
        "packages": {},
        "load_average": 0.1,
    }
    return Environment(**(facts | more))


def candidate(label: str, speedup: float = 1.0, **more: Any) -> CandidateFacts:
    steady = {"blocks": 60, "launches": 3, "spread": 0.01} | more.pop("steady", {})
    phases = {"import_s": 0.1, "load_s": 0, "session_s": 0.1, "first_ms": 1, "warm_up_s": 0.1, "warm_up_calls": 9}
    ratio = {"low": speedup * 0.995, "high": speedup * 1.005, "confidence": 0.99, "blocks": 60, "inputs": "real"}
    facts: dict[str, Any] = {
        "label": label,
        "path": label,
        "kind": "onnx",
        "engine": "onnxruntime",
        "provider": "cpu",
        "threads": 2,
        "digest": "",
        "size_bytes": 1,
        "peak_mb": 100,
        "phases": Phases(**phases, steady=more.pop("settled", True)),
        "steady": Steady(median_ms=1, mean_ms=1, percentiles=(), throughput=1, calls=600, **steady),
        "ratio": Ratio(baseline_ms=1, candidate_ms=1 / speedup, speedup=speedup, **ratio),
        "verdict": "same",
        "stable": True,
    }
    return CandidateFacts(**(facts | more))


def warned(*candidates: CandidateFacts, here: Environment | None = None, **more: Any) -> list[str]:
    models = more.pop("models", {})
    facts: dict[str, Any] = {"dims": {"batch": 8}, "threads": 2, "inputs": "real, x float32[8,4]"} | more
    return warnings_for(BenchPoint(candidates=candidates, **facts), models, here or environment())


def quantized(proto: onnx.ModelProto, speedup: float = 0.5, here: Environment | None = None, **more: Any) -> list[str]:
    models = {"a": floats(), "b": open_any(proto)}
    return warned(candidate("a"), candidate("b", speedup, **more.pop("facts", {})), models=models, here=here, **more)


def test_nothing_to_say() -> None:
    assert warned(candidate("a"), candidate("b", 2.0)) == []


def test_dynamic_convolutions_are_named() -> None:
    (warning,) = quantized(dynamic_conv(), 0.2)
    assert warning.startswith(
        "b is quantized and yet not clearly faster than a (0.20 times as fast): 1 convolutions run as ConvInteger"
    )
    assert "quantize-static" in warning


def test_small_dynamic_matrices_are_named_with_their_size() -> None:
    (warning,) = quantized(dynamic_matmul(64))
    assert "1 dynamic int8 matrices have 4,096 weights on average" in warning
    (warning,) = quantized(dynamic_matmul(512))
    assert "the file shows no cause, but 'optkit profile b --against a'" in warning


def test_signed_activations_are_slow_on_x86_only(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = qdq(MERGED, np.int8)
    assert "2 of 2 quantized activations are signed (S8)" in quantized(proto)[0]
    assert "signed" not in quantized(qdq(MERGED))[0]
    here = replace(machine(), arch="aarch64")
    monkeypatch.setattr(advice, "machine", lambda: here)
    assert "signed" not in quantized(proto)[0]


def test_a_processor_without_int8_instructions_is_named() -> None:
    assert "no instruction for int8 products" in quantized(qdq(MERGED), here=environment(cpu_features=("avx2",)))[0]
    assert "no instruction" not in quantized(qdq(MERGED))[0]


def test_few_bits_pay_at_one_row_only() -> None:
    (warning,) = quantized(nbits(0), dims={"batch": 8, "seq": 16})
    assert "1 MatMulNBits save reading weights, which is what counts at one row but not at 128" in warning
    assert "set accuracy_level 4, or quantize activations too" in warning
    assert "set accuracy_level" not in quantized(nbits(4))[0]
    assert "the file shows no cause" in quantized(nbits(4), dims={"batch": 1})[0]


def test_weights_alone_in_int8_leave_the_product_in_float() -> None:
    (warning,) = quantized(qdq("wd = DequantizeLinear(w, s, zw) y = MatMul(x, wd)"))
    assert "1 MatMul have int8 weights but multiply floats" in warning


def test_conversions_that_stay_are_counted_with_the_operators_beside_them() -> None:
    body = MERGED.replace("y =", "d =") + "e = Erf(d) f = Cos(d) g = Add(e, f) y = Relu(g)"
    (warning,) = quantized(qdq(body))
    assert "2 conversions between int8 and float" in warning
    assert "stay beside 1 integer products, around 1 Cos, 1 Erf" in warning


def test_a_quantized_baseline_is_blamed_too() -> None:
    models = {"a": open_any(dynamic_conv()), "b": floats()}
    (warning,) = warned(candidate("a"), candidate("b", 4.0), models=models)
    assert warning.startswith("a is quantized and yet not clearly faster than b (0.25 times as fast): 1 convolutions")


@pytest.mark.parametrize(
    ("speedup", "facts", "expected"),
    [
        (1.0, {}, 1),
        (1.0, {"stable": False, "steady": {"spread": 0.2}}, 0),
        (1.5, {}, 0),
        (0.5, {"engine": "openvino"}, 0),
    ],
    ids=["same", "too noisy to say", "faster", "another engine"],
)
def test_only_what_was_measured_is_said(speedup: float, facts: dict[str, Any], expected: int) -> None:
    found = quantized(dynamic_conv(), speedup, facts=facts)
    assert sum("is quantized and yet" in warning for warning in found) == expected


def test_two_quantized_files_are_not_compared() -> None:
    models = {"a": open_any(dynamic_matmul(64)), "b": open_any(dynamic_conv())}
    assert warned(candidate("a"), candidate("b", 0.2), models=models) == []


def test_of_other_engines_no_cause_is_made_up() -> None:
    models = {"a": floats(), "b": open_any(dynamic_conv())}
    both = [candidate("a", engine="openvino"), candidate("b", 0.5, engine="openvino")]
    (warning,) = warned(*both, models=models)
    assert warning.endswith("what openvino on cpu does with such a file cannot be told from the file.")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "4 threads, but 2 physical cores"),
        ({"physical_cores": None, "affinity": 3}, "4 threads, but 3 cores that this process may use"),
        ({"cpu_limit": 1.5}, "4 threads, but 1.5 cores' worth of time that the cgroup grants"),
    ],
)
def test_more_threads_than_cores(limits: dict[str, Any], words: str) -> None:
    (warning,) = warned(candidate("a"), threads=4, here=environment(**limits))
    assert warning.startswith(words)
    assert warning.endswith(f"use --threads {int(float(words.split()[3]))}.")


def test_as_many_threads_as_cores_are_fine() -> None:
    assert warned(candidate("a"), threads=2) == []
    assert warned(candidate("a", provider="cuda"), threads=4) == []


def test_nodes_that_fell_back_are_counted_by_operator() -> None:
    placement = {"cuda": {"MatMul": 5}, "cpu": {"NonMaxSuppression": 1, "TopK": 3}}
    (warning,) = warned(candidate("a", provider="cuda", placement=placement))
    assert warning.startswith("4 of 9 nodes of a fell back from cuda to cpu (3 TopK, 1 NonMaxSuppression)")
    assert warned(candidate("a", placement={"cpu": {"MatMul": 5}})) == []


@pytest.mark.parametrize(
    ("facts", "here", "words"),
    [
        ({}, {"load_average": 1.6}, "other programs were running"),
        ({"steady": {"blocks": 6}}, {}, "only 6 blocks fitted into the time"),
        ({"steady": {"spread": 0.12}}, {}, "its blocks lie 12% apart"),
        ({"settled": False}, {}, "they still changed at the end of the warm-up"),
        ({}, {}, "its processes differ from one start to the next"),
    ],
)
def test_what_made_times_unsteady(facts: dict[str, Any], here: dict[str, Any], words: str) -> None:
    *_, warning = warned(candidate("a", stable=False, **facts), here=environment(**here))
    assert warning.startswith(f"The times of a are not steady enough for the margin: {words}")


def test_candidates_with_the_same_reason_share_a_sentence() -> None:
    both = [candidate("a", stable=False), candidate("b", 2.0, stable=False)]
    busy, unsteady = warned(*both, here=environment(load_average=3))
    assert busy == "Other programs were running before (load average 3.0 on 4 cores): end them."
    assert unsteady.startswith("The times of a, b are not steady")


def test_a_busy_machine_is_said_also_where_times_are_steady() -> None:
    assert warned(candidate("a"), here=environment(load_average=0.9)) == []
    (warning,) = warned(candidate("a"), here=environment(load_average=1.1))
    assert warning.startswith("Other programs were running")


def test_reasons_for_unsteady_times_add_up() -> None:
    facts = {"steady": {"blocks": 6, "spread": 0.3}}
    _, warning = warned(candidate("a", stable=False, **facts), here=environment(load_average=3))
    assert "other programs were running and only 6 blocks fitted" in warning
    assert "and its blocks lie 30% apart" in warning


def test_one_launch_is_said_where_something_is_compared() -> None:
    once = {"steady": {"launches": 1}}
    (warning,) = warned(candidate("a", **once), candidate("b", 2.0, **once))
    assert warning.startswith("a, b: started once only")
    assert warned(candidate("a", **once)) == []


def test_synthetic_inputs_are_said() -> None:
    (warning,) = warned(candidate("a"), inputs="synthetic, x float32[8,4]")
    assert warning.startswith("The inputs are synthetic")


def under_load(**more: Any) -> OpenLoop:
    facts: dict[str, Any] = {
        "label": "a",
        "rate": 200,
        "seconds": 10,
        "requests": 2000,
        "achieved": 200,
        "percentiles": (Percentile(percent=50, ms=1, enough=True), Percentile(percent=99, ms=8, enough=True)),
        "max_ms": 9,
        "service_ms": 1,
        "service_p99_ms": 2,
        "lag_p50_ms": 0,
        "lag_p99_ms": 1,
        "saturated": False,
    }
    return OpenLoop(**(facts | more))


def test_a_load_that_is_too_much_is_said() -> None:
    assert warned(candidate("a"), load=(under_load(),)) == []
    (warning,) = warned(candidate("a"), load=(under_load(saturated=True, achieved=101.23),))
    assert warning.startswith("a does not keep up with 200 requests per second (101.2 done)")


def test_a_late_sender_is_said() -> None:
    (warning,) = warned(candidate("a"), load=(under_load(lag_p99_ms=4),))
    assert warning.startswith("Requests to a were sent late (p99 4 ms, of a latency of 8 ms)")
