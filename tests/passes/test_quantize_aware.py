"""Training under the rounding of quantize-static, judged by what quantize-static makes of the weights."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optkit.errors import PassError
from optkit.evaluate.limits import Limits
from optkit.model.load_torch import load_module
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.model.torch_folder import surgery_of
from optkit.passes._base import Outcome
from optkit.passes._quant.planned import Manner, PlannedLayer, Steps, plan_static
from optkit.passes._train.fake_quant import fake_quantized
from optkit.passes._train.fake_sites import Site, find_sites
from optkit.passes._train.losses import call
from optkit.passes._train.training import Training
from optkit.passes.export_onnx import ExportOnnx
from optkit.passes.quantize_aware import QuantizeAware
from optkit.passes.quantize_static import QuantizeStatic
from optkit.pipeline.cache import Cache
from optkit.pipeline.context import StepContext
from optkit.pipeline.job import Job
from tests.helpers import MemoryData, fresh_dir, normal, ops_of, relative_error, run_onnx, run_pass

SIGNATURE = "image=float32[batch,1,8,8]"
SPLITS = ("train", "calibration", "search", "evaluation")
MANNER = Manner("auto", True, "minmax", 99.99, True, (), "test")


def digits(split: str, labels=False) -> MemoryData:
    with np.load(f"sample_models/data/digits_{split}.npz") as file:
        return MemoryData(split, {"image": file["image"]}, batch=64, labels=file["label"] if labels else None)


def context(model: Model, splits, **train) -> StepContext:
    job = Job(
        original=model,
        target=Target(threads=1),
        splits=splits,
        limits=Limits(),
        exact=False,
        cache=Cache(fresh_dir()),
        exporter=ExportOnnx(),
        training=Training(**train),
    )
    return StepContext(job, fresh_dir(), "quantize-aware", reads=frozenset(QuantizeAware().reads()), times=False)


def uneven_mlp() -> Model:
    """The digits MLP with rows of very different size: the same function, and hard on one scale for all rows."""
    weights = load_file("sample_models/digits_mlp.safetensors")
    size = torch.exp(1.5 * torch.randn(192, generator=torch.Generator().manual_seed(0)))
    weights["layers.1.weight"] *= size[:, None]
    weights["layers.1.bias"] *= size
    weights["layers.4.weight"] /= size
    path = fresh_dir() / "w.safetensors"
    save_file(weights, path)
    return Model.open(path, factory="sample_models/models.py:digits_mlp", signature=SIGNATURE)


@dataclass
class Run:
    model: Model
    ctx: StepContext
    outcome: Outcome

    def in_integers(self, model: Model) -> Model:
        data = {"calibration": digits("calibration"), "search": digits("search")}
        return run_pass(QuantizeStatic(per_channel=False), self.ctx.to_onnx(model), data=data).model


@pytest.fixture(scope="module")
def uneven() -> Run:
    model = uneven_mlp()
    ctx = context(model, {split: digits(split) for split in SPLITS}, steps=120, looks=3)
    return Run(model, ctx, QuantizeAware(per_channel=False)(model, ctx))


def test_integers_are_better_with_it_on_data_that_nobody_chose_by(uneven):
    images = digits("evaluation").arrays
    wanted = run_onnx(uneven.ctx.to_onnx(uneven.model), images)["logits"]
    without, trained = (
        run_onnx(uneven.in_integers(model), images)["logits"] for model in (uneven.model, uneven.outcome.model)
    )
    agreement = [float((each.argmax(1) == wanted.argmax(1)).mean()) for each in (without, trained)]
    assert agreement[0] < 0.93
    assert agreement[1] > agreement[0] + 0.04
    assert relative_error(trained, wanted) < 0.6 * relative_error(without, wanted)


def test_the_graph_in_integers_is_the_same(uneven):
    without, trained = (uneven.in_integers(model) for model in (uneven.model, uneven.outcome.model))
    assert ops_of(without) == ops_of(trained)
    tensors = [
        {each.name: (each.data_type, tuple(each.dims)) for each in onnx.load(model.path).graph.initializer}
        for model in (without, trained)
    ]
    assert tensors[0] == tensors[1]


def test_the_result_is_plain_floats_and_says_what_was_done(uneven):
    outcome = uneven.outcome
    assert outcome.model.kind == "torch-folder"
    assert surgery_of(outcome.model) == []
    before, after = load_module(uneven.model).state_dict(), load_module(outcome.model).state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["layers.4.weight"], after["layers.4.weight"])
    assert [where for where, _ in outcome.changes] == ["layers.1", "layers.4", "layers.7"]
    assert outcome.changed == 3
    assert outcome.notes[0].startswith("trained 120 steps: agreement ")
    told = outcome.notes[-1].removeprefix("in integers, as quantize-static makes them: agreement ").split()
    assert float(told[2].rstrip(",")) > float(told[0]) + 0.01
    assert [each.name for each in uneven.ctx.workdir.iterdir()] == ["model"]


NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.up = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, image):
        states = torch.relu(self.norm(self.stem(image)))
        states = torch.relu(self.deep_norm(self.deep(states)))
        return {"logits": self.head(torch.relu(self.up(states)).amax((2, 3)))}

def build():
    torch.manual_seed(0)
    net = Net()
    for norm in (net.norm, net.deep_norm):
        norm.weight.data = torch.linspace(-1, 1.4, 8)
        norm.weight.data[2] = 0
        norm.bias.data.normal_()
        norm.bias.data[2] = 0.7
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.05, 0.3)
    return net

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 4)

    def forward(self, ids):
        return {"mean": self.words(ids).mean(1)}
"""


