"""Tiny transformers with random weights, as both of torch's exporters write them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from optkit.model.model import Model
from optkit.passes._fusion.families import fuse
from optkit.passes._fusion.family import Fired
from optkit.passes._ir import inline, load_ir, save_ir
from tests.helpers import fresh_dir, normal, open_any, run_onnx

WIDTH = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = WIDTH | {"vocab_size": 1000, "max_position_embeddings": 64}


def tiny(kind: str) -> Any:
    """One layer of 4 heads with 8 features each."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    if kind == "vit":
        return hf.ViTForImageClassification(hf.ViTConfig(**WIDTH, image_size=16, patch_size=4))
    if kind == "gpt2":
        return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=1000, n_embd=32, n_layer=1, n_head=4, n_positions=64))
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, num_key_value_heads=2))
    if kind == "neox":
        return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TEXT, rotary_pct=0.5))
    if kind == "t5":
        return hf.T5EncoderModel(
            hf.T5Config(vocab_size=1000, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, use_cache=False)
        )
    return {"bert": hf.BertModel, "mpnet": hf.MPNetModel}[kind](
        {"bert": hf.BertConfig, "mpnet": hf.MPNetConfig}[kind](**TEXT)
    )


@cache
def exported(kind: str, exporter: str, attention: str) -> Model:
    """What our own export makes of it: no shapes of inner tensors, dimensions called batch and seq.

    ``attention``: "eager" spells it out, "sdpa" leaves it to ``torch.nn.functional.scaled_dot_product_attention``.
    """
    from optkit.passes.export_onnx import ExportOnnx
    from tests.passes.test_export_onnx import Ctx

    folder, module = fresh_dir(), tiny(kind)
    for index, weight in enumerate(module.parameters()):  # fresh normalizations are all ones, and exported as nothing
        weight.data += normal(*weight.shape, seed=index, scale=0.1)
    module.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attn_implementation": attention}))
    source = Model.open(folder)
    return ExportOnnx(exporter=exporter)(source, Ctx(source, fresh_dir())).model


def batch_of(model: Model) -> dict[str, Any]:
    """Four samples; ids are padded by 0 to 3 at the end, those of the last at its beginning."""
    if [spec.name for spec in model.signature.inputs] == ["pixel_values"]:
        return {"pixel_values": normal(4, 3, 16, 16)}
    keep = np.arange(9) < 9 - np.arange(4)[:, None]
    keep[3] = keep[3, ::-1]
    ids = np.random.default_rng(0).integers(0, 1000, (4, 9))
    return {"input_ids": ids, "attention_mask": keep.astype(np.int64)}


def fused(model: Model, *families: str) -> tuple[Model, dict[str, Fired]]:
    """(the model with these families applied, what each did)"""
    graph, path = inline(load_ir(model.path)), fresh_dir() / "model.onnx"
    found = fuse(graph, families)
    save_ir(graph, path)
    return open_any(path), found


def assert_equal_outputs(after: Model, before: Model, inputs: dict[str, Any], tolerance: float) -> None:
    """Largest error over the output's standard deviation; onnxruntime rewrites nothing by itself."""
    found, expected = (run_onnx(model, inputs, plain=True) for model in (after, before))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert np.isfinite(array).all()
        assert np.abs(found[name] - array).max() <= tolerance * array.std()
