"""Outputs appear all at once or not at all, and bundles run wherever they are copied."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from optkit.data.spec import DataSource
from optkit.errors import OutputError
from optkit.model import bundle
from optkit.model.bundle import check_output, copy_file, data_name, staged, write_error
from optkit.model.digest import sha256_files
from optkit.model.model import Model
from optkit.model.onnx_file import external_files, move_external, save_onnx
from optkit.pipeline.cache import Cache
from optkit.pipeline.compare import compare
from optkit.pipeline.infer import infer
from optkit.pipeline.optimize import optimize
from tests.helpers import normal, onnx_model, run_onnx
from tests.pipeline import toy

PARTS = ["manifest.json", "model.onnx", "open_model.py", "recipe.yaml", "report.md"]
SAMPLES = Path(__file__).parents[2] / "sample_models"


@pytest.fixture
def dead() -> int:
    """The id of a process that is no more."""
    return int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> None:
    """A bundle as far as this room knows."""
    folder.mkdir(exist_ok=True)
    for name in ("model.onnx", "manifest.json"):
        (folder / name).write_text(text)


def write_bundle(folder: Path) -> None:
    """A bundle by its files."""
    fill(folder, "old")
    (folder / "manifest.json").write_text('{"schema_version": 1, "recipe_name": "r"}')


def model_bytes(*, external: bool, value: float, name: str = "out.onnx") -> dict[str, bytes]:
    """The files of a model alone, as they are published."""
    place = Path(tempfile.mkdtemp())
    proto = onnx_model("g (float[4] x) => (float[300] y) { y = MatMul(x, w) }", {"w": np.full((4, 300), value, "f")})
    save_onnx(proto, place / name, external=external)
    if external:
        data = data_name(name, sha256_files([place / f"{name}.data"]))
        (place / f"{name}.data").rename(place / data)
        move_external(place / name, {f"{name}.data": data})
    return {file.name: file.read_bytes() for file in place.iterdir()}


def put(out: Path, files: dict[str, bytes], *, force: bool = True) -> None:
    with staged(out, force=force) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)


def read(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("model.onnx", "manifest.json")}


def no_exchange(left: Path, right: Path) -> bool:
    return False


# Staging


def test_a_block_that_ends_well_leaves_its_files_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with staged(out, force=False) as folder:
        assert folder.parent == out.parent
        assert folder.name.startswith(".out.staging-")
        assert folder.stat().st_dev == tmp_path.stat().st_dev
        fill(folder, "new")
        assert not out.exists()
    assert read(out) == {"new"}
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["out", "out.onnx"])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException], name: str) -> None:
    with pytest.raises(error), staged(tmp_path / "deep" / "er" / name, force=False) as folder:
        fill(folder, "half")
        raise error
    assert names(tmp_path) == []


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    with pytest.raises(ValueError, match="half"), staged(out, force=True) as folder:
        fill(folder, "new")
        raise ValueError("half")
    assert read(out) == {"old"}
    assert names(tmp_path) == ["out"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left on device") as error, staged(tmp_path / "out", force=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "free some space" in error.value.fix
    assert names(tmp_path) == []


def test_other_complaints_say_where_else_to_go() -> None:
    denied = OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert write_error(denied, Path("o")).fix == "choose another path with -o"
    assert write_error(denied, Path("o"), fix="elsewhere").fix == "elsewhere"


@pytest.mark.parametrize("swap", ["exchange", "fallback"])
def test_force_replaces_by_an_exchange(tmp_path: Path, swap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if swap == "fallback":
        monkeypatch.setattr(bundle, "_exchange", no_exchange)
    out = tmp_path / "out"
    fill(out, "old")
    (out / "more").write_text("old")
    with staged(out, force=True) as folder:
        fill(folder, "new")
        assert read(out) == {"old"}
    assert names(out) == ["manifest.json", "model.onnx"]
    assert read(out) == {"new"}
    assert names(tmp_path) == ["out"]


def test_a_whole_bundle_is_to_be_seen_at_every_moment_of_an_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at around every call that touches the folder: the old one until the one swap, then the new one."""
    out, seen = tmp_path / "out", []
    fill(out, "old")
    fill(tmp_path / "other", "old")
    if not bundle._exchange(out, tmp_path / "other"):
        pytest.skip("this filesystem has no exchange")

    def watched(function):  # type: ignore[no-untyped-def]
        def call(*args: object, **kwargs: object) -> object:
            seen.append(read(out))
            result = function(*args, **kwargs)
            seen.append(read(out))
            return result

        return call

    with staged(out, force=True) as folder:
        fill(folder, "new")
        for name in ("_exchange", "_remove", "_sync", "_sync_folder"):
            monkeypatch.setattr(bundle, name, watched(getattr(bundle, name)))
        monkeypatch.setattr(Path, "rename", watched(Path.rename))
    assert seen[0] == {"old"}
    assert seen[-1] == {"new"}
    assert seen == sorted(seen, key=lambda texts: texts == {"new"})


