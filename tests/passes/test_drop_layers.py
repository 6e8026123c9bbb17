"""Whole layers out of encoders, decoders and residual networks; the reference bypasses them in the original."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from optkit.errors import PassError
from optkit.evaluate.limits import Limits
from optkit.model.load_torch import load_module
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.model.torch_call import name_outputs
from optkit.passes._prune.layer_choice import evenly, influences, strongest
from optkit.passes._prune.layers import find_lists
from optkit.passes.drop_layers import DropLayers
from optkit.passes.export_onnx import ExportOnnx
from optkit.pipeline.cache import Cache
from optkit.pipeline.job import Job
from optkit.pipeline.steps import export
from tests.helpers import MemoryData, fresh_dir, normal, ops_of, run_onnx, run_pass

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
IDS = np.random.default_rng(0).integers(1, 50, (6, 5))
MASK = np.array([[1] * 5, [1] * 3 + [0] * 2] * 3)
TEXT = {"input_ids": IDS, "attention_mask": MASK}
FAMILIES = {
    "bert": ("BertModel", {"vocab_size": 50, "num_hidden_layers": 4, "max_position_embeddings": 32, **SMALL}, TEXT),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 50, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32}, TEXT),
    "llama": ("LlamaForCausalLM", {"vocab_size": 50, "num_hidden_layers": 4, "num_key_value_heads": 1, **SMALL}, TEXT),
    "qwen3": ("Qwen3ForCausalLM", {"vocab_size": 50, "num_hidden_layers": 4, "num_key_value_heads": 1, **SMALL}, TEXT),
    "vit": (
        "ViTModel",
        {"num_hidden_layers": 4, "image_size": 8, "patch_size": 4, **SMALL},
        {"pixel_values": normal(4, 3, 8, 8)},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 50, "d_model": 16, "d_kv": 8, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 2},
        {**TEXT, "decoder_input_ids": IDS[:, :4]},
    ),
}


def family(name: str) -> tuple[Model, dict]:
    """A tiny model with random weights, large enough that no layer is without effect, and inputs for it."""
    kind, options, inputs = FAMILIES[name]
    config = transformers.AutoConfig.for_model(name, **options)
    torch.manual_seed(1)
    module = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = fresh_dir() / name
    module.save_pretrained(folder)
    shapes = {2: "batch,seq", 4: "batch,3,8,8"}
    signature = "; ".join(
        f"{key}={array.dtype}[{'batch,dec' if key.startswith('decoder') else shapes[array.ndim]}]"
        for key, array in inputs.items()
    )
    return Model.open(folder, signature=signature), inputs


def call(module: nn.Module, inputs) -> dict[str, np.ndarray]:
    with torch.no_grad():
        made = name_outputs(module(**{name: torch.from_numpy(array) for name, array in inputs.items()}))
    return {name: value.numpy() for name, value in made.items()}


def skipping(module: nn.Module, names: list[str]) -> nn.Module:
    """The module whose layers of these names give back their first input; written apart from the pass's own."""

    def through(_, args, kwargs, output):
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    for name in names:
        module.get_submodule(name).register_forward_hook(through, with_kwargs=True)
    return module


def drop(model, inputs, **options):
    return run_pass(DropLayers(**options), model, data={"search": MemoryData("search", inputs, batch=4)})


def exported_of(model, inputs) -> Model:
    data = MemoryData("evaluation", inputs)
    job = Job(model, Target(threads=1), {"evaluation": data}, Limits(), exact=False, cache=Cache(fresh_dir()))
    return export(replace(job, exporter=ExportOnnx()), model)


@pytest.mark.parametrize(
    ("name", "path", "counts"),
    [
        ("bert", "encoder.layer", {"num_hidden_layers": 2}),
        ("gpt2", "transformer.h", {"n_layer": 2}),
        ("llama", "model.layers", {"num_hidden_layers": 2}),
        ("qwen3", "model.layers", {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}),
        ("vit", "layers", {"num_hidden_layers": 2}),
        ("t5", "decoder.block", {"num_layers": 4, "num_decoder_layers": 2}),
    ],
)
def test_equals_the_original_with_the_layers_bypassed(name, path, counts):
    model, inputs = family(name)
    outcome = drop(model, inputs, remain=(0, 2))
    wanted = call(skipping(load_module(model), [f"{path}.1", f"{path}.3"]), inputs)
    module = load_module(outcome.model)
    found = call(module, inputs)
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_allclose(found[key], array, atol=2e-5)
    whole = call(load_module(model), inputs)
    assert max(np.abs(array - whole[key]).max() for key, array in wanted.items()) > 0.01
    assert outcome.changed == 2
    assert outcome.changes == [(path, "4 layers -> 2: 0, 2")]
    assert len(module.get_submodule(path)) == 2
    assert {key: getattr(module.config, key) for key in counts} == counts
    numbers = [part.layer_idx for part in module.get_submodule(path).modules() if hasattr(part, "layer_idx")]
    assert set(numbers) <= {0, 1}


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_export_has_fewer_layers_and_agrees(name):
    model, inputs = family(name)
    outcome = drop(model, inputs, remain=1)
    exported = exported_of(outcome.model, inputs)
    wanted = call(load_module(outcome.model), inputs)
    for key, array in run_onnx(exported, inputs).items():
        np.testing.assert_allclose(array, wanted[key], atol=1e-4)
    kinds = ops_of(exported)
    assert kinds.get("Softmax", kinds.get("Attention")) == 1


