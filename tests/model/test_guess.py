"""What a model most likely is, with the reason."""

from __future__ import annotations

import pytest

from optkit.model.guess import guess
from optkit.model.signature import Signature, parse_signature


def signature(inputs: str, outputs: str = "") -> Signature:
    return Signature(parse_signature(inputs), parse_signature(outputs))


@pytest.mark.parametrize(
    ("inputs", "outputs", "what"),
    [
        ("x=float32[batch,3,224,224]", "y=float32[batch,1000]", "image classifier"),
        ("x=float32[batch,3,h,w]", "embedding=float32[batch,512]", "image encoder"),
        ("x=float32[batch,3,h,w]", "boxes=float32[batch,100,4];scores=float32[batch,100]", "object detector"),
        ("x=float32[batch,3,48,w]", "y=float32[batch,t,6625]", "image model with a sequence"),
        ("x=uint8[batch,h,w,3]", "y=float32[batch,h,w,21]", "image to image model"),
        ("input_ids=int64[batch,seq];attention_mask=int64[batch,seq]", "h=float32[batch,seq,384]", "text encoder"),
        ("input_ids=int64[batch,seq]", "logits=float32[batch,2]", "text classifier"),
        ("input_ids=int64[batch,seq]", "sentence_embedding=float32[batch,384]", "text encoder"),
        ("input_ids=int64[batch,seq]", "logits=float32[batch,seq,32000]", "language model"),
        (
            "input_ids=int64[batch,seq];past_key_values.0.key=float32[batch,8,past,64]",
            "logits=float32[batch,seq,32000]",
            "language model (decoder)",
        ),
        ("input_ids=int64[batch,seq];decoder_input_ids=int64[batch,t]", "", "sequence to sequence model"),
        ("input_features=float32[batch,80,3000];decoder_input_ids=int64[batch,t]", "", "speech to text model"),
        ("mels=float32[batch,160,40]", "y=float32[batch,256]", "speech or audio model"),
        ("x=float32[batch,30]", "y=float32[batch,2]", "tabular model"),
    ],
)
def test_by_inputs_and_outputs(inputs: str, outputs: str, what: str) -> None:
    found, why = guess(signature(inputs, outputs), {"MatMul": 3})
    assert found.startswith(what)
    assert inputs.split("=", maxsplit=1)[0].split(".", maxsplit=1)[0] in why or "input" in why


@pytest.mark.parametrize(
    ("operators", "what"),
    [
        ({"ai.onnx.ml.TreeEnsembleClassifier": 1}, "tabular model"),
        ({"STFT": 1, "Conv": 9}, "speech or audio model"),
        ({"LSTM": 2}, "sequence model (recurrent)"),
        ({"Conv": 2}, "unknown"),
    ],
)
def test_by_operators(operators: dict[str, int], what: str) -> None:
    assert guess(signature("x=float32[batch,time,40]"), operators)[0] == what


def test_a_config_json_decides() -> None:
    what, why = guess(signature("input_ids=int64[batch,seq]"), {}, "BertForTokenClassification")
    assert (what, why) == ("token classifier", "config.json names BertForTokenClassification")


def test_unknown_says_what_is_missing() -> None:
    assert guess(Signature(), {}) == ("unknown", "the file does not say what its inputs are (add --signature)")