def test_a_fallback_that_fails_halfway_puts_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_exchange", no_exchange)
    out = tmp_path / "out"
    fill(out, "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".staging-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"), staged(out, force=True) as folder:
        fill(folder, "new")
    assert read(out) == {"old"}
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("swap", ["exchange", "fallback"])
def test_a_link_stays_and_the_bundle_it_leads_to_is_replaced(
    tmp_path: Path, swap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if swap == "fallback":
        monkeypatch.setattr(bundle, "_exchange", no_exchange)
    fill(tmp_path / "v1", "old")
    (tmp_path / "out").symlink_to("v1")
    with staged(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
    assert (tmp_path / "out").readlink() == Path("v1")
    assert not (tmp_path / "v1").is_symlink()
    assert read(tmp_path / "v1") == {"new"}
    assert names(tmp_path) == ["out", "v1"]


def test_a_link_to_a_model_stays_and_the_model_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "blob").write_text("old")
    (tmp_path / "out.onnx").symlink_to("models/blob")
    put(tmp_path / "out.onnx", {"out.onnx": b"new"})
    assert (tmp_path / "out.onnx").readlink() == Path("models/blob")
    assert (tmp_path / "models" / "blob").read_text() == "new"
    assert (names(tmp_path), names(tmp_path / "models")) == (["models", "out.onnx"], ["blob"])


@pytest.mark.parametrize("name", ["out", "out.onnx"])
@pytest.mark.parametrize("force", [True, False])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, name: str, force: bool) -> None:
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(OutputError, match="is a link that leads nowhere"):
        check_output(tmp_path / name, force=force)


def test_a_link_to_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    (tmp_path / "out").symlink_to("photos")
    with pytest.raises(OutputError, match="is not a bundle"):
        check_output(tmp_path / "out", force=True)


@pytest.mark.parametrize("name", ["out", "out.onnx"])
def test_what_appears_meanwhile_is_not_replaced_without_force(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    with pytest.raises(OutputError, match="exists, and was not to be expected"), staged(out, force=False) as folder:
        (folder / name).write_text("new")
        out.write_text("mine")
    assert out.read_text() == "mine"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("force", [True, False])
def test_somebody_elses_data_file_is_never_replaced(tmp_path: Path, force: bool) -> None:
    files = model_bytes(external=True, value=1.0)
    data = next(name for name in files if name != "out.onnx")
    (tmp_path / data).write_text("mine")
    with pytest.raises(OutputError, match=f"{data} exists"):
        put(tmp_path / "out.onnx", files, force=force)
    assert names(tmp_path) == [data]
    assert (tmp_path / data).read_text() == "mine"
    (tmp_path / data).write_bytes(files[data])  # what a run that was killed left: the same
    put(tmp_path / "out.onnx", files, force=force)
    assert Model.open(tmp_path / "out.onnx").signature.complete


def test_a_whole_model_is_there_at_every_moment_and_its_old_data_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out.onnx", []
    put(out, model_bytes(external=True, value=1.0), force=False)
    (tmp_path / "out.12345678.data").write_text("mine")
    before = Model.open(out).digest

    def watched(function):  # type: ignore[no-untyped-def]
        def call(*args: object, **kwargs: object) -> object:
            seen.append(Model.open(out).digest)
            result = function(*args, **kwargs)
            seen.append(Model.open(out).digest)
            return result

        return call

    new = model_bytes(external=True, value=2.0)
    with monkeypatch.context() as patch:
        for name in ("replace", "rename", "unlink"):
            patch.setattr(Path, name, watched(getattr(Path, name)))
        put(out, new)
    after = Model.open(out).digest
    assert before != after
    assert set(seen) == {before, after}
    assert seen == sorted(seen, key=lambda digest: digest == after)
    assert names(tmp_path) == sorted([*new, "out.12345678.data"])
    put(out, model_bytes(external=False, value=3.0))
    assert names(tmp_path) == ["out.12345678.data", "out.onnx"]


def test_data_beside_the_model_that_it_does_not_know_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out.onnx.data").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError, match=r"lies out\.onnx\.data, which is no part of it"):
            check_output(tmp_path / "out.onnx", force=force)
    for name, content in model_bytes(external=True, value=1.0).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OutputError, match=r"lies out\.onnx\.data"):
        check_output(tmp_path / "out.onnx", force=True)
    (tmp_path / "out.onnx.data").unlink()
    check_output(tmp_path / "out.onnx", force=True)


# Before the work


@pytest.mark.parametrize("name", ["out", "out.onnx"])
def test_an_output_that_exists_is_refused(tmp_path: Path, name: str) -> None:
    check_output(tmp_path / name, force=False)
    (tmp_path / name).write_text("x")
    with pytest.raises(OutputError, match=f"{name} exists already") as error:
        check_output(tmp_path / name, force=False)
    assert "--force" in error.value.fix


def test_force_replaces_only_what_optkit_may_have_written(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.onnx").write_text("x")
    for name in ("bundle", "empty", "m.onnx", "nothing"):
        check_output(tmp_path / name, force=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "manifest.json").write_text("{}")
    fill(tmp_path / "web", '{"name": "a web page", "icons": []}')
    fill(tmp_path / "odd", "no JSON")
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.onnx").mkdir()
    for name, kind in (
        ("photos", "a bundle"),
        ("web", "a bundle"),
        ("odd", "a bundle"),
        ("file", "a bundle"),
        ("folder.onnx", "a file"),
    ):
        with pytest.raises(OutputError, match=f"exists and is not {kind}"):
            check_output(tmp_path / name, force=True)


def test_a_bundle_with_files_of_others_is_refused_and_they_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_bundle(out)
    for name, content in model_bytes(external=True, value=1.0, name="model.onnx").items():
        (out / name).write_bytes(content)
    (out / "preprocess" / "input_ids").mkdir(parents=True)
    for name in ("recipe.yaml", "report.md", "open_model.py", "preprocess.json", "preprocess/input_ids/tokenizer.json"):
        (out / name).write_text("x")
    (out / "__pycache__").mkdir()
    (out / "__pycache__" / "open_model.cpython-311.pyc").write_text("left by an import")
    check_output(out, force=True)
    for name in ("notes.txt", "preprocess/mine.md"):
        (out / name).write_text("mine")
    with pytest.raises(OutputError, match=r"no part of a bundle.*: notes\.txt, preprocess/mine\.md\."):
        check_output(out, force=True)


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is not writable"):
        check_output(tmp_path / "file" / "out", force=False)


def test_a_bundle_that_was_set_aside_by_a_killed_run_is_put_back(tmp_path: Path, dead: int) -> None:
    out = tmp_path / "out[1]"
    fill(tmp_path / f".out[1].old-{dead}", "old")
    with pytest.raises(OutputError, match="exists already"):
        check_output(out, force=False)
    assert read(out) == {"old"}
    assert names(tmp_path) == ["out[1]"]


def test_what_killed_runs_left_is_removed_and_what_others_work_on_is_not(tmp_path: Path, dead: int) -> None:
    write_bundle(tmp_path / "out")
    for name in (f".out.old-{dead}", f".out.staging-{dead}", f".out.staging-{os.getppid()}", ".out.old-notes"):
        fill(tmp_path / name, "old")
    check_output(tmp_path / "out", force=True)
    assert names(tmp_path) == [".out.old-notes", f".out.staging-{os.getppid()}", "out"]
    assert (tmp_path / "out" / "model.onnx").read_text() == "old"


def test_a_bundle_that_a_living_run_is_exchanging_is_left_to_it(tmp_path: Path) -> None:
    fill(tmp_path / f".out.old-{os.getppid()}", "old")
    check_output(tmp_path / "out", force=False)
    assert names(tmp_path) == [f".out.old-{os.getppid()}"]


def test_a_copy_is_no_link(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"abc" * 5000)
    copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert (target.stat().st_nlink, target.stat().st_ino == source.stat().st_ino) == (1, False)
    target.write_bytes(b"x")
    assert source.read_bytes() == b"abc" * 5000


# Whole bundles


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights lie in a folder beside it."""
    folder = tmp_path / "given"
    (folder / "weights").mkdir(parents=True)
    proto = onnx_model(toy.TEXT, toy.WEIGHTS)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="weights/m.bin", size_threshold=0)
    return folder / "m.onnx"


def test_a_bundle_has_its_parts_and_gives_the_results_of_the_cache(tmp_path: Path) -> None:
    entries = {"session.intra_op.allow_spinning": "0"}
    passes = [toy.ScaleBy(), toy.Session(entries=entries)]
    model = toy.write_model(tmp_path / "m.onnx")
    manifest = optimize(model, passes, tmp_path / "out", bench=False)
    assert names(tmp_path / "out") == PARTS
    opened = Model.open(tmp_path / "out")
    assert (opened.session, manifest.result.path) == (entries, str(opened.path))
    assert opened.digest == manifest.result.digest
    assert opened.lineage == ("Multiply w by a factor.", "Want session entries, and change nothing in the file.")
    cached = Path(optimize(model, passes, bench=False).result.path)
    assert cached != opened.path
    assert (opened.path.stat().st_nlink, cached.stat().st_nlink) == (1, 1)
    np.testing.assert_array_equal(run_onnx(opened, toy.arrays())["y"], run_onnx(cached, toy.arrays())["y"])


def test_an_old_bundle_without_the_lines_that_open_it_does_as_well(tmp_path: Path) -> None:
    optimize(toy.write_model(tmp_path / "m.onnx"), toy.ScaleBy(), tmp_path / "out", bench=False)
    (tmp_path / "out" / "open_model.py").unlink()
    assert Model.open(tmp_path / "out").form == "onnx"
    check_output(tmp_path / "out", force=True)


def test_one_data_file_becomes_model_onnx_data(external: Path, tmp_path: Path) -> None:
    manifest = optimize(external, toy.Session(entries={"session.a": "1"}), tmp_path / "out", bench=False)
    assert names(tmp_path / "out") == sorted([*PARTS, "model.onnx.data"])
    assert external_files(tmp_path / "out" / "model.onnx") == [tmp_path / "out" / "model.onnx.data"]
    assert Model.open(tmp_path / "out").digest == manifest.result.digest
    assert f'"digest": "{manifest.result.digest}"' in (tmp_path / "out" / "manifest.json").read_text()
    shutil.rmtree(external.parent)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    y = run_onnx(Model.open(tmp_path / "elsewhere").path, toy.arrays())["y"]
    np.testing.assert_allclose(y, toy.arrays()["x"] @ toy.WEIGHTS["w"], atol=1e-5)


def test_several_data_files_keep_their_names(tmp_path: Path) -> None:
    text = "g (float[batch,4] x) => (float[batch,3] y, float[batch,3] z) { y = MatMul(x, a) z = MatMul(x, b) }"
    (tmp_path / "given").mkdir()
    proto = onnx_model(text, {"a": normal(4, 3), "b": normal(4, 3, seed=1)})
    path = tmp_path / "given" / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    optimize(path, toy.Session(entries={"session.a": "1"}), tmp_path / "out", bench=False)
    assert {"a", "b"} <= set(names(tmp_path / "out"))
    check_output(tmp_path / "out", force=True)
    assert Model.open(tmp_path / "out").digest == Model.open(path).digest


def test_external_data_behind_a_link_are_copied(external: Path, tmp_path: Path) -> None:
    data = external.parent / "weights" / "m.bin"
    data.rename(external.parent / "blob")
    data.symlink_to(external.parent / "blob")
    optimize(external, toy.Session(entries={"session.a": "1"}), tmp_path / "out", bench=False)
    copied = tmp_path / "out" / "model.onnx.data"
    assert copied.read_bytes() == data.read_bytes()
    assert not copied.is_symlink()


def test_a_relative_path_does_as_well(external: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(external.parent)
    optimize("m.onnx", toy.Session(entries={"session.a": "1"}), "out", bench=False)
    assert Model.open("out").digest == Model.open(external.parent / "out").digest


@pytest.mark.parametrize("above", [16, 10**6])
def test_the_model_alone_comes_with_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: int) -> None:
    monkeypatch.setattr("optkit.model.onnx_file.EXTERNAL_ABOVE", above)
    wide = normal(4, 600, seed=3)
    text = "g (float[batch,4] x) => (float[batch,600] y) { y = MatMul(x, w) }"
    (tmp_path / "given").mkdir()
    given = tmp_path / "given" / "m.onnx"
    onnx.save(onnx_model(text, {"w": wide}), given, save_as_external_data=True, location="m.bin", size_threshold=0)
    out = tmp_path / "new" / "out.onnx"
    manifest = optimize(given, toy.Session(entries={"session.a": "1"}), out, bench=False)
    files = external_files(out)
    assert [file.name for file in files] == ([data_name("out.onnx", sha256_files(files))] if above == 16 else [])
    assert names(out.parent) == sorted(["out.onnx", *(file.name for file in files)])
    assert Model.open(out).digest == manifest.result.digest
    shutil.rmtree(given.parent)
    np.testing.assert_allclose(run_onnx(out, toy.arrays())["y"], toy.arrays()["x"] @ wide, atol=1e-5)


def test_a_recipe_in_a_bundle_reproduces_it(tmp_path: Path) -> None:
    from optkit.recipe.recipe import Recipe

    model = SAMPLES / "digits_mlp.onnx"
    first = optimize(model, Recipe(name="q", passes=["quantize-dynamic"]), tmp_path / "a", bench=False)
    again = optimize(model, tmp_path / "a" / "recipe.yaml", tmp_path / "b", bench=False, cache=Cache(tmp_path / "c"))
    assert first.result.digest == again.result.digest
    assert (again.recipe, again.recipe_name) == (first.recipe, "q")


def test_a_text_bundle_carries_its_tokenizer_and_runs_elsewhere(tmp_path: Path) -> None:
    original = SAMPLES / "reviews_transformer.onnx"
    passes = toy.Session(entries={"session.intra_op.allow_spinning": "0"})
    optimize(original, passes, tmp_path / "here" / "out", bench=False)
    shutil.move(tmp_path / "here", tmp_path / "there")
    out = tmp_path / "there" / "out"
    assert (out / "preprocess" / "input_ids" / "tokenizer.json").is_file()
    assert "reviews_tokenizer" not in (out / "preprocess.json").read_text()

    texts = tmp_path / "texts.txt"
    texts.write_text("a wonderful film\ndull , dull , dull\n")
    for model, file in ((original, "a.npz"), (out, "b.npz")):
        infer(model, inputs=texts, output=tmp_path / file)
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as two:
        assert one.files == two.files
        for name in one.files:
            assert len(one[name]) == 2
            np.testing.assert_array_equal(one[name], two[name])


def test_a_bundles_own_preprocessing_serves_a_bare_original(tmp_path: Path) -> None:
    out = tmp_path / "out"
    passes = toy.Session(entries={"session.intra_op.allow_spinning": "0"})
    optimize(SAMPLES / "reviews_transformer.onnx", passes, out, bench=False)
    bare = Path(shutil.copy(SAMPLES / "reviews_transformer.onnx", tmp_path / "bare.onnx"))
    rows = (SAMPLES / "data" / "reviews_search.csv").read_text().splitlines(keepends=True)[:9]
    (tmp_path / "few.csv").write_text("".join(rows))
    source = DataSource(source=str(tmp_path / "few.csv"), labels="label", columns={"input_ids": "text"})
    verdict = compare(bare, out, data={"evaluation": source})
    assert (verdict.held, verdict.measured_on.samples, verdict.measured_on.synthetic) == (True, 8, False)


def test_a_tokenizer_given_as_a_file_of_another_name_is_found_again(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "reviews_transformer.onnx", tmp_path / "m.onnx")
    shutil.copy(SAMPLES / "reviews_tokenizer" / "tokenizer.json", tmp_path / "words.json")
    (tmp_path / "data.yaml").write_text("preprocess: {input_ids: {kind: text, tokenizer: words.json, max_length: 16}}")
    optimize(tmp_path / "m.onnx", toy.Session(entries={"session.a": "1"}), tmp_path / "out", bench=False)
    (tmp_path / "words.json").unlink()
    (tmp_path / "t.txt").write_text("a fine film\n")
    assert infer(tmp_path / "out", inputs=tmp_path / "t.txt").facts.data.samples == 1


def test_an_accuracy_miss_leaves_nothing_at_the_output(tmp_path: Path) -> None:
    from optkit.errors import AccuracyMissed

    with pytest.raises(AccuracyMissed, match="cosine"):
        optimize(toy.write_model(tmp_path / "m.onnx"), toy.ScaleBy(factor=-1), tmp_path / "new" / "out", bench=False)
    assert names(tmp_path) == ["m.onnx"]
