"""Hugging Face folders (config.json + safetensors): how to build the module, and what its inputs are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import ModelError, PackageError
from optkit.model.model import Model
from optkit.model.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from torch import nn

_BUILT_IN = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
"""Implementations that are no packages and no repositories of a hub."""


def load_pretrained(folder: Path) -> nn.Module:
    """Build the module that config.json names, from local files, in float32 and without generation caches.

    The class is the one in ``architectures``; where there is none, transformers' AutoModel for the ``model_type``.
    Code inside the folder is never run; weights in ``.bin`` files are read with ``weights_only``.

    Raises:
        ModelError: no such class, or weights are missing (transformers would fill them with random numbers).
        PackageError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise PackageError("transformers is not installed.", fix="pip install 'optkit[hf]'") from error
    import torch

    kind = _class(transformers, _read(folder / "config.json"), folder)
    with _quiet(transformers.utils.logging):
        module, info = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    _refuse_random(folder, kind.__name__, info)
    return _without_caches(module)


def build_random(config: dict[str, Any], file: Path) -> nn.Module:
    """The module of a configuration (the content of a config.json), in float32, with random weights.

    Raises:
        ModelError: no such class.
        PackageError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise PackageError("transformers is not installed.", fix="pip install 'optkit[hf]'") from error
    import torch

    kind = _class(transformers, config, file)
    made = transformers.AutoConfig.for_model(**config)
    build = kind.from_config if kind is transformers.AutoModel else kind._from_config
    with _quiet(transformers.utils.logging):
        return _without_caches(build(made, dtype=torch.float32))


def _without_caches(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if getattr(getattr(part, "config", None), "use_cache", None):
            part.config.use_cache = False
    made: nn.Module = module.eval()
    return made


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No progress bars and no tables of loaded weights; missing weights are an error here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _class(transformers: Any, config: dict[str, Any], file: Path) -> Any:
    if foreign := [each for each in _implementations(config) if each not in _BUILT_IN]:
        raise ModelError(
            f"The configuration asks for '{foreign[0]}', which transformers may download and run.",
            expected="code that transformers itself ships: " + ", ".join(_BUILT_IN),
            fix="delete attn_implementation and the like from config.json",
            file=file,
        )
    names = config.get("architectures") or []
    if not names:
        return transformers.AutoModel
    found = getattr(transformers, str(names[0]), None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise ModelError(
            f"transformers {transformers.__version__} has no model class {names[0]}.",
            expected="an architecture that transformers itself ships; code in the folder is not run",
            fix="install the transformers version that has it, or save the weights and use --factory",
            file=file,
        )
    return found


def _implementations(config: Any, *, named: bool = False) -> Iterator[str]:
    """What a configuration says under ``attn_implementation``, ``_experts_implementation`` and the like, anywhere."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _implementations(value, named=named or key.endswith("_implementation"))
    elif isinstance(config, list):
        for value in config:
            yield from _implementations(value, named=named)
    elif named and isinstance(config, str):
        yield config


def _refuse_random(folder: Path, name: str, info: dict[str, Any]) -> None:
    missing = sorted(map(str, info.get("missing_keys") or ()))
    missing += sorted(str(each[0]) for each in info.get("mismatched_keys") or ())
    if missing:
        raise ModelError(
            f"The folder lacks weights that {name} needs: {', '.join(missing[:8])}; they would be random.",
            expected="weights for every parameter",
            fix="set architectures in config.json to the class that the weights were saved from",
            file=folder,
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} is not readable: {error}.", file=path) from error
    return found if isinstance(found, dict) else {}


def default_signature(model: Model) -> Signature:
    """The inputs of a Hugging Face model, from config.json and the tokenizer's or image processor's settings only.

    Text: input_ids, attention_mask (and token_type_ids where the tokenizer makes them), int64 [batch, seq]; sequence to
    sequence models also decoder_input_ids, int64 [batch, decoder_seq]. Images: pixel_values, float32
    [batch, channels, height, width]. Audio: input_values, float32 [batch, samples]. Empty where none of these fits.
    """
    config = _read(model.path / "config.json")
    text, vision = config.get("text_config") is not None, config.get("vision_config") is not None
    specs: list[TensorSpec] = []
    if "vocab_size" in config or text:
        specs += _text(model.path, config)
    if {"image_size", "num_channels"} & config.keys() or vision or (model.path / "preprocessor_config.json").is_file():
        specs += _image(model.path, config)
    if not specs or "feat_extract_norm" in config:
        specs = _audio(config)
    return Signature(inputs=tuple(specs))


def _text(folder: Path, config: dict[str, Any]) -> list[TensorSpec]:
    names = ["input_ids", "attention_mask"]
    tokenizer = _read(folder / "tokenizer_config.json")
    made = tokenizer.get("model_input_names")
    if isinstance(made, list) and made:
        names = [name for name in names if name in made] or ["input_ids"]
        names += ["token_type_ids"] if "token_type_ids" in made else []
    specs = [TensorSpec(name, "int64", ("batch", "seq")) for name in names]
    if config.get("is_encoder_decoder"):
        specs.append(TensorSpec("decoder_input_ids", "int64", ("batch", "decoder_seq")))
    return specs


def _image(folder: Path, config: dict[str, Any]) -> list[TensorSpec]:
    vision = config.get("vision_config") or config
    processor = _read(folder / "preprocessor_config.json")
    size = vision.get("image_size") or processor.get("crop_size") or processor.get("size") or 224
    height, width = _sides(size)
    return [TensorSpec("pixel_values", "float32", ("batch", int(vision.get("num_channels") or 3), height, width))]


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        edge = size.get("shortest_edge") or 224
        return int(size.get("height") or edge), int(size.get("width") or edge)
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return int(size), int(size)


def _audio(config: dict[str, Any]) -> list[TensorSpec]:
    return [TensorSpec("input_values", "float32", ("batch", "samples"))] if "feat_extract_norm" in config else []


def sentence_pooling(folder: Path) -> str | None:
    """``mean`` or ``cls`` where the folder is a sentence encoder that pools so (sentence-transformers), or None.

    Source: modules.json and N_Pooling/config.json, the format of sentence-transformers.
    """
    for file in sorted(folder.glob("*_Pooling/config.json")):
        config = _read(file)
        if config.get("pooling_mode_mean_tokens") or config.get("pooling_mode") == "mean":
            return "mean"
        if config.get("pooling_mode_cls_token") or config.get("pooling_mode") == "cls":
            return "cls"
    return None
