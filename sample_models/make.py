"""Rebuild every sample model and its data from a fixed seed: ``python sample_models/make.py [--out FOLDER]``.

Three small networks, trained here on real data, each written as a state_dict (.safetensors), a torch.export archive
(.pt), TorchScript (.ts.pt) and ONNX (.onnx). Takes about a minute on two cores; a second run gives the same weights.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import os
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import download
import models
import numpy as np
import torch
from numpy.typing import NDArray
from splits import SEED, Images, Reviews, digits_splits, read_reviews, reviews_splits, stored_train
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
Array = NDArray[Any]
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """A trained network, an example input, its dynamic dimensions and what it is judged on."""

    name: str
    module: nn.Module
    example: Inputs
    dynamic: dict[str, dict[int, Any]]
    batches: Sequence[tuple[Inputs, Array]]
    """Inputs and labels of the evaluation split."""


# --- data and tokenizer -------------------------------------------------------------------------------------------


def write_data(digits: Mapping[str, Images], reviews: Mapping[str, Reviews], folder: Path) -> None:
    """Digits as .npz, reviews as .csv with the columns text and label; of the reviews' train split only a part."""
    folder.mkdir(parents=True, exist_ok=True)
    reviews = {**reviews, "train": stored_train(reviews["train"])}
    for split in ("train", "calibration", "search", "evaluation"):
        images = digits[split]
        np.savez_compressed(folder / f"digits_{split}.npz", image=images.image, labels=images.labels)
        with (folder / f"reviews_{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["text", "label"])
            writer.writerows(zip(reviews[split].texts, reviews[split].labels, strict=True))


def train_tokenizer(texts: Sequence[str]) -> Any:
    """A lower-case byte-pair tokenizer without special tokens around a sentence, trained on ``texts``.

    Byte pairs, because the WordPiece trainer of ``tokenizers`` breaks ties differently in every run.
    """
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace()])
    special = ["[PAD]", "[UNK]"]
    trainer = trainers.BpeTrainer(vocab_size=models.VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_truncation(models.MAX_LENGTH)
    tokenizer.enable_padding(pad_id=models.PAD_ID, pad_token="[PAD]")
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[str]) -> Inputs:
    """input_ids and attention_mask, int64[n, longest]."""
    encodings = tokenizer.encode_batch(list(texts))
    return {
        "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
        "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
    }


# --- training -----------------------------------------------------------------------------------------------------


def fit(
    module: nn.Module,
    batches: Callable[[np.random.Generator], Iterator[tuple[Inputs, Tensor]]],
    *,
    epochs: int,
    steps: int,
    rate: float,
    decay: float,
) -> nn.Module:
    """Train on batches of inputs and target probabilities float32[n, classes], ``steps`` of them an epoch."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.1)
    generator = np.random.default_rng(SEED)
    module.train()
    for _ in range(epochs):
        for inputs, target in batches(generator):
            optimizer.zero_grad()
            functional.cross_entropy(module(**inputs)["logits"], target).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return module.eval()


def train_digits(factory: Callable[[], nn.Module], train: Images, *, epochs: int = 40, size: int = 32) -> nn.Module:
    """Train a digits network on shuffled batches; the last, smaller batch of an epoch is left out."""
    steps = len(train.labels) // size

    def batches(generator: np.random.Generator) -> Iterator[tuple[Inputs, Tensor]]:
        order = generator.permutation(len(train.labels))
        for chosen in order[: steps * size].reshape(steps, size):
            target = functional.one_hot(torch.from_numpy(train.labels[chosen]), models.DIGITS).float()
            yield {"image": torch.from_numpy(train.image[chosen])}, target

    torch.manual_seed(SEED)
    return fit(factory(), batches, epochs=epochs, steps=steps, rate=3e-3, decay=0.01)


def train_reviews(tokenizer: Any, train: Reviews, *, epochs: int = 8, size: int = 64) -> nn.Module:
    """Train on the strength of the ratings, with 15 % of the words hidden, in batches of similar lengths."""
    positive = torch.sigmoid(torch.from_numpy(1.5 * train.ratings)).float()
    lengths = np.array([sum(encoding.attention_mask) for encoding in tokenizer.encode_batch(list(train.texts))])
    steps = len(lengths) // size

    def batches(generator: np.random.Generator) -> Iterator[tuple[Inputs, Tensor]]:
        order = generator.permutation(len(lengths))[: steps * size]
        order = order[np.argsort(lengths[order] + generator.uniform(-3, 3, len(order)), kind="stable")]
        for row in generator.permutation(steps):
            chosen = order[row * size : (row + 1) * size]
            inputs = encode(tokenizer, [train.texts[i] for i in chosen])
            hidden = (torch.rand(inputs["input_ids"].shape) < 0.15) & (inputs["attention_mask"] == 1)
            inputs["input_ids"][hidden] = models.UNKNOWN_ID
            yield inputs, torch.stack([1 - positive[chosen], positive[chosen]], dim=1)

    torch.manual_seed(SEED)
    return fit(models.reviews_transformer(), batches, epochs=epochs, steps=steps, rate=4e-3, decay=0.1)


# --- the four forms -----------------------------------------------------------------------------------------------


def save_forms(sample: Sample, folder: Path) -> None:
    """Write NAME.safetensors, NAME.pt (torch.export), NAME.ts.pt (TorchScript) and NAME.onnx."""
    from safetensors.torch import save_file

    save_file(sample.module.state_dict(), folder / f"{sample.name}.safetensors")
    save_exported(sample, folder / f"{sample.name}.pt")
    save_torchscript(sample.module, folder / f"{sample.name}.ts.pt")
    save_onnx(sample, folder / f"{sample.name}.onnx")


def save_exported(sample: Sample, path: Path) -> None:
    """A torch.export archive without this machine's paths (stack traces) in it."""
    program = torch.export.export(sample.module, (), sample.example, dynamic_shapes=sample.dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    with path.open("wb") as file:
        torch.export.save(program, file)


def save_torchscript(module: nn.Module, path: Path) -> None:
    """A scripted module without the debug members, which hold this machine's paths."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    with zipfile.ZipFile(buffer) as full, zipfile.ZipFile(path, "w") as slim:
        for member in full.infolist():
            if not member.filename.endswith(".debug_pkl"):
                slim.writestr(zipfile.ZipInfo(f"{path.stem}/{member.filename.split('/', 1)[1]}"), full.read(member))


def save_onnx(sample: Sample, path: Path) -> None:
    """One ONNX file without the exporter's metadata."""
    import onnx

    program = torch.onnx.export(
        sample.module,
        kwargs=sample.example,
        dynamo=True,
        verbose=False,
        input_names=list(sample.example),
        output_names=["logits"],
        dynamic_shapes=sample.dynamic,
    )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave no program for {sample.name}")
    proto = program.model_proto
    for value in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
    for node in proto.graph.node:
        node.ClearField("doc_string")
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


# --- judging ------------------------------------------------------------------------------------------------------


def openers(sample: Sample, folder: Path) -> dict[str, Callable[[Inputs], Array]]:
    """File name -> a function from inputs to logits float32[n, classes], for the four files of a sample."""
    import onnxruntime
    from safetensors.torch import load_file

    names = [f"{sample.name}{ending}" for ending in (".safetensors", ".pt", ".ts.pt", ".onnx")]
    plain = getattr(models, sample.name)().eval()
    plain.load_state_dict(load_file(folder / names[0]))
    with (folder / names[1]).open("rb") as file:
        exported = torch.export.load(file).module()
    scripted = torch.jit.load(folder / names[2])
    session = onnxruntime.InferenceSession(folder / names[3], providers=["CPUExecutionProvider"])

    def run_torch(module: Callable[..., dict[str, Tensor]]) -> Callable[[Inputs], Array]:
        return lambda inputs: module(**inputs)["logits"].detach().numpy()

    def run_onnx(inputs: Inputs) -> Array:
        return np.asarray(session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0])

    return dict(zip(names, [*map(run_torch, (plain, exported, scripted)), run_onnx], strict=True))


