"""The torch form between passes: written, opened, loaded; and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optkit.errors import ModelError
from optkit.model.load_torch import load_module
from optkit.model.model import Model
from optkit.model.surgery import Drop, Slice, operate
from optkit.model.torch_folder import load_folder, save_module, source_factory, surgery_of, unfit

FACTORY = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
"""
X = torch.linspace(-1, 1, 8).reshape(2, 4)
CUT = [
    Slice(module="0", tensor="weight", dim=0, keep=[1, 4], attrs={"out_features": 2}),
    Slice(module="0", tensor="bias", dim=0, keep=[1, 4]),
    Slice(module="2", tensor="weight", dim=1, keep=[1, 4], attrs={"in_features": 2}),
]


@pytest.fixture
def given(tmp_path):
    (tmp_path / "code.py").write_text(FACTORY)
    space = {}
    exec(FACTORY, space)
    torch.manual_seed(1)
    save_file(space["build"]().state_dict(), tmp_path / "w.safetensors")
    factory = f"{tmp_path / 'code.py'}:build"
    return Model.open(tmp_path / "w.safetensors", factory=factory, signature="input=float32[batch,4]")


def cut_folder(model: Model, folder: Path, sentence="cut") -> tuple[Model, nn.Module]:
    module = operate(load_module(model), CUT)
    return save_module(model, module, CUT, folder, sentence), module


def test_a_folder_builds_the_changed_module_again(given, tmp_path):
    model, module = cut_folder(given, tmp_path / "out")
    assert (model.form, model.kind, model.lineage) == ("torch", "torch-folder", ("cut",))
    assert model.signature == given.signature
    torch.testing.assert_close(load_module(model)(X), module(X), rtol=0, atol=0)
    assert not load_module(model).training
    assert sorted(file.name for file in model.path.iterdir()) == ["source.json", "surgery.json", "weights.safetensors"]


def test_surgery_adds_up_over_passes(given, tmp_path):
    first, module = cut_folder(given, tmp_path / "one")
    more = [Slice(module="0", tensor="weight", dim=1, keep=[0, 1, 2, 3])]
    second = save_module(first, operate(module, more), more, tmp_path / "two", "more")
    assert surgery_of(second) == [*CUT, *more]
    assert second.lineage == ("cut", "more")
    torch.testing.assert_close(load_module(second)(X), module(X), rtol=0, atol=0)


def test_equal_content_equal_digest_and_not_after_a_change(given, tmp_path):
    first, module = cut_folder(given, tmp_path / "one")
    again, _ = cut_folder(given, tmp_path / "two")
    assert first.digest == again.digest
    module[2].bias.data += 1
    assert save_module(given, module, CUT, tmp_path / "three", "cut").digest != first.digest
    assert first.size_bytes == sum(file.stat().st_size for file in first.path.iterdir())


def test_it_opens_only_with_the_factory_that_the_user_names(given, tmp_path):
    model, module = cut_folder(given, tmp_path / "out")
    with pytest.raises(ModelError, match=r"the code .*code\.py:build belongs to") as caught:
        Model.open(model.path)
    assert "--factory" in caught.value.fix
    opened = Model.open(model.path, factory=source_factory(model.path))
    torch.testing.assert_close(load_module(opened)(X), module(X), rtol=0, atol=0)


def test_other_code_than_then_is_refused(given, tmp_path):
    model, _ = cut_folder(given, tmp_path / "out")
    (tmp_path / "code.py").write_text(FACTORY.replace("ReLU", "GELU"))
    with pytest.raises(ModelError, match="has changed"):
        load_module(model)


