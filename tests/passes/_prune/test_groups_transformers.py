"""transformers' own classes at tiny random configurations: heads and inner features, exactly, and half of them gone."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers as hf

from optkit.passes._prune.groups import find_groups
from tests.passes._prune.nets import alive, cut_in_half, drawn, image, tokens

WIDTH = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDTH |= {"intermediate_size": 40, "max_position_embeddings": 32}
LLAMA = {**WIDTH, "num_attention_heads": 6, "hidden_size": 48, "tie_word_embeddings": True}
T5 = {"vocab_size": 97, "d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 2, "num_heads": 4}
GPT2 = {"vocab_size": 97, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}
DISTIL = {"vocab_size": 97, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 32}
VIT = {**WIDTH, "image_size": 12, "patch_size": 4}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
MASK = (torch.arange(7) < torch.tensor([[7], [5], [3]])).long()
TEXT = tokens(attention_mask=MASK)
PAIR = tokens(decoder_input_ids=tokens()["input_ids"][:, :5])
PIXELS = {"pixel_values": image(12)["x"]}

CASES = {
    "bert": (lambda: hf.BertModel(hf.BertConfig(**WIDTH)), TEXT, 2, 2),
    "distilbert": (lambda: hf.DistilBertModel(hf.DistilBertConfig(**DISTIL)), TEXT, 2, 2),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), TEXT, 2, 2),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, num_key_value_heads=3)), TEXT, 2, 2),
    "llama-eager": (
        lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**LLAMA, num_key_value_heads=2, attn_implementation="eager", pad_token_id=0)
        ),
        TEXT,
        2,
        2,
    ),
    "gemma": (lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**WIDTH, num_key_value_heads=1, head_dim=8)), TEXT, 2, 2),
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)), PIXELS, 2, 2),
    "swin": (
        lambda: hf.SwinModel(
            hf.SwinConfig(image_size=16, patch_size=2, embed_dim=12, depths=[1, 1], num_heads=[2, 4], window_size=4)
        ),
        {"pixel_values": image(16)["x"]},
        2,
        2,
    ),
    "t5-encoder": (lambda: hf.T5EncoderModel(hf.T5Config(**T5)), TEXT, 1, 2),
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), PAIR, 3, 4),
}


@cache
def found_in(name):
    build, inputs, _, _ = CASES[name]
    module = alive(build())
    return module, inputs, find_groups(module, inputs)


def heads_of(name):
    return next(group for group in found_in(name)[2].groups if group.kind == "heads")


@pytest.mark.parametrize("name", CASES)
def test_heads_and_inner_features(name):
    module, inputs, found = found_in(name)
    kinds = [group.kind for group in found.groups if not group.through_norm]
    assert (kinds.count("heads"), kinds.count("features")) == CASES[name][2:]
    changed = cut_in_half(module, inputs, found)
    assert sum(each.numel() for each in changed.parameters()) < sum(each.numel() for each in module.parameters())


def test_bert_heads():
    group = heads_of("bert")
    assert (group.name, group.units) == ("encoder.layer.0.attention heads", 4)
    at = "encoder.layer.0.attention"
    own = {f"{at}.self.{name}.weight.0": (6, "out") for name in ("query", "key", "value")}
    own |= {f"{at}.self.{name}.bias.0": (6, "along") for name in ("query", "key", "value")}
    assert drawn(group) == {**own, f"{at}.output.dense.weight.1": (6, "in")}


def test_gpt2_heads_lie_three_times_in_its_packed_layer():
    group = heads_of("gpt2")
    at = "transformer.h.0.attn"
    assert drawn(group) == {
        f"{at}.c_attn.weight.1": (18, "out"),
        f"{at}.c_attn.bias.0": (18, "along"),
        f"{at}.c_proj.weight.0": (6, "in"),
    }
    assert group.parts[0].indices[1].tolist() == [*range(6, 12), *range(30, 36), *range(54, 60)]
    assert [(count.module, count.attribute, count.per_unit) for count in group.counts] == [(at, "split_size", 6)]


@pytest.mark.parametrize(("name", "queries"), [("llama", 2), ("llama-eager", 3)])
def test_a_key_head_goes_with_all_its_query_heads(name, queries):
    group = heads_of(name)
    at = "model.layers.0.self_attn"
    assert drawn(group) == {
        f"{at}.q_proj.weight.0": (8 * queries, "out"),
        f"{at}.k_proj.weight.0": (8, "out"),
        f"{at}.v_proj.weight.0": (8, "out"),
        f"{at}.o_proj.weight.1": (8 * queries, "in"),
    }
    assert group.parts[0].indices[1].tolist() == list(range(8 * queries, 16 * queries))
    assert group.counts == ()


def test_a_gate_goes_with_what_it_gates():
    build, inputs, _, _ = CASES["llama"]
    group = next(
        each for each in find_groups(alive(build()), inputs).groups if each.kind == "features" and each.units == 40
    )
    at = "model.layers.0.mlp"
    assert group.name == f"{at}.gate_proj, {at}.up_proj"
    assert drawn(group) == {
        f"{at}.gate_proj.weight.0": (1, "out"),
        f"{at}.up_proj.weight.0": (1, "out"),
        f"{at}.down_proj.weight.1": (1, "in"),
    }


def test_all_layers_share_the_heads_of_one_position_bias():
    group = heads_of("t5-encoder")
    assert (group.name, group.units) == ("encoder.block heads", 4)
    table = next(part for part in group.parts if "relative_attention_bias" in part.tensor)
    assert (table.dim, table.role, table.indices.shape) == (1, "out", (4, 1))
    assert sum(part.role == "in" for part in group.parts) == 2


def test_the_residual_stream_passes_a_norm():
    through = [group for group in found_in("gpt2")[2].groups if group.through_norm]
    assert [(group.units, group.kind) for group in through] == [(24, "features")]
    tied = next(part for part in through[0].parts if part.tensor == "transformer.wte.weight")
    assert tied.names == ("transformer.wte.weight", "lm_head.weight")


def test_what_reaches_the_output_is_skipped():
    skipped = dict(found_in("bert")[2].skipped)
    assert skipped["encoder.layer.1.output.dense"] == skipped["pooler.dense"] == "it reaches an output of the model"
