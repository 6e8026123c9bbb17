"""``optkit.optimize`` on every form a user may have: the same network, held against the original's own engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

import optkit
from optkit.data.dataset import Arrays
from optkit.model.manifest import Manifest
from sample_models.models import digits_mlp
from tests.command import ROOT, SAMPLES, call
from tests.helpers import normal, onnx_model, relative_error, run_onnx

FACTORY = f"{SAMPLES / 'models.py'}:digits_mlp"
EVALUATION = SAMPLES / "data" / "digits_evaluation.npz"
SIGNATURE = "image=float32[batch,1,8,8]"
INT8_ERROR = 0.01
"""Root mean square over the output's standard deviation; measured: .003."""
EXACT_ERROR = 1e-5
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "the",
    "film",
    "plot",
    "is",
    "was",
    "very",
    "good",
    "bad",
    "dull",
    "fine",
]


@dataclass(frozen=True)
class Case:
    """A model file and what has to be said about it."""

    path: Path
    kind: str
    more: dict[str, Any] = field(default_factory=dict)


def trained() -> torch.nn.Module:
    module = digits_mlp()
    module.load_state_dict(load_file(SAMPLES / "digits_mlp.safetensors"))
    return module.eval()


def as_onnx(folder: Path) -> Case:
    return Case(SAMPLES / "digits_mlp.onnx", "onnx")


def as_onnx_with_external_data(folder: Path) -> Case:
    model = onnx.load(SAMPLES / "digits_mlp.onnx")
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=256)
    assert (folder / "weights.bin").stat().st_size > 100_000 > path.stat().st_size
    return Case(path, "onnx", {"data": {"evaluation": EVALUATION}})


def as_pt2(folder: Path) -> Case:
    return Case(SAMPLES / "digits_mlp.pt", "pt2")


def as_torchscript(folder: Path) -> Case:
    return Case(SAMPLES / "digits_mlp.ts.pt", "torchscript", {"signature": SIGNATURE})


def as_safetensors(folder: Path) -> Case:
    return Case(SAMPLES / "digits_mlp.safetensors", "weights", {"factory": FACTORY})


def as_state_dict(folder: Path) -> Case:
    torch.save(trained().state_dict(), folder / "model.pth")
    return Case(folder / "model.pth", "weights", {"factory": FACTORY, "data": [str(EVALUATION)]})


def as_nested_checkpoint(folder: Path) -> Case:
    checkpoint = {"epoch": 3, "lr": 1e-3, "model_state": trained().state_dict()}
    torch.save(checkpoint, folder / "checkpoint.pt")
    return Case(folder / "checkpoint.pt", "weights", {"factory": FACTORY, "signature": SIGNATURE})


def as_pickled_module(folder: Path) -> Case:
    torch.save(trained(), folder / "module.pt")
    return Case(folder / "module.pt", "pickle", {"trust_pickle": True, "data": {"evaluation": str(EVALUATION)}})


FORMS = (
    as_onnx,
    as_onnx_with_external_data,
    as_pt2,
    as_torchscript,
    as_safetensors,
    as_state_dict,
    as_nested_checkpoint,
    as_pickled_module,
)


def optimized(case: Case, recipe: str, out: Path) -> Manifest:
    return optkit.optimize(case.path, recipe, out, bench=False, **case.more)


def digits() -> Arrays:
    with np.load(EVALUATION) as data:
        return {"image": data["image"][:64]}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.removeprefix("as_"))
def test_every_form_of_one_network_gives_the_same_two_models(form: Callable[[Path], Case], tmp_path: Path) -> None:
    case = form(tmp_path)
    with torch.inference_mode():
        wanted = trained()(torch.from_numpy(digits()["image"]))["logits"].numpy()
    for recipe, allowed in (("fp32", EXACT_ERROR), ("int8", INT8_ERROR)):
        manifest = optimized(case, recipe, tmp_path / recipe)
        bundle = optkit.Model.open(tmp_path / recipe)
        outputs = run_onnx(bundle, digits())
        assert manifest.verdict.held, recipe
        assert (manifest.original.kind, manifest.result.form) == (case.kind, "onnx")
        assert relative_error(outputs["logits"], wanted) < allowed
        assert list(outputs) == ["logits"]
        assert bundle.signature.inputs[0].shape == ("batch", 1, 8, 8)
        assert run_onnx(bundle, {"image": digits()["image"][:3]})["logits"].shape == (3, 10)
    (quantized,) = (step for step in manifest.steps if step.name == "quantize-dynamic")
    assert quantized.changes[-1].where
    assert bundle.size_bytes < 0.45 * optkit.Model.open(tmp_path / "fp32").size_bytes


