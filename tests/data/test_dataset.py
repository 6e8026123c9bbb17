from __future__ import annotations

import numpy as np

from optkit.data.dataset import spread, take
from tests.helpers import MemoryData


def test_takes_samples_on_their_axis_as_a_view() -> None:
    array = np.arange(24).reshape(2, 4, 3)
    some = take(array, 1, slice(2))
    assert some.shape == (2, 2, 3) and some.base is not None
    np.testing.assert_array_equal(some, array[:, :2])
    np.testing.assert_array_equal(take(array, 0, slice(1, 2)), array[1:])


def test_takes_all_of_what_has_no_samples() -> None:
    array = np.arange(4)
    assert take(array, None, slice(1)) is array
    assert take(array, 1, slice(1)) is array


def test_spreads_over_all_samples() -> None:
    data = MemoryData("evaluation", {"x": np.arange(9)})
    some = spread(data, 3, "search")
    assert (some.split, some.count) == ("search", 3)
    np.testing.assert_array_equal(next(some.batches()).inputs["x"], [0, 4, 8])
    assert spread(data, 20, "search").count == 9
