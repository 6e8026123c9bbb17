from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optkit.errors import RecipeError
from optkit.model.model import Model
from optkit.passes._fusion.family import Family, Fired
from optkit.passes.fuse_graph import NOT_TIMED, FuseGraph, refused
from optkit.pipeline.allowance import Allowance
from optkit.pipeline.steps import Policy, run_steps
from optkit.recipe.load import load_recipe
from optkit.recipe.recipe import Step
from tests.helpers import MemoryData, normal, onnx_model, open_any, ops_of, run_onnx, run_pass
from tests.pipeline.toy import make_job
from tests.timing import Speeds


def assert_same(result: Model, original: Model, inputs: dict[str, Any], tolerance: float) -> None:
    found, expected = run_onnx(result, inputs), run_onnx(original, inputs)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance)


# --- which families: stated, usual for the target, or measured --------------------------------------------------------

TEXT = "g (float[n,8] x, float[n,8] z) => (float[n,8] y) { d = Sub(x, z) e = Exp(z) y = Div(d, e) }"
NEG, RECIPROCAL = "Neg", "Reciprocal"
INPUTS = {"x": normal(3, 8), "z": normal(3, 8, seed=1)}


def rewrites(kind: str, inner: str, outer: str) -> Callable[[Any], Fired]:
    """``kind(a, b) -> outer(a, inner(b))``."""

    def apply(model: Any) -> Fired:
        import onnx_ir as ir

        found = [node for node in model.graph if node.op_type == kind]
        for node in found:
            first = ir.node(inner, [node.inputs[1]])
            second = ir.node(outer, [node.inputs[0], first.outputs[0]])
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [first, second], node.outputs, second.outputs
            )
        return Fired(len(found))

    return apply


RIGHT = rewrites("Div", "Reciprocal", "Mul")
NO_SUCH_OPERATOR = rewrites("Div", "Reciprocal", "Multiply")
ANOTHER_RESULT = rewrites("Div", "Reciprocal", "Add")


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """In place of the table two families of one rewrite each, which ``TEXT`` has a place for."""

    def use(attention: Callable[[Any], Fired] = RIGHT, usual: str = "cpu") -> None:
        table = (
            Family("gelu", "Sub(a, b) -> Add(a, Neg(b))", rewrites("Sub", "Neg", "Add")),
            Family("attention", "Div(a, b) -> Mul(a, Reciprocal(b))", attention, frozenset({usual})),
        )
        for place in ("_fusion.families", "fuse_graph"):
            monkeypatch.setattr(f"optkit.passes.{place}.FAMILIES", table)

    use()
    return use


def both() -> onnx.ModelProto:
    return onnx_model(TEXT)


def data() -> dict[str, MemoryData]:
    return {
        split: MemoryData(split, {"x": normal(8, 8), "z": normal(8, 8, seed=1)}) for split in ("search", "evaluation")
    }


def fused(model: Model) -> set[str]:
    """Those of both that are in the model."""
    return ops_of(model).keys() & {NEG, RECIPROCAL}


def faster_with(*kinds: str) -> Callable[[Model], float]:
    """10 ms, a fifth less with each of these nodes and a fifth more with others of both."""
    return lambda model: 10.0 * float(np.prod([0.8 if kind in kinds else 1.25 for kind in fused(model)]))


def test_families_are_the_stated_ones():
    outcome = run_pass(FuseGraph(families=("attention",)), both())
    assert fused(outcome.model) == {RECIPROCAL}
    assert [where for where, _ in outcome.changes] == ["attention"]
    assert outcome.changes[0][1].startswith("1 x ")
    assert outcome.changed == 1
    assert run_pass(FuseGraph(), both()).changed == 2


