import pytest
from pydantic import ValidationError

from optkit.errors import UsageError
from optkit.evaluate.limits import Limits, MetricDrop


def test_parse():
    limits = Limits.parse(
        [
            "cosine=0.9",
            "max_error=1e-3",
            "metric_drop={max: 0.005, by: bound}",
            "labelled.metric_drop=0.01",
            "cosine=0.8",
        ]
    )
    assert limits.cosine == 0.8
    assert limits.max_error == 0.001
    assert limits.metric_drop == MetricDrop(max=0.005, by="bound")
    assert limits.labelled is not None
    assert limits.labelled.metric_drop == MetricDrop(max=0.01, by="point")
    assert Limits.parse(["speedup=not-slower"]).speedup == "not-slower"
    assert Limits.parse(["speedup=2"]).speedup == 2.0
    assert Limits.parse([]) == Limits()


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("cosin=1", "There is no limit 'cosin'.", "did you mean 'cosine'?"),
        ("labelled.agrement=1", "There is no limit 'labelled.agrement'.", "did you mean 'agreement'?"),
        ("labelled.speedup=1", "There is no limit 'labelled.speedup'.", "see: optkit check --help"),
        ("cosine", "The limit 'cosine' cannot be read.", "write it like --limit cosine=0.995"),
        ("cosine=", "The limit 'cosine=' cannot be read.", "write it like --limit cosine=0.995"),
        ("cosine=high", "The limit cosine=high does not fit: Input should be a valid number.", "write it like"),
        ("cosine=2", "The limit cosine=2.0 does not fit: Input should be less than or equal to 1.", "write it like"),
        ("size_mb=true", "The limit size_mb=True does not fit: Input should be a valid number.", "write it like"),
        ("metric_drop={max: 1, buy: 2}", "There is no limit 'metric_drop.buy'.", "did you mean 'by'?"),
    ],
)
def test_parse_refuses(text, message, fix):
    with pytest.raises(UsageError) as caught:
        Limits.parse([text])
    assert caught.value.message.replace("=2 ", "=2.0 ") == message
    assert caught.value.fix.startswith(fix)


def test_speedup_is_a_number_or_not_slower():
    with pytest.raises(ValidationError, match="'not-slower' or a number above 0"):
        Limits.model_validate({"speedup": "faster"})


def test_later_limits_win_key_by_key():
    recipe = Limits.model_validate({"cosine": 0.9, "size_mb": 5, "labelled": {"metric_drop": 0.01, "cosine": 0.5}})
    flags = Limits.parse(["cosine=0.95", "labelled.metric_drop=0.02"])
    merged = recipe.merged(flags)
    assert (merged.cosine, merged.size_mb) == (0.95, 5.0)
    assert merged.labelled is not None
    assert merged.labelled.metric_drop == MetricDrop(max=0.02)
    assert merged.labelled.cosine == 0.5
    assert recipe.merged(None) is recipe


def test_defaults():
    assert Limits().resolved(exact=True) == Limits(max_error=1e-3, speedup="not-slower")
    assert Limits().resolved(exact=True, discrete=True).agreement == 1.0
    assert Limits().resolved(exact=False) == Limits(cosine=0.99, agreement=0.98, speedup="not-slower")
    stated = Limits.parse(["cosine=0.5", "speedup=1.5", "max_error=2"]).resolved(exact=False)
    assert (stated.cosine, stated.agreement, stated.speedup, stated.max_error) == (0.5, 0.98, 1.5, 2.0)


def test_describe():
    limits = Limits.parse(["max_error=0.1", "labelled.metric_drop={max: 0.01, by: bound}"]).resolved(exact=False)
    assert limits.describe() == (
        "cosine >= 0.99, max_error <= 0.1, agreement >= 0.98, speedup not-slower; "
        "with labelled data: metric_drop <= 0.01 (95 % bound)"
    )


def test_plain_data_loads_again():
    limits = Limits.parse(["metric_drop=0.005", "labelled.cosine=0.9", "speedup=1.2"])
    assert Limits.model_validate(limits.model_dump(mode="json", exclude_none=True)) == limits


def test_the_schema_allows_the_short_forms():
    fields = Limits.model_json_schema()["properties"]
    assert {"type": "number"} in fields["metric_drop"]["anyOf"]
    assert {"const": "not-slower", "type": "string"} in fields["speedup"]["anyOf"]


def test_a_limit_for_all_data_replaces_the_labelled_one_below_it():
    recipe = Limits.parse(["labelled.metric_drop=0.01", "labelled.cosine=0.9"])
    merged = recipe.merged(Limits.parse(["metric_drop=0.05"]))
    assert merged.metric_drop.max == 0.05
    assert merged.labelled.metric_drop is None and merged.labelled.cosine == 0.9


@pytest.mark.parametrize("exact", [False, True])
def test_null_switches_a_limit_off_also_a_default(exact: bool):
    off = Limits.parse(["speedup=null", "cosine=null", "max_error=null"])
    found = off.resolved(exact)
    assert (found.speedup, found.cosine, found.max_error) == (None, None, None)
    assert found.agreement == (None if exact else 0.98)
    assert Limits.parse(["cosine=0.9"]).merged(off).resolved(exact).cosine is None
    assert off.merged(Limits.parse(["cosine=0.9"])).resolved(exact).cosine == 0.9


def test_what_is_off_stays_off_and_what_is_not_stated_stays_so_when_loaded_again():
    limits = Limits.parse(["speedup=null", "metric_drop=0.01"])
    assert limits.plain() == {"speedup": None, "metric_drop": {"max": 0.01}}
    again = Limits.model_validate(limits.plain())
    assert again.resolved(False) == limits.resolved(False)
    assert Limits().plain() == {}
