"""The user's own training function: what it is given, what it may do, and how its failures read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from optkit.cli.door import print_error
from optkit.errors import PassError
from optkit.passes._train.tune import fine_tune
from optkit.pipeline.context import StepContext
from tests.passes._train.jobs import SAMPLES, context, module_of
from tests.passes._train.test_loop import same, shaken, weights

PLAIN = """
import torch

def fit(model, loader, steps, callback):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    step = 0
    while True:
        for batch in loader:
            loss = torch.nn.functional.cross_entropy(model(**batch.inputs)["logits"], batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if not callback(step, loss):
                return
"""


def own(folder: Path, text: str, **training: Any) -> StepContext:
    """A step that trains with this code."""
    (folder / "mine.py").write_text(text)
    return context(folder, function=f"{folder / 'mine.py'}:fit", **training)


def test_it_trains_the_model_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    ctx = own(tmp_path, PLAIN)
    module = shaken(ctx)
    trained = fine_tune(module, ctx, stage="a")
    assert trained.steps == 24
    assert trained.after > trained.before
    assert not module.training


def test_its_random_numbers_are_those_of_the_seed(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ctx = own(tmp_path / name, PLAIN)
        torch.rand(5)
        fine_tune(module := shaken(ctx), ctx, stage="a")
        found.append(weights(module))
    assert same(*found)


def test_it_is_given_batches_steps_and_the_live_model(tmp_path: Path) -> None:
    text = """
seen = {}

def fit(model, loader, steps, callback):
    first, again = [[batch.labels.tolist() for batch in loader] for _ in range(2)]
    batch = next(iter(loader))
    seen.update(training=model.training, steps=steps, batches=len(loader), first=first, again=again)
    seen.update(shape=tuple(batch.inputs["image"].shape), target=tuple(batch.targets["logits"].shape))
    return model
"""
    ctx = own(tmp_path, text, steps=40, batch=10)
    trained = fine_tune(module_of(ctx), ctx, stage="a", share=0.25, teacher=module_of(ctx))
    assert trained.steps == 0
    seen = sys.modules["optkit_user_mine"].seen
    assert (seen["training"], seen["steps"], seen["batches"]) == (True, 10, ctx.batches("train").count // 10)
    assert (seen["shape"], seen["target"]) == ((10, 1, 8, 8), (10, 10))
    assert seen["first"] != seen["again"]
    flat = [sorted(label for batch in seen[name] for label in batch) for name in ("first", "again")]
    assert len(flat[0]) == len(flat[1]) == ctx.batches("train").count // 10 * 10


def test_what_it_changed_for_the_worse_is_undone(tmp_path: Path) -> None:
    text = """
import torch

def fit(model, loader, steps, callback):
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(-1)
"""
    ctx = own(tmp_path, text)
    module = module_of(ctx)
    start = weights(module)
    trained = fine_tune(module, ctx, stage="a")
    assert trained.after == trained.before
    assert same(weights(module), start)


def test_its_failure_reads_as_its_own_frames_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
def deeper(model, batch):
    return model(batch.inputs["image"][:, :, :7])

def fit(model, loader, steps, callback):
    for batch in loader:
        callback(1, 0.5)
        deeper(model, batch)
"""
    ctx = own(tmp_path, text)
    with pytest.raises(PassError, match="failed:") as caught:
        fine_tune(module_of(ctx), ctx, stage="a")
    print_error(caught.value)
    lines = capsys.readouterr().err.splitlines()
    file = tmp_path / "mine.py"
    assert lines[0] == f"error: The training function {file}:fit failed:"
    frames = [line.strip() for line in lines if line.startswith("  File ")]
    source = (SAMPLES / "models.py").read_text().splitlines()
    line = 1 + next(at for at, text in enumerate(source) if "self.layers(image)" in text)
    forward = f'File "{SAMPLES / "models.py"}", line {line}, in forward'
    assert frames == [f'File "{file}", line 8, in fit', f'File "{file}", line 3, in deeper', forward]
    assert any(line.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied") for line in lines)
    assert lines[-1] == "Fix: mend the function"


def test_what_else_it_gives_back_is_refused(tmp_path: Path) -> None:
    ctx = own(tmp_path, "def fit(model, loader, steps, callback):\n    return 3\n")
    with pytest.raises(PassError, match="gave back a int"):
        fine_tune(module_of(ctx), ctx, stage="a")


def test_a_loss_that_is_no_number_ends_it_too(tmp_path: Path) -> None:
    ctx = own(tmp_path, "def fit(model, loader, steps, callback):\n    callback(1, float('nan'))\n")
    with pytest.raises(PassError, match="the loss is nan at step 1 of 24") as caught:
        fine_tune(module_of(ctx), ctx, stage="a")
    assert "learning_rate" not in caught.value.fix  # no weight has moved yet
    assert "samples of train" in caught.value.fix


def test_a_function_that_is_not_there_is_named(tmp_path: Path) -> None:
    ctx = own(tmp_path, "def fitt(): ...\n")
    with pytest.raises(PassError, match="no function 'fit'; did you mean 'fitt'"):
        fine_tune(module_of(ctx), ctx, stage="a")


def test_an_interrupted_one_goes_on_from_the_last_look_with_the_steps_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = own(tmp_path, PLAIN)
    told: list[int] = []

    def progress(_self: StepContext, done: int, _total: int) -> None:
        told.append(done)
        if len(told) == 15:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepContext, "progress", progress)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(shaken(ctx), ctx, stage="a")
    assert fine_tune(shaken(ctx), ctx, stage="a").steps == 24
    assert told[15:] == list(range(13, 25))


def test_threads_and_grad_mode_are_afterwards_what_they_were(tmp_path: Path) -> None:
    ctx = own(tmp_path, "import torch\ntorch.set_num_threads(2)\n" + PLAIN)
    with torch.no_grad():
        trained = fine_tune(shaken(ctx), ctx, stage="a", share=0.2)
        assert not torch.is_grad_enabled()
    assert trained.steps == 5
    assert torch.get_num_threads() == 1


def test_a_loop_that_stops_before_its_steps_are_done_counts_as_it_is(tmp_path: Path) -> None:
    ctx = own(tmp_path, PLAIN.replace("if not callback(step, loss)", "if not callback(step, loss) or step == 7"))
    trained = fine_tune(shaken(ctx), ctx, stage="a")
    assert (trained.steps, trained.notes) == (7, ())
    assert trained.after > trained.before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("torch.nn.utils.parametrizations.weight_norm(model.layers[1])", r"layers.1.weight was float32 \[192, 64\]"),
        ("model.half()", r"layers.1.weight was .* and is float16"),
        ("model.more = torch.nn.Linear(2, 2)", "more.weight was not there"),
    ],
)
@pytest.mark.parametrize("tells", ["callback(1, 0.5)", "pass"])
def test_more_than_weights_must_not_change(change: str, told: str, tells: str, tmp_path: Path) -> None:
    text = f"import torch\n\ndef fit(model, loader, steps, callback):\n    {change}\n    {tells}\n"
    ctx = own(tmp_path, text)
    with pytest.raises(PassError, match=f"changed more than weights: {told}"):
        fine_tune(module_of(ctx), ctx, stage="a")


def test_stop_stays_stop(tmp_path: Path) -> None:
    text = """
said = []

def fit(model, loader, steps, callback):
    said.extend(callback(step, 0.5) for step in range(1, 13))
"""
    ctx = own(tmp_path, text, steps=24, looks=12, patience=2)
    fine_tune(module_of(ctx), ctx, stage="a")
    assert sys.modules["optkit_user_mine"].said == [True] * 3 + [False] * 9