def test_both_sides_of_an_encoder_decoder_in_one_step_or_two():
    model, inputs = family("t5")
    both = drop(model, inputs, remain=2, list=("encoder.block", "decoder.block")).model
    first = drop(model, inputs, remain=2, list="encoder.block").model
    second = drop(first, inputs, remain=2, list="decoder.block").model
    config = load_module(both).config
    assert (config.num_layers, config.num_decoder_layers) == (2, 2)
    assert load_module(first).decoder.config.num_layers == 4
    for key, array in call(load_module(both), inputs).items():
        np.testing.assert_array_equal(array, call(load_module(second), inputs)[key])


def test_the_layer_with_the_relative_positions_stays():
    model, inputs = family("t5")
    with pytest.raises(PassError, match=r"have to stay: 0, as the other layers use its .*relative_attention_bias"):
        drop(model, inputs, remain=(1, 3), list="encoder.block")
    assert drop(model, inputs, remain=1, list="encoder.block").changes == [("encoder.block", "4 layers -> 1: 0")]


def test_reviews_transformer_by_effect():
    model = Model.open(
        "sample_models/reviews_transformer.safetensors",
        factory="sample_models/models.py:reviews_transformer",
        signature="input_ids=int64[batch,seq]; attention_mask=int64[batch,seq]",
    )
    outcome = drop(model, TEXT, remain=1, choose="effect")
    assert outcome.changes[0][0] == "layers"
    assert outcome.notes[0].startswith("parameters ")
    told = dict(
        part.split() for part in outcome.notes[1].removeprefix("influence of the layers of layers: ").split(", ")
    )
    kept = int(outcome.changes[0][1][-1])
    assert float(told[str(kept)]) == max(map(float, told.values()))
    wanted = call(skipping(load_module(model), [f"layers.{1 - kept}"]), TEXT)["logits"]
    np.testing.assert_allclose(call(load_module(outcome.model), TEXT)["logits"], wanted, atol=1e-5)
    assert json.loads((outcome.model.path / "surgery.json").read_text())[0]["op"] == "drop"


RESIDUAL = """
from collections import OrderedDict

import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, taken, given):
        super().__init__()
        self.conv = nn.Conv2d(taken, given, 3, padding=1)
        self.same = taken == given

    def forward(self, x):
        y = torch.relu(self.conv(x))
        return x + y if self.same else y

def build():
    torch.manual_seed(0)
    blocks = nn.Sequential(Block(1, 8), Block(8, 8), Block(8, 8), Block(8, 8))
    return nn.Sequential(blocks, nn.Flatten(), nn.Linear(8 * 64, 10))

def plain():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

def named():
    return nn.Sequential(OrderedDict((f"layer_{index}", nn.Linear(4, 4)) for index in range(4)))

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = named()

    def forward(self, x):
        return self.layers(x)

class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x):
        for index in (0, 1, 2):
            x = self.layers[index](x)
        return x

class Numbered(nn.Linear):
    def __init__(self, number):
        super().__init__(4, 4)
        self.layer_idx = number

    def forward(self, x):
        return x + super().forward(x) / (self.layer_idx + 1)

def numbered():
    return nn.Sequential(nn.Sequential(*map(Numbered, range(3))))
"""


def built(name: str, signature: str) -> Model:
    folder = fresh_dir()
    (folder / "nets.py").write_text(RESIDUAL)
    space: dict = {}
    exec(RESIDUAL, space)
    save_file(space[name]().state_dict(), folder / "w.safetensors")
    return Model.open(folder / "w.safetensors", factory=f"{folder / 'nets.py'}:{name}", signature=signature)


IMAGES = {"input": normal(4, 1, 8, 8)}


