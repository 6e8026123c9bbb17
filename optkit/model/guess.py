"""What a model most likely is, guessed from its inputs, outputs and operators; with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping

from optkit.model.signature import Signature, TensorSpec

_HEADS = (
    ("ForCausalLM", "language model (decoder)"),
    ("LMHeadModel", "language model (decoder)"),
    ("ForMaskedLM", "masked language model"),
    ("ForSequenceClassification", "text classifier"),
    ("ForTokenClassification", "token classifier"),
    ("ForQuestionAnswering", "question answering model"),
    ("ForImageClassification", "image classifier"),
    ("ForObjectDetection", "object detector"),
    ("ForSemanticSegmentation", "image segmenter"),
    ("ForSpeechSeq2Seq", "speech to text model"),
    ("ForCTC", "speech recogniser"),
    ("ForAudioClassification", "audio classifier"),
    ("ForConditionalGeneration", "sequence to sequence model"),
)
"""End of a transformers class -> what such a model is."""

_IDS = re.compile(r"input_ids|token|(^|_)ids?$", re.IGNORECASE)
_MASK = re.compile(r"mask|type_id|position", re.IGNORECASE)
_CACHE = re.compile(r"past|cache|present|key_values", re.IGNORECASE)
_AUDIO = re.compile(r"audio|wave|speech|mels?$|(^|_)sr$|sample_rate|input_values|input_features", re.IGNORECASE)
_BOXES = re.compile(r"box|bbox|detection", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|pool|feature|hidden", re.IGNORECASE)
_TABULAR_OPS = ("TreeEnsemble", "LinearClassifier", "LinearRegressor", "SVM", "Scaler", "OneHotEncoder")
_VOCABULARY = 1000
"""More classes than this per token are words."""

Guess = tuple[str, str]
"""(what it is, why)."""


def guess(signature: Signature, operators: Mapping[str, int], architecture: str = "") -> Guess:
    """What the model most likely is; ``unknown`` with what is missing where nothing fits.

    Args:
        signature: as far as it is known.
        operators: operator -> nodes.
        architecture: class name from a config.json, or empty.
    """
    for ending, what in _HEADS:
        if architecture.endswith(ending):
            return what, f"config.json names {architecture}"
    tabular = [name for name in operators if name.split(".")[-1].startswith(_TABULAR_OPS)]
    if tabular:
        return "tabular model", f"it has {tabular[0]} operators"
    found = _by_audio(signature, operators) or _by_text(signature) or _by_image(signature, operators)
    found = found or _by_other(signature, operators)
    if found is not None:
        return found
    if not signature.inputs:
        return "unknown", "the file does not say what its inputs are (add --signature)"
    return "unknown", "its inputs fit no usual kind of model"


def _ints(signature: Signature) -> list[TensorSpec]:
    """Token ids: whole numbers [batch, seq] that are neither mask nor positions."""
    wide = [spec for spec in signature.inputs if spec.dtype in ("int32", "int64") and len(spec.shape or ()) == 2]
    return [spec for spec in wide if not _MASK.search(spec.name) and not _CACHE.search(spec.name)]


def _by_audio(signature: Signature, operators: Mapping[str, int]) -> Guess | None:
    named = [spec.name for spec in signature.inputs if _AUDIO.search(spec.name)]
    if named:
        decoder = any("decoder" in spec.name for spec in signature.inputs)
        return ("speech to text model" if decoder else "speech or audio model"), f"it has an input '{named[0]}'"
    if "STFT" in operators:
        return "speech or audio model", "it computes a spectrum (STFT)"
    return None


def _by_text(signature: Signature) -> Guess | None:
    ids = _ints(signature)
    named = [spec for spec in ids if _IDS.search(spec.name)]
    if not ids or (not named and len(signature.inputs) > len(ids)):
        return None
    first = (named or ids)[0]
    why = f"token ids {first}"
    if any("decoder" in spec.name for spec in signature.inputs):
        return "sequence to sequence model", f"{why}, and inputs of a decoder"
    caches = [spec.name for spec in (*signature.inputs, *signature.outputs) if _CACHE.search(spec.name)]
    if caches:
        return "language model (decoder)", f"{why}, and a cache '{caches[0]}'"
    return _text_head(signature.outputs, why)


def _text_head(outputs: tuple[TensorSpec, ...], why: str) -> Guess:
    if not outputs:
        return "text model", why
    output = outputs[0]
    shape = output.shape or ()
    last = shape[-1] if shape else None
    why = f"{why} -> {output}"
    if len(shape) == 3 and isinstance(last, int) and last > _VOCABULARY and not _EMBEDDING.search(output.name):
        return "language model", f"{why}: scores for a vocabulary at every token"
    if len(shape) == 2 and isinstance(last, int) and not _EMBEDDING.search(output.name) and last <= _VOCABULARY:
        return "text classifier", f"{why}: {last} scores for a text"
    return "text encoder", why


def _by_image(signature: Signature, operators: Mapping[str, int]) -> Guess | None:
    images = [spec for spec in signature.inputs if _is_image(spec)]
    if not images:
        return None
    why = f"an image {images[0]}"
    boxes = [spec.name for spec in signature.outputs if _BOXES.search(spec.name)]
    if "NonMaxSuppression" in operators or boxes:
        return "object detector", f"{why}, and " + (f"an output '{boxes[0]}'" if boxes else "NonMaxSuppression")
    if not signature.outputs:
        return "image model", why
    output = signature.outputs[0]
    shape = output.shape or ()
    why = f"{why} -> {output}"
    if len(shape) == 2:
        named = _EMBEDDING.search(output.name)
        return ("image encoder" if named else "image classifier"), f"{why}: one vector an image"
    if len(shape) == 3:
        return "image model with a sequence of results (detector, recogniser or encoder)", why
    return ("image to image model (segmenter, detector map)", why) if len(shape) == 4 else ("image model", why)


def _is_image(spec: TensorSpec) -> bool:
    shape = spec.shape or ()
    if len(shape) != 4 or not (spec.dtype.startswith("float") or spec.dtype == "uint8"):
        return False
    return shape[1] in (1, 3, 4) or shape[3] in (1, 3, 4) or bool(re.search("image|pixel|img", spec.name))


def _by_other(signature: Signature, operators: Mapping[str, int]) -> Guess | None:
    words = " ".join(operators).lower()
    floats = [spec for spec in signature.inputs if spec.dtype.startswith("float")]
    if re.search(r"\b(lstm|gru|rnn)\b", words):
        return "sequence model (recurrent)", "it has LSTM, GRU or RNN operators"
    if len(floats) == len(signature.inputs) == 1 and len(floats[0].shape or ()) == 2 and "conv" not in words:
        return (
            "tabular model, or a head on features",
            f"one row of numbers {floats[0]} a sample, no convolutions",
        )
    if not signature.inputs and "conv" in words:
        return "convolutional network", "it has convolutions; the file does not say what its inputs are"
    return None