def built(name: str, signature: str) -> Model:
    folder = fresh_dir()
    (folder / "nets.py").write_text(NETS)
    space: dict = {}
    exec(NETS, space)
    save_file(space[name]().state_dict(), folder / "w.safetensors")
    return Model.open(folder / "w.safetensors", factory=f"{folder / 'nets.py'}:{name}", signature=signature)


@pytest.fixture(scope="module")
def normalized() -> tuple[Model, StepContext]:
    model = built("build", SIGNATURE)
    return model, context(model, dict.fromkeys(SPLITS, digits("calibration")))


@pytest.mark.parametrize(
    "manner",
    [MANNER, replace(MANNER, per_channel=False, bias_correction=False), replace(MANNER, activations="int8")],
    ids=["default", "one scale, bias as it is", "int8"],
)
def test_torch_rounds_as_the_graph_in_integers_does(normalized, manner):
    model, ctx = normalized
    images = digits("search").arrays
    plan = plan_static(ctx.to_onnx(model), replace(ctx, workdir=fresh_dir()), manner)
    module = load_module(model)
    inputs = {name: torch.from_numpy(array) for name, array in images.items()}
    sites, lost = find_sites(module, inputs, plan.layers)
    assert lost == []
    assert [(site.name, site.norm) for site in sites] == [
        ("stem", module.norm),
        ("deep", module.deep_norm),
        ("up", None),
        ("head", None),
    ]
    layers = {site.name: site.layer for site in sites}
    assert [layers[name].given for name in ("stem", "deep")] == [layers[name].taken for name in ("deep", "up")]
    assert layers["head"].given is None
    plain = call(module, inputs)["logits"].detach().numpy()
    with fake_quantized(module, sites), torch.no_grad():
        module.train()
        found = call(module, inputs)["logits"].numpy()
    wanted = run_onnx(plan.model, images)["logits"]
    assert relative_error(found, wanted) < 1e-4
    assert relative_error(plain, wanted) > 3e-3


def test_everything_is_as_it_was_afterwards(normalized):
    model, ctx = normalized
    module = load_module(model)
    plan = plan_static(ctx.to_onnx(model), replace(ctx, workdir=fresh_dir()), MANNER)
    inputs = {"image": torch.from_numpy(normal(2, 1, 8, 8))}
    sites, _ = find_sites(module, inputs, plan.layers)
    names = {id(value): name for name, value in module.named_parameters()}
    plain = call(module, inputs)["logits"]
    with fake_quantized(module, sites):
        assert not torch.equal(call(module, inputs)["logits"], plain)
    assert {id(value): name for name, value in module.named_parameters()} == names
    assert torch.equal(call(module, inputs)["logits"], plain)
    module.train()
    assert module.norm.training