def test_no_factory_named_runs_none(given, tmp_path):
    model, _ = cut_folder(given, tmp_path / "out")
    with pytest.raises(ModelError, match="has changed or is not the one named"):
        load_folder(replace(model, factory=None))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: w.pop("0.bias"), "0.bias is missing"),
        (lambda w: w.update(extra=torch.ones(1)), "extra is unknown"),
        (lambda w: w.update({"0.bias": torch.ones(3)}), r"0.bias is \[3\] instead of \[2\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(given, tmp_path, change, text):
    model, _ = cut_folder(given, tmp_path / "out")
    weights = load_file(model.path / "weights.safetensors")
    change(weights)
    save_file(weights, model.path / "weights.safetensors", metadata={"ties": "{}"})
    with pytest.raises(ModelError, match=text):
        load_module(model)


def test_a_torn_folder_is_no_model(given, tmp_path):
    model, _ = cut_folder(given, tmp_path / "out")
    (model.path / "surgery.json").write_text("[{")
    with pytest.raises(ModelError, match=r"surgery\.json is not readable"):
        load_module(model)
    (model.path / "surgery.json").unlink()
    with pytest.raises(ModelError, match="neither a Hugging Face model nor a bundle"):
        Model.open(model.path)


@pytest.mark.parametrize("kind", ["pt2", "torchscript", "pickle"])
def test_exports_and_pickles_cannot_be_changed(given, tmp_path, kind):
    exported = replace(given, kind=kind)
    assert "--factory" in unfit(exported)
    with pytest.raises(ModelError, match="cannot be changed"):
        save_module(exported, nn.Linear(1, 1), [], tmp_path / "out", "cut")


def test_a_hugging_face_model_needs_no_folder_of_its_own_any_more(tmp_path):
    import transformers

    config = transformers.GPT2Config(
        n_layer=3, n_head=2, n_embd=8, vocab_size=11, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "hf")
    model = Model.open(tmp_path / "hf")
    drop = [Drop(module="transformer.h", keep=[0, 2], attrs={"1.attn.layer_idx": 1})]
    module = operate(load_module(model), drop)
    made = save_module(model, module, drop, tmp_path / "out", "drop")
    ids = torch.tensor([[1, 2, 3]])
    loaded = load_module(made)
    torch.testing.assert_close(loaded(ids).logits, module(ids).logits, rtol=0, atol=0)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    names = load_file(made.path / "weights.safetensors").keys()
    assert ("lm_head.weight" in names) + ("transformer.wte.weight" in names) == 1
    assert json.loads((made.path / "source.json").read_text())["huggingface"]["n_layer"] == 3
    assert Model.open(made.path).kind == "torch-folder"


def small_gpt2(folder: Path) -> None:
    import transformers

    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def test_weights_that_a_hugging_face_folder_does_not_tie_stay_two(tmp_path):
    small_gpt2(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["lm_head.weight"] = torch.ones(11, 8)
    save_file(weights, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    model = Model.open(tmp_path / "hf")
    module = load_module(model)
    made = save_module(model, module, [], tmp_path / "out", "nothing")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(load_module(made)(ids).logits, module(ids).logits, rtol=0, atol=0)


def test_a_tied_tensor_cannot_take_two_weights(tmp_path):
    small_gpt2(tmp_path / "hf")
    model = Model.open(tmp_path / "hf")
    made = save_module(model, load_module(model), [], tmp_path / "out", "nothing")
    weights = load_file(made.path / "weights.safetensors")
    weights |= {"transformer.wte.weight": torch.zeros(11, 8), "lm_head.weight": torch.ones(11, 8)}
    save_file(weights, made.path / "weights.safetensors", metadata={"ties": "{}"})
    with pytest.raises(ModelError, match=r"lm_head\.weight is transformer\.wte\.weight and has other numbers"):
        load_module(made)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_names_no_code_of_others(tmp_path, key):
    small_gpt2(tmp_path / "hf")
    model = Model.open(tmp_path / "hf")
    made = save_module(model, load_module(model), [], tmp_path / "out", "nothing")
    source = json.loads((made.path / "source.json").read_text())
    source["huggingface"][key] = "someone/attention"
    (made.path / "source.json").write_text(json.dumps(source))
    with pytest.raises(ModelError, match="asks for 'someone/attention', which transformers may download and run"):
        load_module(made)


def test_layers_without_sizes_are_refused(given, tmp_path):
    (tmp_path / "lazy.py").write_text("from torch import nn\n\ndef build():\n    return nn.LazyLinear(3)\n")
    with pytest.raises(ModelError, match="tensors without a shape yet: weight, bias"):
        load_module(replace(given, factory=f"{tmp_path / 'lazy.py'}:build"))


def test_code_that_finds_more_code_when_it_runs_is_the_same_code_before_and_after(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "layers_of_mine.py").write_text(
        "from torch import nn\n\ndef linear():\n    return nn.Linear(4, 2)\n"
    )
    (tmp_path / "late.py").write_text(
        "import sys\nfrom pathlib import Path\n\n"
        "def build():\n"
        "    sys.path.insert(0, str(Path(__file__).parent / 'parts'))\n"
        "    import layers_of_mine\n"
        "    return layers_of_mine.linear()\n"
    )
    factory = f"{tmp_path / 'late.py'}:build"
    save_file(nn.Linear(4, 2).state_dict(), tmp_path / "late.safetensors")
    given = Model.open(tmp_path / "late.safetensors", factory=factory, signature="input=float32[batch,4]")
    made = save_module(given, load_module(given), [], tmp_path / "out", "nothing")
    load_module(made)
    told = subprocess.run(
        [sys.executable, "-c", LOAD, str(made.path), factory], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "Linear"


LOAD = """
import sys
from optkit.model.load_torch import load_module
from optkit.model.model import Model
print(type(load_module(Model.open(sys.argv[1], factory=sys.argv[2]))).__name__)
"""
