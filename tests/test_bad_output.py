"""Where the result cannot go, and runs that are cut short: nothing half-written, the cache sound, the right code."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest

from tests.command import (
    Answer,
    assert_refused,
    assert_same_in_json,
    beside,
    call,
    finish,
    start,
    write_data,
    write_mlp,
    write_recipe,
)
from tests.helpers import normal, onnx_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("OPTKIT_CACHE", str(place))
    return place


def assert_tidy(cache: Path) -> None:
    """No work in progress is left; what is cached is whole."""
    assert not list((cache / "work").glob("*"))
    for file in (cache / "entries").glob("*/*/*"):
        assert file.parent.joinpath("entry.json").is_file()


# --- the output path ------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> tuple[object, ...]:
    """A command line without ``-o``."""
    model, recipe = write_mlp(tmp_path / "m.onnx"), write_recipe(tmp_path / "r.yaml")
    return ("optimize", model, "-r", recipe, "--data", write_data(tmp_path / "x.npz"), "--no-bench")


def refused(asked: tuple[object, ...], out: Path, *words: str, fix: str, more: tuple[object, ...] = ()) -> None:
    told = call(*asked, "-o", out, *more)
    assert_refused(told, 3, *words, fix=fix)
    assert_same_in_json(call(*asked, "-o", out, *more, "--json"), told, "output-error")


def test_an_output_that_exists(tmp_path: Path, asked: tuple[object, ...], cache: Path) -> None:
    for out, content in ((tmp_path / "out", "mine.txt"), (tmp_path / "out.onnx", None)):
        if content:
            out.mkdir()
            (out / content).write_text("mine")
        else:
            out.write_text("mine")
        refused(asked, out, f"{out} exists already", "nothing is yet", fix="--force")
        assert (out / content if content else out).read_text() == "mine"
    assert not cache.exists(), "refused before any work"
    words = ("is not a bundle", "or an empty folder")
    refused(asked, tmp_path / "out", *words, fix="another path", more=("--force",))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_force_replaces_a_bundle_by_one_rename(tmp_path: Path, asked: tuple[object, ...]) -> None:
    out = tmp_path / "out"
    assert call(*asked, "-o", out).code == 0
    (out / "mine.txt").write_text("mine")
    refused(asked, out, "no part of a bundle", "mine.txt", fix="move them elsewhere", more=("--force",))
    assert (out / "mine.txt").read_text() == "mine"
    (out / "mine.txt").unlink()
    first = out.stat().st_ino
    assert call(*asked, "-o", out, "--force").code == 0
    assert out.stat().st_ino != first, "another folder took its name"
    parts = ["manifest.json", "model.onnx", "open_model.py", "recipe.yaml", "report.md"]
    assert sorted(path.name for path in out.iterdir()) == parts
    assert beside(out) == ["out"]


def test_a_run_that_fails_leaves_the_old_bundle_under_force(tmp_path: Path, asked: tuple[object, ...]) -> None:
    out = tmp_path / "out"
    assert call(*asked, "-o", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    missed = call(*asked, "-o", out, "--force", "--limit", "size_mb=0.0001")
    assert missed.code == 5
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert beside(out) == ["out"]


def test_the_model_alone(tmp_path: Path, asked: tuple[object, ...]) -> None:
    out = tmp_path / "out.onnx"
    assert call(*asked, "-o", out).code == 0
    assert beside(out) == ["out.onnx"]
    onnx.checker.check_model(str(out))
    first = out.stat().st_ino
    assert call(*asked, "-o", out, "--force").code == 0
    assert out.stat().st_ino != first and beside(out) == ["out.onnx"]


def test_the_original_is_never_replaced(tmp_path: Path, asked: tuple[object, ...]) -> None:
    model, content = tmp_path / "m.onnx", (tmp_path / "m.onnx").read_bytes()
    refused(asked, model, "replace the model itself", fix="another path", more=("--force",))
    assert model.read_bytes() == content
    bundle = tmp_path / "bundle"
    assert call(*asked, "-o", bundle).code == 0
    again = ("optimize", bundle, *asked[2:])
    refused(again, bundle, "replace the model itself", fix="another path", more=("--force",))


def test_a_place_that_cannot_be_written(tmp_path: Path, asked: tuple[object, ...], cache: Path) -> None:
    refused(asked, tmp_path / "r.yaml" / "out", "r.yaml is not writable", fix="another")
    assert not cache.exists(), "refused before any work"
    refused(asked, Path("/proc/optkit/out"), "/proc/optkit/out", "may write to", fix="another path")
    assert_tidy(cache)


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, asked: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "r.yaml"))
    refused(asked, tmp_path / "out", "r.yaml cannot be written", fix="OPTKIT_CACHE")
    assert beside(tmp_path / "out") == []


@pytest.mark.parametrize("size", ["much", "inf", "nan"])
def test_a_cache_size_that_is_no_number(
    asked: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("OPTKIT_CACHE_SIZE", size)
    assert_refused(
        call(*asked, "-o", tmp_path / "out"), 2, f"OPTKIT_CACHE_SIZE={size}", "gigabytes", fix="set or unset"
    )


def test_a_report_that_cannot_be_written(tmp_path: Path, asked: tuple[object, ...]) -> None:
    answer = call(*asked, "-o", tmp_path / "out", "--junit", tmp_path / "r.yaml" / "junit.xml", "--json")
    assert answer.code == 3 and answer.err.count("error:") == 1
    assert "junit.xml cannot be written" in answer.err
    assert answer.body["error"]["kind"] == "output-error" and answer.body["result"]["verdict"]["held"] is True


# --- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB; needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small disk takes root's rights")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def large(tmp_path: Path) -> tuple[object, ...]:
    """The command line for a model whose int8 form takes 512 kB."""
    text = "g (float[batch,8] x) => (float[batch,8] y) { h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) }"
    weights = {"w0": normal(8, 2**15, scale=0.1), "w1": normal(2**15, 8, seed=1, scale=0.01)}
    onnx.save(onnx_model(text, weights), tmp_path / "large.onnx")
    recipe = write_recipe(tmp_path / "r.yaml")
    return ("optimize", tmp_path / "large.onnx", "-r", recipe, "--data", write_data(tmp_path / "x.npz"), "--no-bench")


@pytest.mark.parametrize("name", ["out", "out.onnx"])
def test_a_full_disk_at_the_output(
    tmp_path: Path, small_disk: Path, large: tuple[object, ...], cache: Path, name: str
) -> None:
    out = small_disk / name
    refused(large, out, f"{out} cannot be written: No space left on device", "free space", fix="free some space")
    assert list(small_disk.iterdir()) == []
    assert_tidy(cache)
    assert call(*large, "-o", tmp_path / "elsewhere").code == 0


def test_a_full_disk_under_force_keeps_the_old_bundle(
    tmp_path: Path, small_disk: Path, large: tuple[object, ...], asked: tuple[object, ...]
) -> None:
    out = small_disk / "out"
    assert call(*asked, "-o", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert_refused(call(*large, "-o", out, "--force"), 3, "No space left on device", fix="free some space")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert beside(out) == ["out"]


def test_a_full_disk_at_the_cache(
    tmp_path: Path, small_disk: Path, large: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTKIT_CACHE", str(small_disk / "cache"))
    place = small_disk / "cache"
    refused(large, tmp_path / "out", f"{place} cannot be written: No space left on device", fix="OPTKIT_CACHE")
    assert beside(tmp_path / "out") == []
    assert_tidy(place)
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "roomy"))
    assert call(*large, "-o", tmp_path / "out").code == 0


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "function",
    [
        "optkit.pipeline.publish.copy_file",
        "optkit.pipeline.publish.markdown",
        "optkit.pipeline.reference._save_outputs",
        "optkit.passes._ir.save_ir",
        "optkit.pipeline.cache.Cache.put",
        "optkit.pipeline.cache.tempfile.mkdtemp",
        "pathlib.Path.rename",
    ],
)
def test_a_disk_that_is_full_at_any_moment(
    tmp_path: Path, asked: tuple[object, ...], cache: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(function, no_space)
        refused(asked, tmp_path / "out", "cannot be written: No space left on device", fix="free some space")
    assert beside(tmp_path / "out") == []
    assert_tidy(cache)
    assert call(*asked, "-o", tmp_path / "out").code == 0


# --- cut short ------------------------------------------------------------------------------------------------------

SLEEPY = '''
import os, time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from optkit import Pass
from optkit.passes._base import Outcome

class Sleepy(Pass):
    """Sleeps, and swallows every exception it can."""

    forms: ClassVar = {"onnx": "onnx"}
    kind: ClassVar = "exact"

    def __call__(self, model, ctx):
        (ctx.workdir / "half.onnx").write_bytes(b"half a model")
        Path(os.environ["STARTED"]).touch()
        end = time.monotonic() + float(os.environ["SLEEP"])
        while time.monotonic() < end:
            try:
                time.sleep(0.02)
            except Exception:
                pass
        return Outcome(model, 0, notes=["slept well"])
'''


@pytest.fixture
def sleepy(tmp_path: Path) -> dict[str, str]:
    """The environment of a third-party package with the pass ``sleepy``, found by its entry point."""
    site = tmp_path / "site"
    info = site / "sleepy-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "sleepy_pass.py").write_text(SLEEPY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[optkit.passes]\nsleepy = sleepy_pass:Sleepy\n")
    return {"STARTED": str(tmp_path / "started"), "SLEEP": "30", "PYTHONPATH": f"{site}:{Path(__file__).parents[1]}"}


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


def cut_short(asked: tuple[object, ...], env: dict[str, str], number: signal.Signals, *more: object) -> Answer:
    """Run until the pass sleeps, then signal the whole group, as a terminal does."""
    process = start(*asked, *more, env=env)
    wait_for(Path(env["STARTED"]), process)
    os.killpg(process.pid, number)
    return finish(process, timeout=20)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
def test_a_run_that_is_cut_short(
    tmp_path: Path,
    asked: tuple[object, ...],
    cache: Path,
    sleepy: dict[str, str],
    number: signal.Signals,
    code: int,
    word: str,
) -> None:
    write_recipe(tmp_path / "r.yaml", "quantize-dynamic", "sleepy")
    out = tmp_path / "out"
    answer = cut_short(asked, sleepy, number, "-o", out, "--json")
    assert answer.code == code
    error = answer.body["error"]
    assert (error["kind"], error["message"]) == (word.lower(), f"{word}.")
    assert f"error: {word}.\n" in answer.err and "run it again" in answer.err and "Traceback" not in answer.err
    assert beside(out) == []
    assert_tidy(cache)
    answer = finish(start(*asked, "-o", out, "--json", env={**sleepy, "SLEEP": "0"}))
    steps = [(step["id"], step["status"], step["cached"]) for step in answer.body["result"]["steps"]]
    assert steps == [("quantize-dynamic", "changed", True), ("sleepy", "no effect", False)], answer.err
    assert (out / "manifest.json").is_file()


def test_ctrl_c_while_timing_leaves_no_process(tmp_path: Path, asked: tuple[object, ...], cache: Path) -> None:
    timed = [word for word in asked if word != "--no-bench"]
    process = start(*timed, "-o", tmp_path / "out")
    me, end, children = psutil.Process(process.pid), time.monotonic() + 30, []
    while len(children) < 2:
        assert process.poll() is None and time.monotonic() < end
        children = me.children(recursive=True)
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    answer = finish(process, timeout=20)
    assert answer.code == 130 and answer.out == "" and "Traceback" not in answer.err
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert alive == [] and len(gone) == len(children)
    assert beside(tmp_path / "out") == []
    assert_tidy(cache)


def test_a_killed_run_leaves_nothing_for_good(
    tmp_path: Path, asked: tuple[object, ...], cache: Path, sleepy: dict[str, str]
) -> None:
    write_recipe(tmp_path / "r.yaml", "quantize-dynamic", "sleepy")
    assert cut_short(asked, sleepy, signal.SIGKILL, "-o", tmp_path / "out").code == -signal.SIGKILL
    assert beside(tmp_path / "out") == [] and list((cache / "work").iterdir()) != []
    assert finish(start(*asked, "-o", tmp_path / "out", env={**sleepy, "SLEEP": "0"})).code == 0
    assert_tidy(cache)


def test_a_staging_folder_of_a_killed_run_is_swept(tmp_path: Path, asked: tuple[object, ...]) -> None:
    process = start("--version")
    finish(process)
    (tmp_path / f".out.staging-{process.pid}").mkdir()
    assert call(*asked, "-o", tmp_path / "out").code == 0
    assert beside(tmp_path / "out") == ["out"]


def test_an_exchange_that_was_killed_half_way_is_put_right(tmp_path: Path, asked: tuple[object, ...]) -> None:
    out = tmp_path / "out"
    assert call(*asked, "-o", out).code == 0
    process = start("--version")
    finish(process)
    out.rename(tmp_path / f".out.old-{process.pid}")
    told = call(*asked, "-o", out)
    assert told.code == 3 and "exists already" in told.err
    assert (out / "manifest.json").is_file() and beside(out) == ["out"]


def test_a_reader_that_stops_reading_is_no_failure(tmp_path: Path) -> None:
    process = start("recipe", "schema")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(20) == 0 and process.stderr.read() == ""
    process.stderr.close()
