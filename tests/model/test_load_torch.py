"""Modules from every kind of torch file, and what their inputs and outputs are called."""

import os
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from optkit.errors import DataError, ModelError
from optkit.model.huggingface import default_signature
from optkit.model.load_torch import bind_inputs, forward_names, load_exported, load_module, name_outputs
from optkit.model.model import Model
from optkit.model.signature import TensorSpec

FACTORY = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.second(self.first(x))

def build():
    return Two()

def broken():
    raise RuntimeError("no data")

def weights():
    return Two().state_dict()
"""
X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "factory.py"
    path.write_text(FACTORY)
    return path


@pytest.fixture
def module(factory):
    torch.manual_seed(0)
    space = {}
    exec(FACTORY, space)
    return space["build"]()


def weights_model(path, factory, name="build", **more):
    return Model(path=path, form="torch", kind="weights", factory=f"{factory}:{name}", **more)


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "model_state_dict"])
def test_state_dict_in_any_checkpoint(tmp_path, factory, module, nest):
    state = module.state_dict()
    torch.save(state if nest is None else {nest: state, "epoch": 3}, tmp_path / "w.pt")
    loaded = load_module(weights_model(tmp_path / "w.pt", factory))
    assert not loaded.training
    assert torch.equal(loaded(X), module(X))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_names_and_safetensors(tmp_path, factory, module, prefix):
    save_file({prefix + name: value for name, value in module.state_dict().items()}, tmp_path / "w.safetensors")
    assert torch.equal(load_module(weights_model(tmp_path / "w.safetensors", factory))(X), module(X))


def test_weights_that_do_not_fit_are_listed(tmp_path, factory, module):
    state = module.state_dict()
    state["third.weight"] = state.pop("first.weight")
    state["second.bias"] = torch.ones(5)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        load_module(weights_model(tmp_path / "w.pt", factory))
    for words in ("first.weight is missing", "third.weight is unknown", "second.bias is [5] instead of [2]"):
        assert words in caught.value.message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("biuld", "did you mean 'build'?"),
        ("broken", "RuntimeError: no data"),
        ("weights", "returns a OrderedDict"),
    ],
)
def test_factories_that_fail(tmp_path, factory, module, name, words):
    torch.save(module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        load_module(weights_model(tmp_path / "w.pt", factory, name))
    assert words in caught.value.message
    assert caught.value.fix


def test_factory_that_is_not_there(tmp_path, module):
    torch.save(module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="There is no file"):
        load_module(weights_model(tmp_path / "w.pt", tmp_path / "none.py"))
    with pytest.raises(ModelError, match="No module named 'no_such_module'"):
        load_module(weights_model(tmp_path / "w.pt", "no_such_module"))


def test_a_module_of_the_current_folder(tmp_path, factory, module, monkeypatch):
    torch.save(module.state_dict(), tmp_path / "w.pt")
    (tmp_path / "factory.py").rename(tmp_path / "optkit_test_local_factory.py")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load_module(weights_model(tmp_path / "w.pt", "optkit_test_local_factory"))(X), module(X))


def test_weights_with_code_inside(tmp_path, factory):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/marker",))

    torch.save({"w": Evil()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="does not open as weights"):
        load_module(weights_model(tmp_path / "w.pt", factory))
    assert not (tmp_path / "marker").exists()


def test_pickled_modules_need_trust(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    torch.save({"model": module}, tmp_path / "m.pt")
    model = Model(path=tmp_path / "m.pt", form="torch", kind="pickle")
    with pytest.raises(ModelError, match="runs code from the file"):
        load_module(model)
    trusted = load_module(Model(path=tmp_path / "m.pt", form="torch", kind="pickle", trust_pickle=True))
    assert torch.equal(trusted(X), module[0](X))


def test_exports_and_torchscript(tmp_path, module):
    torch.export.save(torch.export.export(module, (X,)), tmp_path / "m.pt2")
    torch.jit.trace(module, X).save(tmp_path / "m.ts")
    exported = Model(path=tmp_path / "m.pt2", form="torch", kind="pt2")
    assert torch.equal(load_module(exported)(X), module(X))
    assert load_exported(exported).graph_signature.user_inputs == ("x",)
    assert torch.equal(load_module(Model(path=tmp_path / "m.ts", form="torch", kind="torchscript"))(X), module(X))
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_broken_torchscript(tmp_path, module):
    torch.jit.trace(module, X).save(tmp_path / "m.ts")
    data = (tmp_path / "m.ts").read_bytes()
    (tmp_path / "m.ts").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be read as an archive"):
        load_module(Model(path=tmp_path / "m.ts", form="torch", kind="torchscript"))


def test_output_names():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    pair = namedtuple("pair", "left right")
    assert list(name_outputs(a)) == ["output_0"]
    assert list(name_outputs((a, [b, None, (c,)]))) == ["output_0", "output_1", "output_2"]
    assert list(name_outputs(pair(a, b))) == ["output_0", "output_1"]
    named = name_outputs({"logits": a, "loss": None, "past_key_values": object(), "hidden": (b, c), "one": [a]})
    assert list(named) == ["logits", "hidden_0", "hidden_1", "one"]
    assert named["hidden_1"] is c
    with pytest.raises(ModelError, match="returns a str"):
        name_outputs((a, "text"))


class Pair(nn.Module):
    def forward(self, pair, scale=None):
        return (pair[0] - pair[1]) * scale


class Many(nn.Module):
    def forward(self, x, **extra):
        return x + extra["y"]


def test_inputs_by_name():
    one, two = torch.ones(2, 2), torch.full((2, 2), 2.0)
    assert forward_names(nn.Linear(2, 2)) == ("input",)
    assert bind_inputs(nn.Linear(2, 2), {"input": one}) == ((), {"input": one})
    assert bind_inputs(nn.Linear(2, 2), {"x": one}) == ((one,), {})
    assert bind_inputs(Many(), {"x": one, "y": two}) == ((), {"x": one, "y": two})
    args, kwargs = bind_inputs(nn.Bilinear(2, 2, 1), {"b": two, "a": one}, order=["a", "b"])
    assert args == (one, two) and kwargs == {}
    with pytest.raises(DataError, match="no argument y") as caught:
        bind_inputs(nn.Bilinear(2, 2, 1), {"input1": one, "y": two})
    assert caught.value.expected == "inputs among input1, input2"


def test_inputs_of_an_export_that_nests_them(tmp_path):
    one, two, three = torch.ones(2, 2), torch.full((2, 2), 2.0), torch.tensor(3.0)
    torch.export.save(torch.export.export(Pair(), ((one, two),), {"scale": three}), tmp_path / "m.pt2")
    module = load_module(Model(path=tmp_path / "m.pt2", form="torch", kind="pt2"))
    assert forward_names(module) == ("pair_0", "pair_1", "scale")
    args, kwargs = bind_inputs(module, {"scale": three, "pair_1": two, "pair_0": one})
    assert torch.equal(module(*args, **kwargs), torch.full((2, 2), -3.0))


def bert(**more):
    import transformers

    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=60, **more
    )
    torch.manual_seed(0)
    return transformers.BertModel(config).eval()


def test_hugging_face_folder(tmp_path):
    module = bert()
    module.save_pretrained(tmp_path)
    model = Model(path=tmp_path, form="torch", kind="huggingface")
    loaded = load_module(model)
    ids = torch.ones(2, 5, dtype=torch.int64)
    with torch.no_grad():
        outputs = name_outputs(loaded(input_ids=ids, attention_mask=ids))
        assert list(outputs) == ["last_hidden_state", "pooler_output"]
        assert torch.allclose(outputs["pooler_output"], module(ids, ids).pooler_output, atol=1e-6)
    assert loaded.dtype == torch.float32
    text = tuple(TensorSpec(name, "int64", ("batch", "seq")) for name in ("input_ids", "attention_mask"))
    assert default_signature(model).inputs == text
    (tmp_path / "tokenizer_config.json").write_text(
        '{"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}'
    )
    assert default_signature(model).inputs == (*text, TensorSpec("token_type_ids", "int64", ("batch", "seq")))


def test_hugging_face_weights_that_would_be_random(tmp_path):
    module = bert()
    module.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("BertModel", "BertForSequenceClassification"))
    with pytest.raises(ModelError, match="they would be random") as caught:
        load_module(Model(path=tmp_path, form="torch", kind="huggingface"))
    assert "classifier.weight" in caught.value.message
    (tmp_path / "config.json").write_text(config.replace("BertModel", "MyOwnModel"))
    with pytest.raises(ModelError, match="has no model class MyOwnModel"):
        load_module(Model(path=tmp_path, form="torch", kind="huggingface"))


def test_hugging_face_pictures_and_caches(tmp_path):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    spec = TensorSpec("pixel_values", "float32", ("batch", 3, 16, 16))
    assert default_signature(Model(path=tmp_path / "vit", form="torch", kind="huggingface")).inputs == (spec,)
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 60, "n_positions": 16}
    config = transformers.GPT2Config(**small, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    loaded = load_module(Model(path=tmp_path / "gpt2", form="torch", kind="huggingface"))
    ids = torch.ones(1, 4, dtype=torch.int64)
    assert list(name_outputs(loaded(input_ids=ids))) == ["logits"]
    assert list(name_outputs(loaded(input_ids=ids, use_cache=True))) == ["logits"]


def test_exports_with_hugging_face_outputs_open_in_a_fresh_process(tmp_path):
    import subprocess
    import sys

    ids = torch.ones(2, 5, dtype=torch.int64)
    torch.export.save(torch.export.export(bert(), (), {"input_ids": ids}), tmp_path / "m.pt2")
    code = (
        "from pathlib import Path; from optkit.model.model import Model; "
        "from optkit.model.load_torch import load_module, name_outputs; import torch; "
        f"m = load_module(Model(path=Path(r'{tmp_path / 'm.pt2'}'), form='torch', kind='pt2')); "
        "print(*name_outputs(m(input_ids=torch.ones(2, 5, dtype=torch.int64))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["last_hidden_state", "pooler_output"]


def test_bfloat16_tensors():
    from optkit.model.load_torch import to_tensor

    tensor = to_tensor("x", np.float32([1.5, -2]), "bfloat16")
    assert tensor.dtype is torch.bfloat16 and tensor.tolist() == [1.5, -2.0]
    with pytest.raises(DataError, match="which torch does not take"):
        to_tensor("x", np.array(["a"]), "str_")
