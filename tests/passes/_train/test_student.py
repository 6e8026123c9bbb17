"""Students of their own: configurations in other sizes, with weights of the teacher where they fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from optkit.errors import ModelError, PassError
from optkit.model.load_torch import load_module
from optkit.model.torch_folder import save_module
from optkit.passes._train.student import from_config, from_factory, require_match
from tests.helpers import fresh_dir
from tests.passes._train.jobs import digits
from tests.passes.test_drop_layers import family


@pytest.mark.parametrize(
    ("name", "count", "path"),
    [
        ("bert", "num_hidden_layers", "encoder.layer"),
        ("gpt2", "num_hidden_layers", "transformer.h"),
        ("llama", "num_hidden_layers", "model.layers"),
        ("qwen3", "num_hidden_layers", "model.layers"),
        ("t5", "num_layers", "encoder.block"),
    ],
)
def test_fewer_layers_with_the_teachers_weights(name: str, count: str, path: str) -> None:
    model, _ = family(name)
    teacher = load_module(model)
    student = from_config({count: 3}, model, teacher, seed=0)
    assert student.kept == {path: [0, 2, 3]}
    total = len(student.module.state_dict())
    note = f"weights of the student from the teacher: {total} of {total} tensors, layers 0, 2, 3 of {path}"
    assert student.notes == (note,)
    for mine, theirs in zip((0, 1, 2), (0, 2, 3), strict=True):
        one, other = student.module.get_submodule(f"{path}.{mine}"), teacher.get_submodule(f"{path}.{theirs}")
        assert all(value.equal(other.state_dict()[key]) for key, value in one.state_dict().items())
    saved = save_module(model, student.module, [], fresh_dir() / "model", "distill", built=student.built)
    assert len(load_module(saved).get_submodule(path)) == 3


def test_what_has_another_shape_is_random_by_the_seed() -> None:
    model, _ = family("bert")
    teacher = load_module(model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made = [from_config({"intermediate_size": 8}, model, teacher, seed).module for seed in (0, 0, 1)]
    assert torch.get_rng_state().equal(state)
    wide = [each.encoder.layer[0].intermediate.dense.weight for each in made]
    assert tuple(wide[0].shape) == (8, 16)
    assert wide[0].equal(wide[1])
    assert not wide[0].equal(wide[2])
    assert made[0].embeddings.word_embeddings.weight.equal(teacher.embeddings.word_embeddings.weight)


def test_lists_with_a_value_for_each_layer_follow() -> None:
    model, _ = family("qwen3")
    config = json.loads((model.path / "config.json").read_text())
    given = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    (model.path / "config.json").write_text(json.dumps({**config, "layer_types": given}))
    student = from_config({"num_hidden_layers": 3}, model, load_module(model), seed=0)
    assert student.module.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


def test_unknown_settings_get_a_suggestion() -> None:
    model, _ = family("bert")
    with pytest.raises(PassError, match="bert configuration has no 'num_hiden_layers'") as caught:
        from_config({"num_hiden_layers": 1}, model, load_module(model), 0)
    assert caught.value.fix == "did you mean 'num_hidden_layers'?"
    with pytest.raises(PassError, match="'model_type'"):
        from_config({"model_type": "gpt2"}, model, load_module(model), 0)


def test_sizes_that_do_not_go_together() -> None:
    model, _ = family("bert")
    with pytest.raises(PassError, match="no bert model of these sizes"):
        from_config({"hidden_size": 15}, model, load_module(model), 0)


def test_a_configuration_needs_a_hugging_face_original() -> None:
    model = digits()
    with pytest.raises(PassError, match="no Hugging Face model"):
        from_config({"num_hidden_layers": 1}, model, nn.Linear(1, 1), 0)


def test_a_factorys_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 2)\n")
    made = [from_factory(f"{tmp_path / 'f.py'}:build", seed).module.weight for seed in (0, 0, 1)]
    assert made[0].equal(made[1])
    assert not made[0].equal(made[2])
    with pytest.raises(ModelError, match="has no function 'built'"):
        from_factory(f"{tmp_path / 'f.py'}:built", 0)


def test_a_student_has_its_teachers_outputs() -> None:
    inputs = {"input": torch.rand(2, 3)}
    require_match(nn.Linear(3, 4), nn.Linear(3, 4), inputs)
    with pytest.raises(
        PassError, match=r"gives output_0 float32 \[2, 5\]; the teacher gives output_0 float32 \[2, 4\]"
    ):
        require_match(nn.Linear(3, 5), nn.Linear(3, 4), inputs)
    with pytest.raises(PassError, match="does not run on the inputs"):
        require_match(nn.Linear(4, 4), nn.Linear(3, 4), inputs)


def test_a_folder_with_another_source_has_no_surgery_of_the_first(tmp_path: Path) -> None:
    model, _ = family("bert")
    small = from_config({"num_hidden_layers": 1}, model, load_module(model), 0)
    saved = save_module(model, small.module, [], tmp_path / "one", "distill", built=small.built)
    assert saved.factory is None
    again = from_config({"intermediate_size": 8}, replace(saved), load_module(saved), 0)
    assert again.built is not None
    assert again.built["huggingface"]["num_hidden_layers"] == 1
    (tmp_path / "f.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 2)\n")
    factory = f"{tmp_path / 'f.py'}:build"
    other = save_module(saved, nn.Linear(2, 2), [], tmp_path / "two", "distill", built={"factory": factory})
    assert other.factory == factory
    assert isinstance(load_module(other), nn.Linear)
    with pytest.raises(ModelError, match="has changed"):
        load_module(replace(other, factory=None))
