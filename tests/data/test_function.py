import pickle

import numpy as np
import pytest

from optkit.data.open import infer_inputs
from optkit.data.spec import DataSource
from optkit.errors import DataError

CODE = """
import numpy as np
calls = 0

def batches():
    i = 0
    while True:
        yield {"x": np.full((2, 3), i, np.float32), "labels": np.array([i, i])}
        i += 1

def ragged():
    yield {"x": np.ones((1, 2), np.int64)}
    yield {"x": np.ones((2, 4), np.int64)}

def fails():
    yield {"x": np.ones((2, 3), np.float32)}
    raise RuntimeError("disk gone")

def leaves():
    yield {"x": np.ones((2, 3), np.float32)}
    raise SystemExit(0)

def wrong():
    return [1, 2]

def jagged():
    return [{"x": [[1], [1, 2]]}]

def objects():
    return [{"x": np.array([None, None])}]

def nothing():
    return []
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)


@pytest.mark.usefixtures("code")
def test_an_endless_function_is_called_up_to_samples(opened):
    data = opened("x=float32[batch,3]", "mine.py:batches", code=True, samples=5, batch=3)
    assert [batch.size for batch in data.batches()] == [3, 2]
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1, 2])
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(next(again.batches()).inputs["x"][:, 0], [0, 0, 1])
    assert again.digest == data.digest


@pytest.mark.usefixtures("code")
def test_items_of_different_length_are_padded(opened):
    batch = next(opened("x=int64[batch,seq]", "mine.py:ragged", code=True).batches())
    np.testing.assert_array_equal(batch.inputs["x"], [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])


@pytest.mark.usefixtures("code")
def test_a_module_function(opened, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_data.py").write_text(CODE)
    assert opened("x=int64[batch,seq]", "mine_data:ragged", code=True).count == 3


@pytest.mark.usefixtures("code")
def test_code_is_refused_where_it_is_not_allowed(opened, tmp_path):
    with pytest.raises(DataError, match=r"'mine.py:batches' is code, which is not run from here"):
        opened("x=float32[batch,3]", "mine.py:batches")
    with pytest.raises(DataError, match=r"is code"):
        infer_inputs(DataSource(source="mine.py:ragged"), base=tmp_path)


@pytest.mark.usefixtures("code")
def test_inputs_from_the_first_item(tmp_path):
    found = infer_inputs(DataSource(source="mine.py:batches"), base=tmp_path, allow_code=True)
    assert [str(spec) for spec in found] == ["x=float32[batch,3]"]


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.py:fails", "failed: RuntimeError: disk gone"),
        ("mine.py:wrong", "Item 0 .* is a int, not a dict"),
        ("mine.py:jagged", "'x' in item 0 .* is no rectangular array"),
        ("mine.py:objects", "input 'x' are object"),
        ("mine.py:nothing", "hold no samples"),
        ("mine.py:batchs", "has no function 'batchs'; did you mean 'batches'"),
        ("none.py:batches", "There is no file"),
        ("no_such_module_here:fn", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_can_go_wrong(opened, name, said):
    with pytest.raises(DataError, match=said) as caught:
        opened("x=float32[batch]", name, code=True)
    assert caught.value.fix


@pytest.mark.usefixtures("code")
def test_a_function_that_ends_the_process_is_an_error_of_the_data(opened):
    with pytest.raises(DataError, match=r"The data function mine.py:leaves failed: SystemExit: 0\."):
        opened("x=float32[batch,3]", "mine.py:leaves", code=True)