def accuracy(run: Callable[[Inputs], Array], batches: Sequence[tuple[Inputs, Array]]) -> float:
    """Share of samples whose largest logit is the label's."""
    hits = [run(inputs).argmax(axis=1) == labels for inputs, labels in batches]
    return float(np.concatenate(hits).mean())


def print_table(samples: Sequence[Sample], folder: Path) -> None:
    """Name, bytes and accuracy on the evaluation split of every written file."""
    print(f"{'file':32}{'bytes':>10}{'accuracy':>10}")
    for sample in samples:
        for name, run in openers(sample, folder).items():
            print(f"{name:32}{(folder / name).stat().st_size:>10}{accuracy(run, sample.batches):>10.3f}")


# --- all of it ----------------------------------------------------------------------------------------------------


def chunks(inputs: Inputs, labels: Array, size: int = 50) -> list[tuple[Inputs, Array]]:
    """Batches of ``size`` samples in order."""
    starts = range(0, len(labels), size)
    return [({name: x[i : i + size] for name, x in inputs.items()}, labels[i : i + size]) for i in starts]


def make_digits(name: str, splits: Mapping[str, Images]) -> Sample:
    """Train one of the two digits networks."""
    image = torch.from_numpy(splits["evaluation"].image)
    module = train_digits(getattr(models, name), splits["train"])
    dynamic = {"image": {0: torch.export.Dim("batch", min=1)}}
    batches = chunks({"image": image}, splits["evaluation"].labels)
    return Sample(name, module, {"image": image[:2].clone()}, dynamic, batches)


def make_reviews(splits: Mapping[str, Reviews], folder: Path) -> Sample:
    """Train the tokenizer (saved in ``folder``) and the reviews transformer."""
    tokenizer = train_tokenizer(splits["train"].texts)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    evaluation = splits["evaluation"]
    inputs = encode(tokenizer, evaluation.texts)
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("seq", min=1, max=models.MAX_LENGTH)}
    example = {name: value[:2, :24].clone() for name, value in inputs.items()}
    module = train_reviews(tokenizer, splits["train"])
    dynamic = dict.fromkeys(inputs, axes)
    return Sample("reviews_transformer", module, example, dynamic, chunks(inputs, evaluation.labels))


def settle() -> None:
    """The same bytes in every run: one thread adds in one order, a fixed hash seed orders TorchScript's attributes."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def main() -> None:
    """Write models, tokenizer and data into ``--out``, then print what they reach."""
    parser = argparse.ArgumentParser(description="Rebuild the sample models and their data.")
    parser.add_argument("--out", type=Path, default=HERE, help="target folder; default: the folder of this file")
    out: Path = parser.parse_args().out.resolve()
    settle()
    out.mkdir(parents=True, exist_ok=True)
    digits, reviews = digits_splits(), reviews_splits(read_reviews(download.fetch(download.MOVIE_REVIEWS)))
    write_data(digits, reviews, out / "data")
    samples = [make_digits(name, digits) for name in ("digits_cnn", "digits_mlp")]
    samples.append(make_reviews(reviews, out / "reviews_tokenizer"))
    for sample in samples:
        save_forms(sample, out)
    for name in ("models.py", "data.yaml"):
        if out != HERE:
            shutil.copy(HERE / name, out / name)
    print_table(samples, out)


if __name__ == "__main__":
    main()