def test_a_family_that_there_is_not_is_refused_with_a_suggestion(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("version: 1\npasses:\n  - fuse-graph: {families: [gelu, atention]}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe))
    assert (caught.value.line, caught.value.fix) == (3, "did you mean 'attention'?")


def test_a_family_that_makes_the_model_slower_is_left_out(monkeypatch: pytest.MonkeyPatch):
    model = open_any(both())
    speeds = Speeds(faster_with(NEG)).installed(monkeypatch)
    outcome = run_pass(FuseGraph(measure=True), model)
    assert fused(outcome.model) == {NEG}
    assert_same(outcome.model, model, INPUTS, 1e-5)
    told = {decision.what: (decision.kept, decision.reason) for decision in outcome.decisions}
    assert told == {"gelu": (True, "faster"), "attention": (False, "slower")}
    assert outcome.decisions[0].speedup == pytest.approx(1.25)
    assert [len(models) for models in speeds.asked] == [3, 2], "all at once, then the one that looked slower"
    assert {rules.budget_s for rules in speeds.rules} == {2.0}
    assert {path.name for path in outcome.model.path.parent.parent.iterdir()} == {outcome.model.path.parent.name}


def test_large_models_are_timed_two_at_a_time_and_lie_on_disk_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("optkit.passes._measure.GROUP_BYTES", 1)
    monkeypatch.setattr("optkit.passes._fusion.variants.KEPT_BYTES", 1)
    speeds = Speeds(faster_with(NEG)).installed(monkeypatch)
    assert fused(run_pass(FuseGraph(measure=True), both()).model) == {NEG}
    assert [len(models) for models in speeds.asked] == [2, 2, 2]
    assert len(list(speeds.asked[-1][0].path.parent.parent.iterdir())) == 1


def test_where_no_family_pays_the_model_stays(monkeypatch: pytest.MonkeyPatch):
    model = open_any(both())
    Speeds(faster_with()).installed(monkeypatch)
    outcome = run_pass(FuseGraph(measure=True), model)
    assert (outcome.changed, outcome.model.path) == (0, model.path)
    assert outcome.notes == ["none of gelu, attention makes this model faster here"]
    assert not any(outcome.model.path.parent.glob("fused-*"))


def test_a_family_that_is_not_usual_for_the_target_comes_only_if_it_pays(
    monkeypatch: pytest.MonkeyPatch, families: Callable[..., None]
):
    families(usual="gpu")
    for milliseconds, expected in (
        (faster_with(NEG), {NEG}),
        (faster_with(RECIPROCAL), {RECIPROCAL}),
        (lambda model: 10.0, set()),
    ):
        Speeds(milliseconds).installed(monkeypatch)
        assert fused(run_pass(FuseGraph(measure=True), both()).model) == expected
        assert fused(run_pass(FuseGraph(), both()).model) == {NEG}


def test_in_noise_the_families_are_the_usual_ones(monkeypatch: pytest.MonkeyPatch):
    Speeds(lambda model: 10.0, width=0.2).installed(monkeypatch)
    outcome = run_pass(FuseGraph(measure=True), both())
    assert fused(outcome.model) == {NEG, RECIPROCAL}
    assert {decision.reason for decision in outcome.decisions} == {"too close to call: the default stays"}


def test_only_families_that_find_something_are_timed(monkeypatch: pytest.MonkeyPatch):
    speeds = Speeds(lambda model: 10.0).installed(monkeypatch)
    plain = onnx_model("g (float[n,4] x) => (float[n,4] y) { y = Tanh(x) }")
    outcome = run_pass(FuseGraph(measure=True), plain)
    assert (outcome.changed, outcome.decisions, speeds.asked) == (0, [], [])
    assert outcome.notes == ["nothing in the graph has a form for gelu, attention"]


def test_without_timing_the_families_are_the_usual_ones_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    speeds = Speeds(faster_with()).installed(monkeypatch)
    job = make_job(tmp_path, open_any(both()), splits=data(), bench=False)
    (done,) = run_steps(job, [Step(id="fuse", options=FuseGraph(measure=True))], Policy(bench=False))
    assert fused(done.after) == {NEG, RECIPROCAL}
    assert (done.record.notes, done.record.decisions, speeds.asked) == ((NOT_TIMED,), (), [])


@pytest.mark.parametrize("measure", [True, False])
def test_a_cached_choice_costs_no_timing_and_neither_does_measure_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measure: bool
):
    speeds = Speeds(faster_with(NEG)).installed(monkeypatch)
    job = make_job(tmp_path, open_any(both()), splits=data())
    step = Step(id="fuse", options=FuseGraph(measure=measure))
    first, again = (run_steps(job, [step], Policy(allowance=Allowance(spent=99.0)))[0] for _ in range(2))
    assert len(speeds.asked) == (2 if measure else 0)
    assert (first.record.cached, again.record.cached) == (False, True)
    assert fused(first.after) == fused(again.after) == ({NEG} if measure else {NEG, RECIPROCAL})
    assert again.record.decisions == first.record.decisions


@pytest.mark.parametrize("measure", [True, False])
def test_a_family_whose_result_does_not_open_is_left_out_alone(
    monkeypatch: pytest.MonkeyPatch, families: Callable[..., None], measure: bool
):
    families(NO_SUCH_OPERATOR)
    Speeds(faster_with(NEG, RECIPROCAL)).installed(monkeypatch)
    outcome = run_pass(FuseGraph(measure=measure), both())
    assert fused(outcome.model) == {NEG}
    assert [where for where, _ in outcome.skipped] == ["attention"]
    assert outcome.skipped[0][1].startswith("onnxruntime cannot open the result: ")


def test_a_family_that_changes_the_outputs_is_not_chosen_however_fast(
    monkeypatch: pytest.MonkeyPatch, families: Callable[..., None]
):
    families(ANOTHER_RESULT)
    Speeds(faster_with(NEG, RECIPROCAL)).installed(monkeypatch)
    outcome = run_pass(FuseGraph(measure=True), both())
    assert fused(outcome.model) == {NEG}
    assert outcome.skipped == [("attention", "its y differs on a made-up batch")]
    told = {decision.what: (decision.kept, decision.speedup) for decision in outcome.decisions}
    assert told["attention"] == (False, None)


def test_only_a_few_of_the_places_left_alone_are_told():
    places = tuple((f"node{index}", "why") for index in range(5))
    told = list(refused({"gelu": Fired(1, places), "attention": Fired(0, places[:1])}))
    assert told == [
        *((f"gelu: node{index}", "why") for index in range(3)),
        ("gelu", "2 more places left as they are"),
        ("attention: node0", "why"),
    ]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of BERT with random weights, from the dynamo exporter, as a folder-less file."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        return_dict=False,
    )
    dims = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("seq", max=32)}
    ids = torch.randint(0, 50, (2, 9))
    path = tmp_path_factory.mktemp("bert") / "bert.onnx"
    torch.onnx.export(
        BertModel(config, add_pooling_layer=False).eval(),
        kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        dynamic_shapes={"input_ids": dims, "attention_mask": dims},
        output_names=["last_hidden_state"],
        dynamo=True,
        external_data=False,
        verbose=False,
    ).save(path)
    return path


