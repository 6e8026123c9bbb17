"""The greedy choice, against worlds in which it is known how long everything takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from optkit.errors import ModelError
from optkit.model.manifest import Decision, Ratio
from optkit.model.model import Model
from optkit.passes._measure import GROUP, NO_TIME, TOO_CLOSE, choose, flipped
from tests.helpers import fresh_dir
from tests.timing import Clock, ratio

Names = frozenset[str]


class World:
    """Each thing multiplies the milliseconds of a call by its factor.

    Where models take ``start_s`` to start, a measurement takes that for each of them, and as long as asked for.
    """

    def __init__(
        self,
        factors: Mapping[str, float],
        *,
        width: float = 0.01,
        luck: Sequence[float] = (),
        broken: Mapping[str, str] | None = None,
        crashes: str = "",
        start_s: float = 0.0,
        size: int = 10,
        together: Callable[[Names], float] = lambda names: 1.0,
    ) -> None:
        self.factors, self.width, self.luck = factors, width, list(luck)
        self.broken, self.crashes, self.start_s = broken or {}, crashes, start_s
        self.together, self.clock = together, Clock()
        self.asked: list[tuple[list[Names], float]] = []
        path = fresh_dir() / "model.onnx"
        with path.open("wb") as file:
            file.truncate(size)
        self.model = Model(path, "onnx", "onnx")

    def build(self, names: Names) -> Model | str:
        reasons = [reason for name, reason in self.broken.items() if name in names]
        return reasons[0] if reasons else Model(self.model.path, "onnx", "onnx", session=dict.fromkeys(names, "on"))

    def milliseconds(self, names: Names) -> float:
        found = 10.0 * self.together(names)
        for name in names:
            found *= self.factors[name]
        return found

    def timer(self, models: Sequence[Model], seconds: float) -> list[Ratio]:
        states = [frozenset(model.session) for model in models]
        self.asked.append((states, seconds))
        self.clock.now += self.start_s and self.start_s * len(models) + seconds
        if any(self.crashes in state for state in states if self.crashes):
            raise ModelError("it crashed.")
        base = self.milliseconds(states[0])
        luck = self.luck.pop(0) if self.luck else 1.0
        found = [ratio(base / self.milliseconds(state) * luck, width=self.width) for state in states[1:]]
        return [ratio(1.0, width=0.0), *found]

    def choose(self, start: Sequence[str] = (), *, budget_s: float = 20.0) -> tuple[Names, dict[str, Decision]]:
        chosen, decisions = choose(
            frozenset(start), list(self.factors), self.build, self.timer, budget_s=budget_s, clock=self.clock
        )
        return chosen, {decision.what: decision for decision in decisions}


def test_what_pays_comes_and_what_does_not_stays_away():
    chosen, told = World({"good": 0.8, "bad": 1.2, "idle": 1.0}).choose()
    assert chosen == {"good"}
    assert [(each.kept, each.reason) for each in told.values()] == [
        (True, "faster"),
        (False, "slower"),
        (False, "brings at most 2%"),
    ]
    assert (told["good"].speedup, told["bad"].speedup) == pytest.approx((1.25, 1 / 1.2))
    assert (told["good"].low, told["good"].high) == pytest.approx((1.25 * 0.99, 1.25 * 1.01))


def test_what_was_there_goes_unless_it_pays():
    world = World({"good": 0.8, "bad": 1.2, "idle": 1.0, "small": 0.97})
    chosen, told = world.choose(["good", "bad", "idle", "small"])
    assert chosen == {"good", "small"}
    assert {name: each.reason for name, each in told.items()} == {
        "good": "faster",
        "bad": "slower",
        "idle": "brings at most 2%",
        "small": "faster",
    }
    assert told["bad"].speedup == pytest.approx(1 / 1.2), "of having it, though what was timed is not having it"
    assert told["bad"].low == pytest.approx(1 / (1.2 * 1.01))


@pytest.mark.parametrize("start", [(), ("one", "two", "three")])
def test_in_noise_everything_stays_as_it_was(start: Sequence[str]):
    chosen, told = World({"one": 0.97, "two": 1.0, "three": 1.03}, width=0.1).choose(start)
    assert chosen == set(start)
    assert {each.reason for each in told.values()} == {TOO_CLOSE}
    assert {each.kept for each in told.values()} == {bool(start)}


def test_a_gain_has_to_be_confirmed_by_a_measurement_of_its_own():
    world = World({"lucky": 1.0}, luck=[1.1])
    chosen, told = world.choose()
    assert (chosen, told["lucky"].reason) == (set(), "brings at most 2%")
    assert [len(models) for models, _ in world.asked] == [2, 2]


def test_the_surest_gain_is_tried_first_and_the_next_one_on_top_of_it():
    both = frozenset({"a", "b"})
    world = World({"a": 0.95, "b": 0.9}, together=lambda names: 1.1 if both <= names else 1.0)
    chosen, told = world.choose()
    assert [models for models, _ in world.asked[1:]] == [[set(), {"b"}], [{"b"}, both]]
    assert chosen == {"b"}
    assert (told["a"].kept, told["a"].reason) == (False, "slower")
    assert told["a"].speedup == pytest.approx(1 / (0.95 * 1.1)), "beside b, as it had been chosen by then"


def test_what_is_settled_is_not_timed_again():
    world = World({"kept": 0.5, "useless": 1.0, "slow": 1.5})
    world.choose(["kept"])
    assert len(world.asked) == 1
    assert World({}).choose() == (set(), {})


def test_many_things_are_screened_in_groups():
    names = {f"n{index}": 1.5 for index in range(GROUP + 2)}
    world = World(names)
    world.choose()
    assert [len(models) for models, _ in world.asked] == [GROUP + 1, 3]


@pytest.mark.parametrize(("size", "models"), [(450_000_000, 4), (1_500_000_000, 2)])
def test_large_models_are_not_all_in_memory_at_once(size: int, models: int):
    world = World({f"n{index}": 1.5 for index in range(5)}, size=size)
    world.choose()
    assert max(len(asked) for asked, _ in world.asked) == models


def test_the_budget_bounds_the_measuring_and_leaves_time_to_confirm():
    world = World({f"n{index}": 0.9 for index in range(12)}, start_s=0.5)
    chosen, told = world.choose(budget_s=25.0)
    assert world.clock.now <= 25.0
    assert [len(models) for models, _ in world.asked] == [5, 5, 2, 2, 2, 2]
    assert {seconds for _, seconds in world.asked} == {2.5}
    assert chosen == {"n0", "n1", "n2", "n3"}
    assert told["n4"].reason == "faster, but no time was left to make sure"
    assert (told["n11"].reason, told["n11"].speedup, told["n11"].kept) == (NO_TIME, None, False)


def test_the_last_group_is_as_large_as_there_is_time_for():
    world = World({f"n{index}": 1.5 for index in range(12)}, start_s=0.8)
    world.choose(budget_s=25.0)
    assert [len(models) for models, _ in world.asked][:2] == [5, 4], "half of the budget is left to confirm"


def test_time_that_nothing_needs_for_confirming_goes_into_further_screening():
    world = World({f"n{index}": 1.5 for index in range(12)}, start_s=0.8)
    _, told = world.choose(budget_s=25.0)
    assert world.clock.now <= 25.0
    assert [len(models) for models, _ in world.asked] == [5, 4, 5]
    assert [name for name in told if told[name].reason == NO_TIME] == ["n11"]


def test_slow_models_are_measured_once_whatever_the_budget():
    world = World({f"n{index}": 1.2 for index in range(6)}, start_s=30.0)
    chosen, told = world.choose(["n0", "n5"], budget_s=20.0)
    assert [len(models) for models, _ in world.asked] == [GROUP + 1]
    assert chosen == {"n0", "n5"}
    assert told["n0"].reason == "slower, but no time was left to make sure"


def test_what_cannot_be_made_or_crashes_is_left_out_with_the_reason():
    world = World({"torn": 0.5, "crash": 0.5, "good": 0.8}, broken={"torn": "it does not open"}, crashes="crash")
    chosen, told = world.choose()
    assert chosen == {"good"}
    assert (told["torn"].reason, told["torn"].speedup) == ("it does not open", None)
    assert (told["crash"].reason, told["good"].reason) == ("it crashed.", "faster")


def test_of_values_of_one_option_the_model_has_one():
    world = World({"threads=1": 0.9, "threads=4": 0.7, "other=1": 0.95})
    chosen, told = world.choose()
    assert chosen == {"threads=4", "other=1"}
    assert told["threads=1"].reason == "slower", "than 4, which was chosen by then"
    assert flipped(frozenset({"threads=1", "b"}), "threads=4") == {"threads=4", "b"}
    assert flipped(frozenset({"a", "b"}), "a") == {"b"}
    lucky = World({"threads=1": 0.7, "threads=4": 0.7}, luck=[1.0, 1.0, 1.5])
    assert lucky.choose()[1]["threads=1"].reason == "faster, but another value more so"