def planned(weights: torch.Tensor, name="weight", **more) -> PlannedLayer:
    steps = Steps(0.1, 0, 0, 255)
    given = {"per_channel": True, "top": 127, "taken": steps, "given": None, "bias": False, "means": ()} | more
    return PlannedLayer("node", name, weights.detach().numpy(), **given)


def test_gradients_go_through_rounding_and_stop_where_the_input_is_cut_off():
    torch.manual_seed(0)
    module = nn.Linear(3, 2, bias=False)
    site = Site("", module, planned(module.weight), None)
    values = torch.tensor([[0.53, 30.0, -0.2]], requires_grad=True)
    with fake_quantized(module, [site]):
        made = module(values)
        made.sum().backward()
        weight = module.weight.detach()
        gradient = module.parametrizations.weight.original.grad
    rounded = torch.tensor([[0.5, 25.5, 0.0]])
    torch.testing.assert_close(made, rounded @ weight.T)
    torch.testing.assert_close(gradient, rounded.expand(2, 3))
    torch.testing.assert_close(values.grad, weight.sum(0, keepdim=True) * torch.tensor([[1.0, 0.0, 0.0]]))
    steps = weight / (weight.abs().amax(1, keepdim=True) / 127)
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def test_an_input_given_by_name_is_rounded_too():
    module = nn.Linear(3, 2, bias=False).requires_grad_(False)
    values = torch.tensor([[0.53, 30.0, -0.2]])
    with fake_quantized(module, [Site("", module, planned(module.weight), None)]):
        torch.testing.assert_close(module(input=values), module(values), rtol=0, atol=0)


def test_outputs_are_rounded_behind_the_normalization():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2)).eval()
    module[1].bias.data = torch.tensor([0.3, -0.1])
    layer = planned(module[0].weight, given=Steps(0.25, 0, 0, 255))
    with fake_quantized(module, [Site("0", module[0], layer, module[1])]):
        made = module(torch.linspace(0, 20, 12).view(4, 1, 3)) / 0.25
    torch.testing.assert_close(made, made.round(), rtol=0, atol=1e-5)
    assert float(made.detach().min()) == 0
    assert len(made.detach().unique()) > 4


def test_tied_weights_stay_tied():
    module = nn.Module()
    module.words, module.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    module.head.weight = module.words.weight
    with fake_quantized(module, [Site("head", module.head, planned(module.head.weight), None)]):
        assert module.head.parametrizations.weight.original is module.words.weight
    assert module.head.weight is module.words.weight


def test_layers_are_found_by_values_whatever_their_names_and_strangers_are_told():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    inputs = {"input": torch.ones(1, 4)}
    layers = [planned(module[2].weight.T, "val_7"), planned(module[0].weight, "0.weight"), planned(torch.ones(4, 4))]
    sites, lost = find_sites(module, inputs, layers)
    assert [site.name for site in sites] == ["2", "0"]
    assert lost == [layers[2]]


def test_weights_stay_where_training_does_not_help(normalized):
    model, ctx = normalized
    still = replace(ctx, job=replace(ctx.job, training=Training(steps=1, learning_rate=1e-12)), workdir=fresh_dir())
    outcome = QuantizeAware()(model, still)
    assert outcome.changed == 0
    assert outcome.model is model
    assert outcome.notes[-1].endswith("no better, so the weights stay as they were")


def test_nothing_to_quantize_is_an_error(normalized):
    model, ctx = normalized
    with pytest.raises(PassError, match=r"no layer that quantize-static would quantize: node_\w+: excluded"):
        QuantizeAware(exclude=(".*",))(model, replace(ctx, workdir=fresh_dir()))
    words = built("Words", "ids=int64[batch,seq]")
    ids = MemoryData("search", {"ids": np.ones((4, 3), np.int64)})
    with pytest.raises(PassError, match="no layer that quantize-static would quantize"):
        QuantizeAware()(words, context(words, dict.fromkeys(SPLITS, ids)))


def test_other_forms_are_refused_before_anything_runs():
    model = uneven_mlp()
    assert QuantizeAware().applies(model, Target()) == ""
    assert "cannot be changed any more" in QuantizeAware().applies(replace(model, kind="torchscript"), Target())


def test_its_options_are_those_of_quantize_static():
    own, other = QuantizeAware.model_fields, QuantizeStatic.model_fields
    assert {name: each.default for name, each in own.items()} == {name: other[name].default for name in own}