def test_residual_blocks_go_and_the_one_that_widens_stays():
    model = built("build", "input=float32[batch,1,8,8]")
    outcome = drop(model, IMAGES, remain=2)
    wanted = call(skipping(load_module(model), ["0.1", "0.2"]), IMAGES)["output_0"]
    np.testing.assert_allclose(call(load_module(outcome.model), IMAGES)["output_0"], wanted, atol=1e-6)
    by_effect = drop(model, IMAGES, remain=3, choose="effect")
    assert by_effect.changes[0][1].startswith("4 layers -> 3: 0, ")
    assert "layers of 0: 1 " in by_effect.notes[1]
    with pytest.raises(PassError, match="0, as its output has another shape than its input"):
        drop(model, IMAGES, remain=(1, 2))


def test_effect_is_one_minus_the_cosine_of_tokens_that_count():
    model, inputs = family("bert")
    module = load_module(model)
    layers = find_lists(module, {name: torch.from_numpy(array) for name, array in inputs.items()})[0]
    found = influences(module, layers, model.signature, MemoryData("search", inputs, batch=4))
    states = []
    module.encoder.layer[1].register_forward_hook(lambda _, args, out: states.extend([args[0], out]))
    call(module, inputs)
    taken, given = (each[0] if isinstance(each, tuple) else each for each in states)
    cosine = torch.nn.functional.cosine_similarity(taken, given, dim=-1)[torch.from_numpy(MASK).bool()]
    assert found[1] == pytest.approx(float(1 - cosine.mean()), abs=1e-6)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("count", "keep", "bound", "wanted"),
    [
        (6, 3, (), [0, 2, 5]),
        (12, 6, (), [0, 2, 4, 7, 9, 11]),
        (6, 1, (), [0]),
        (6, 2, (3,), [0, 3]),
        (4, 2, (1, 2), [1, 2]),
    ],
)
def test_even_keeps_first_and_last_and_what_is_bound(count, keep, bound, wanted):
    assert evenly(count, keep, bound) == wanted


def test_strongest_keeps_what_is_bound():
    assert strongest({0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3}, 2, []) == [1, 3]
    assert strongest({1: 0.4, 2: 0.2, 3: 0.3}, 2, [0]) == [0, 1]


@pytest.mark.parametrize("keep", [4, 9, (0, 4), (0, 1, 2, 3)])
def test_nothing_to_drop_is_an_error(keep):
    model, inputs = family("bert")
    with pytest.raises(PassError, match=r"encoder\.layer has 4 layers"):
        drop(model, inputs, remain=keep)


def test_no_list_and_an_unknown_list_say_what_there_is():
    with pytest.raises(PassError, match="has no list of layers of which one could go") as caught:
        drop(built("plain", "input=float32[batch,4]"), {"input": normal(4, 4)}, remain=1)
    assert "prune-channels" in caught.value.fix
    model, inputs = family("t5")
    with pytest.raises(PassError, match=r"no list of layers 'encoder\.layer'") as caught:
        drop(model, inputs, remain=1, list="encoder.layer")
    assert "encoder.block (4 layers)" in caught.value.expected


def test_code_that_counts_by_itself_is_refused():
    with pytest.raises(PassError, match=r"does not do without layers\.1: .*[Ii]ndex"):
        drop(built("Counting", "x=float32[batch,4]"), {"x": normal(4, 4)}, remain=2)


def test_a_model_that_computes_with_its_numbers_is_refused():
    with pytest.raises(PassError, match=r"does not do without 0\.1: 'output_0' is off by"):
        drop(built("numbered", "input=float32[batch,4]"), {"input": normal(4, 4)}, remain=2)


def test_half_of_the_layers_stay_unless_told_otherwise():
    model, inputs = family("vit")
    assert drop(model, inputs).changes == [("layers", "4 layers -> 2: 0, 3")]


def test_other_forms_are_refused_before_anything_runs():
    model, _ = family("bert")
    assert DropLayers(remain=2).applies(model, None) == ""
    assert "cannot be trained or changed" in DropLayers(remain=2).applies(replace(model, kind="pt2"), None)
    assert DropLayers(remain=2, choose="effect").reads() == ("sample", "search")
    assert DropLayers(remain=(0, 1), choose="effect").reads() == ("sample",)


@pytest.mark.parametrize("choose", ["even", "effect"])
def test_layers_may_have_names(choose):
    model, inputs = built("Named", "x=float32[batch,4]"), {"x": normal(8, 4)}
    outcome = drop(model, inputs, remain=2, choose=choose)
    whole, cut = load_module(model), load_module(outcome.model)
    names = list(cut.layers._modules)
    assert len(names) == 2
    expected = torch.from_numpy(inputs["x"])
    for name in names:
        expected = getattr(whole.layers, name)(expected)
    torch.testing.assert_close(cut(torch.from_numpy(inputs["x"])), expected)