def test_bert_from_the_dynamo_exporter(bert: Path, monkeypatch: pytest.MonkeyPatch):
    from optkit.passes.quantize_dynamic import QuantizeDynamic

    monkeypatch.undo()  # with the table as it is
    outcome = run_pass(FuseGraph(), bert)
    counts = ops_of(outcome.model)
    assert counts["com.microsoft.MultiHeadAttention"] == 2
    assert "com.microsoft.SkipLayerNormalization" not in counts and "com.microsoft.Attention" not in counts
    assert dict(outcome.changes)["attention"].startswith("2 x ") and dict(outcome.changes)["apart"].startswith("5 x ")
    assert outcome.model.signature == open_any(bert).signature
    mask = np.ones((3, 7), np.int64)
    mask[0, 4:] = 0
    inputs = {"input_ids": np.arange(21).reshape(3, 7), "attention_mask": mask}
    assert_same(outcome.model, open_any(bert), inputs, 1e-5)
    assert run_pass(QuantizeDynamic(), outcome.model).changed == 12


def test_two_inputs_whose_dimensions_differ_in_name_are_not_taken_for_one_size():
    from optkit.passes._fusion.shapes import infer_symbolic_shapes
    from optkit.passes._ir import load_ir

    text = "g (float[n,{a}] x, float[n,{b}] z) => (float[n,{a}] y) {{ s = Add(x, z) y = Relu(s) }}"

    def inner(a: str, b: str) -> str:
        graph = load_ir(open_any(onnx_model(text.format(a=a, b=b), {})).path)
        infer_symbolic_shapes(graph)
        return str(next(iter(graph.graph)).outputs[0].shape)

    assert (inner("seq", "seq"), inner("seq", "other")) == ("[n,seq]", "[n,Broadcast(other|seq)]")


def test_shapes_follow_the_inputs_through_slices_and_reshapes():
    from optkit.passes._fusion.shapes import infer_symbolic_shapes
    from optkit.passes._ir import load_ir

    text = """g (float[batch,seq,32] x) => (float[batch,seq,32] y) {
        n = Shape<start = 1, end = 2>(x) b = Shape<start = 0, end = 1>(x) p = Slice(table, zero, n, zero, one)
        a = Add(x, p) s = Concat<axis = 0>(b, n, rest) r = Reshape(a, s) t = Transpose<perm = [0,2,1,3]>(r)
        u = Transpose<perm = [0,2,1,3]>(t) y = Reshape(u, join) }"""
    values = {"table": normal(64, 32), "zero": np.int64([0]), "one": np.int64([1])}
    values |= {"rest": np.int64([4, 8]), "join": np.int64([0, 0, 32])}
    model = load_ir(open_any(onnx_model(text, values)).path)
    infer_symbolic_shapes(model)
    shapes = {value.name: str(value.shape) for node in model.graph for value in node.outputs}
    assert (shapes["a"], shapes["t"]) == ("[batch,seq,32]", "[batch,4,seq,8]")
