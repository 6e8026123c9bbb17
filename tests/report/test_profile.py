"""A profile as words: tables, and sentences that say where the time goes and what is left to gain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optkit.bench.lineup import line_up
from optkit.bench.profile import NodeProfile, Profiled
from optkit.bench.profile_facts import ModelProfile, ProfileFacts
from optkit.bench.roofline import model_profile
from optkit.model.manifest import Environment
from optkit.report.profile import profile_lines, profile_markdown, profile_tables, unit_of
from tests.bench.toy_profile import PEAKS, H, W, X, node, profiled


def about(label: str, found: Profiled) -> ModelProfile:
    about_it = {"label": label, "path": label, "kind": "onnx", "provider": "cpu", "digest": "0"}
    return model_profile(found, PEAKS, size_bytes=1, **about_it)


def facts_of(found: Profiled, other: Profiled | None = None) -> ProfileFacts:
    one = about("m.onnx", found)
    against = None if other is None else about("int8.onnx", other)
    families, pairs = line_up(one.nodes, against.nodes) if against else ((), ())
    here = Environment(
        optkit="0", python="3", platform="p", cpu="C", cpu_features=(), cores=2, threads=2, provider="cpu", packages={}
    )
    return ProfileFacts(
        model=one,
        against=against,
        families=families,
        pairs=pairs,
        peaks=PEAKS,
        threads=2,
        inputs="real, x float32[10,100]",
        synthetic=False,
        environment=here,
        notes=("a note",),
    )


def test_operators_and_nodes():
    operators, nodes, *_ = profile_tables(facts_of(profiled()))
    assert operators.heads == ("operator", "nodes", "ms", "share", "Gop/s", "headroom ms")
    assert operators.rows[0][:5] == ("MatMul", "2", "0.8", "89%", "2.5")
    assert operators.rows[1] == ("Relu", "1", "0.1", "11%", "-", "-")
    # bound: 0.20088 of 0.5 ms, see PEAKS
    inputs = "float32[10,100] float32[100,1000]"
    assert nodes.rows[0] == ("wide", "MatMul", "0.5", "56%", "40% mem", "4", "0.89", inputs)
    assert nodes.rows[2] == ("relu", "Relu", "0.1", "11%", "-", "-", "-", "float32[10,1000]")


def test_only_the_longest_nodes_and_by_the_names_their_author_gave():
    _, nodes, *_ = profile_tables(facts_of(profiled()), top=1)
    assert (nodes.title, len(nodes.rows)) == ("m.onnx: the 1 longest of 3 nodes", 1)
    rewritten = profiled(node("wide_quant", "MatMul", 0.5), replace(node("BiasGelu", "BiasGelu", 0.1), origin=""))
    assert [row[0] for row in profile_tables(facts_of(rewritten))[1].rows] == ["wide", "BiasGelu"]


def test_columns_that_say_nothing_are_left_out():
    operators, nodes, *_ = profile_tables(facts_of(profiled(node("Relu", "Relu", 0.1, H))))
    assert operators.heads == ("operator", "nodes", "ms", "share") and nodes.heads == ("node", "ms", "share", "inputs")


def test_operators_of_little_share_stand_together():
    small = [node(f"n{index}", f"Op{index}", 0.001) for index in range(3)]
    operators = profile_tables(facts_of(profiled(node("wide", "MatMul", 0.9, X, W, outputs=(H,)), *small)))[0]
    assert [row[:4] for row in operators.rows[1:]] == [("3 others", "3", "0.003", "0.3%")]


def test_sentences_account_for_the_time_and_say_what_is_left_to_gain():
    account, gain, *rest = profile_lines(facts_of(profiled()))
    assert account == (
        "m.onnx: a call takes 1 ms on onnxruntime 1.31.1 (median of 8), and 1.2 ms with the profiler on. Times of its "
        "3 nodes are what the profiler saw less the profiler's own 3.0 us each, together 90% of the latency."
    )
    # wide: .5 - .20088; narrow: .3 - max(.002, 8.4e3 / 50e9 s); together .597
    assert gain == (
        "m.onnx: at most 0.597 ms could be gained if its 2 products ran at this machine's limits (headroom), 0.597 ms "
        "of it in MatMul (2 nodes), most in wide (0.299 ms). Everything else takes 0.1 ms, most of it Relu."
    )
    assert any("10 GFLOP/s in float32, 40 GOP/s in int8" in line for line in rest)
    assert (
        any(line.startswith("Fed: real, x float32[10,100]; 2 threads.") for line in rest) and rest[-1] == "Note: a note"
    )


def test_short_calls_are_told_in_microseconds():
    found = facts_of(profiled(plain_ms=0.9))
    assert unit_of(found).told(0.0123) == "12.3 us"
    assert profile_tables(found)[1].heads[2] == "us"
    assert unit_of(facts_of(profiled())).told(151250.4) == "151,250 ms"


def test_scaled_times_say_so():
    account = profile_lines(facts_of(profiled(plain_ms=0.45)))[0]
    assert account.endswith("less the profiler's own 3.0 us each, scaled by 0.50 to add up to the latency.")


def test_the_column_of_limits_is_only_told_of_where_it_says_something():
    def told(*nodes: NodeProfile) -> list[str]:
        return [line for line in profile_lines(facts_of(profiled(*nodes))) if line.startswith("'of limit' is")]

    assert told(node("relu", "Relu", 0.1)) == []
    assert ["Above 100%" in line for line in told()] == [False]
    assert ["Above 100%" in line for line in told(node("wide", "MatMul", 0.05, X, W, outputs=(H,)))] == [True]


def test_two_models_side_by_side():
    other = profiled(node("wide_quant", "DynamicQuantizeMatMul", 0.2), node("new", "Softmax", 0.05), plain_ms=0.25)
    facts = facts_of(profiled(), other)
    tables = {table.title: table for table in profile_tables(facts)}
    assert list(tables)[:4] == [
        "A, m.onnx: operators",
        "A, m.onnx: nodes",
        "B, int8.onnx: operators",
        "B, int8.onnx: nodes",
    ]
    families = tables["B against A, by family of operators"]
    assert families.rows[0] == ("matrix products", "2", "0.8", "1", "0.2", "-0.6")
    pairs = tables["The 1 largest differences among 1 nodes whose names correspond"]
    assert pairs.rows == (
        ("wide", "0.5", "0.2", "-0.3", "MatMul -> DynamicQuantizeMatMul"),
        ("nodes of one model only", "0.4", "0.05", "-0.35", ""),
    )
    assert any(line.startswith("B was 4.00 times as fast as A") for line in profile_lines(facts))


def test_long_names_keep_their_end():
    name = "If_0_then_branch__Inline_0__/decoder/decoder/decoder/rnn/LSTM"
    shown = profile_tables(facts_of(profiled(node(name, "LSTM", 0.5))))[1].rows[0][0]
    assert len(shown) == 44 and shown.startswith("...") and shown.endswith("/rnn/LSTM")


@pytest.mark.parametrize(
    "words", ["# optkit profile: m.onnx", "| wide | MatMul |", "- Note: a note", "## m.onnx: operators"]
)
def test_markdown(words: str):
    assert words in profile_markdown(facts_of(profiled()))