def test_the_same_weights_in_other_files_are_the_same_result(tmp_path: Path) -> None:
    digests = set()
    for form in (as_safetensors, as_nested_checkpoint):
        manifest = optimized(form(tmp_path), "fp32", tmp_path / form.__name__)
        digests.add(manifest.result.digest)
    assert len(digests) == 1


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random two-layer BERT and a tokenizer of whole words; 48 texts beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    BertModel(config).eval().save_pretrained(folder)
    lines = [" ".join(np.random.default_rng(row).choice(WORDS[4:], 3 + row % 9)) for row in range(48)]
    (folder.parent / "reviews.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(("recipe", "allowed"), [("fp32", 1e-4), ("int8", 0.1)])
def test_a_hugging_face_folder_with_its_tokenizer(tiny_bert: Path, tmp_path: Path, recipe: str, allowed: float) -> None:
    from transformers import AutoModel

    case = Case(tiny_bert, "huggingface", {"data": {"evaluation": str(tiny_bert.parent / "reviews.txt")}})
    manifest = optimized(case, recipe, tmp_path / "out")
    bundle = optkit.Model.open(tmp_path / "out")
    ids = np.array([[2, 5, 6, 9, 11, 12, 3, 0, 0], [2, 4, 6, 10, 14, 13, 4, 8, 3]], np.int64)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}
    given = {spec.name: inputs.get(spec.name, np.zeros_like(ids)) for spec in bundle.signature.inputs}
    reference = AutoModel.from_pretrained(tiny_bert).eval()
    with torch.inference_mode():
        wanted = reference(**{name: torch.from_numpy(array) for name, array in given.items()}).last_hidden_state.numpy()
    assert manifest.verdict.held
    assert manifest.verdict.measured_on.samples == 34 and not manifest.verdict.measured_on.synthetic
    assert relative_error(run_onnx(bundle, given)["last_hidden_state"], wanted) < allowed
    assert (bundle.assets.folder or tmp_path).joinpath(bundle.assets.preprocess["input_ids"]["tokenizer"]).exists()


@pytest.mark.parametrize("function", [optkit.optimize, optkit.compare])
def test_a_misspelt_option_is_not_ignored(function: Callable[..., object]) -> None:
    model = SAMPLES / "digits_mlp.onnx"
    with pytest.raises(optkit.OptkitError, match="There is no option 'limit'") as caught:
        function(model, "int8" if function is optkit.optimize else model, limit=["cosine=0.5"])
    assert (caught.value.exit_code, caught.value.fix) == (2, "did you mean 'limits'?")


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_model_that_made_up_inputs_do_not_fit_says_so(words: tuple[str, ...], tmp_path: Path) -> None:
    onnx.save(
        onnx_model("mlp (float[batch,wide] x) => (float[batch,4] y) { y = MatMul(x, w) }", {"w": normal(24, 4)}),
        tmp_path / "model.onnx",
    )
    answer = call("optimize", tmp_path / "model.onnx", "-o", tmp_path / "out", "--no-bench", *words)
    assert answer.code == 3
    assert "The original does not run on inputs made up from its signature (x [8, 8])" in answer.err
    better = call(
        "optimize", tmp_path / "model.onnx", "-o", tmp_path / "out", "--no-bench", "--set", "target.shapes={wide: 24}"
    )
    assert better.code == 0, better.err


SCRIPT = """\
import pathlib

import optkit


class Nothing(optkit.Pass):
    'Change nothing.'

    forms = {"torch": "torch"}
    kind = "exact"

    def __call__(self, model, ctx):
        return optkit.Outcome(model, 0, notes=["nothing to do"])


def main(passes):
    steps = [*passes, *(step.options for step in optkit.Recipe.load("fp32").passes[:1])]
    done = optkit.optimize(%r, steps, "out", signature=%r, bench=False)
    print(done.verdict.held)


with pathlib.Path("runs.txt").open("a") as file:
    file.write("run ")
"""


def run_script(folder: Path, last: str) -> tuple[int, str, str, int]:
    """Exit code, stdout, stderr, and how often the script ran."""
    (folder / "script.py").write_text(SCRIPT % (str(SAMPLES / "digits_mlp.ts.pt"), SIGNATURE) + last)
    env = {"PYTHONPATH": str(ROOT), "OPTKIT_CACHE": str(folder / "cache")}
    command = [sys.executable, "script.py"]
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    return run.returncode, run.stdout, run.stderr, (folder / "runs.txt").read_text().count("run")


def test_a_plain_script_is_not_run_again_by_its_worker_processes(tmp_path: Path) -> None:
    """TorchScript is handled in child processes, which need not import the script that began the job."""
    model = str(SAMPLES / "digits_mlp.ts.pt")
    last = f"print(optkit.compare({model!r}, {model!r}, signature={SIGNATURE!r}).held)\n"
    code, out, err, times = run_script(tmp_path, last)
    assert (code, out, times) == (0, "True\n", 1), err


def test_a_script_with_a_pass_of_its_own_is_imported_by_them(tmp_path: Path) -> None:
    code, out, err, times = run_script(tmp_path, "if __name__ == '__main__':\n    main([Nothing()])\n")
    assert (code, out) == (0, "True\n"), err
    assert times > 1


def test_such_a_script_without_a_guard_says_so_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    code, out, err, _ = run_script(tmp_path, "main([Nothing()])\n")
    assert (code, out) == (1, "")
    assert "The script starts a job wherever it is imported" in err
    assert err.rstrip().endswith("Fix: indent the calls below: if __name__ == '__main__':")
