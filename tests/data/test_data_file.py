import pytest

from optkit.data.data_file import find_data_file
from optkit.errors import DataError


@pytest.fixture
def found(tmp_path):
    def run(text, model="digits_cnn.pt", name="data.yaml"):
        (tmp_path / name).write_text(text)
        return find_data_file(tmp_path / model)

    return run


def test_none_without_a_file(tmp_path):
    assert find_data_file(tmp_path / "m.onnx") is None


def test_paths_mappings_preprocess_and_metric(found, tmp_path):
    made = found(
        "data:\n  calibration: c.npz\n  evaluation: {source: e.npz, labels: y, batch: 16}\n"
        "preprocess:\n  x: {kind: image, scale: 2}\nmetric: {name: top1, args: {k: 1}}\n"
    )
    assert made.path == tmp_path / "data.yaml"
    assert made.base == tmp_path
    assert made.data["calibration"].source == "c.npz"
    assert (made.data["evaluation"].labels, made.data["evaluation"].batch) == ("y", 16)
    assert made.preprocess == {"x": {"kind": "image", "scale": 2}}
    assert made.metric == {"name": "top1", "args": {"k": 1}}


def test_the_file_named_after_the_model_wins(found):
    found("data: {evaluation: common.npz}")
    assert found("data: {evaluation: own.npz}", name="digits_cnn.data.yaml").data["evaluation"].source == "own.npz"


def test_the_most_specific_pattern_wins_and_overrides_the_top(found):
    text = (
        "metric: top1\n"
        "models:\n"
        "  'digits_*': {data: {evaluation: digits.npz}}\n"
        "  'digits_cnn.*': {data: {evaluation: cnn.npz}, metric: f1}\n"
        "  '*': {data: {evaluation: any.npz}}\n"
    )
    cnn, mlp, other = (found(text, model) for model in ("digits_cnn.pt", "digits_mlp.pt", "text.onnx"))
    assert (cnn.data["evaluation"].source, cnn.metric) == ("cnn.npz", "f1")
    assert (mlp.data["evaluation"].source, mlp.metric) == ("digits.npz", "top1")
    assert other.data["evaluation"].source == "any.npz"


def test_nothing_when_no_pattern_matches(found):
    assert found("models: {'text_*': {data: {evaluation: e.npz}}}") is None
    assert found("") is None


def test_another_tools_data_yaml_is_left_alone(found):
    assert found("train: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n") is None


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("data:\n  calibration: c.npz\n  evaluation: pkg.mod:fn\n", "data.evaluation", 3),
        ("data:\n  evaluation: load.py:fn\n", "data.evaluation", 2),
        ("data:\n  evaluation: {source: x, format: function}\n", "data.evaluation", 2),
        ("data: {}\nmetric: pkg.mod:Score\n", "metric", 2),
        ("metric: {name: 'pkg.mod:Score'}\n", "metric", 1),
        ("models:\n  'other*':\n    data:\n      search: a.b:c\n", r"models.other\*.data.search", 4),
    ],
)
def test_code_is_refused_with_file_and_key(found, tmp_path, text, key, line):
    with pytest.raises(DataError, match=rf"{key} names code") as caught:
        found(text)
    assert caught.value.file == str(tmp_path / "data.yaml")
    assert caught.value.line == line
    assert "--data" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("data:\n  evaluation: {source: e.npz, label: y}\n", "data.evaluation.label .* did you mean 'labels'", 2),
        ("data:\n  evaluation:\n    source: e.npz\n    batch: 0\n", "data.evaluation.batch", 4),
        ("dat:\n  evaluation: e.npz\n", "dat is wrong: this key is not known .did you mean 'data'", 1),
        ("data:\n  evalution: e.npz\n", "data.evalution is wrong", 2),
        ("data: [a\n", "not valid YAML", 2),
        ("data: {}\nmetric: a\nmetric: b\n", "key .metric. stands here a second time", 3),
        ("- a\n", "The file is wrong", 1),
        ("metric: top1\npreprocess:\n  x: {kind: image, resise: 2}\n", "preprocess.x.resise is wrong", 2),
    ],
)
def test_mistakes_name_file_key_and_line(found, tmp_path, text, said, line):
    with pytest.raises(DataError, match=said.replace(" .* ", ".*")) as caught:
        found(text)
    assert caught.value.file == str(tmp_path / "data.yaml")
    assert caught.value.line == line
