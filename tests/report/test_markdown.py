"""Markdown fit for a pull request."""

from __future__ import annotations

from optkit.model.manifest import Change, MeasuredOn, MetricResult
from optkit.report.markdown import markdown, verdict_markdown
from tests.report.facts import limit, verdict
from tests.report.test_waterfall import manifest, step

TOP1 = MetricResult(
    name="top1",
    better="higher",
    original=0.95,
    result=0.94,
    drop=0.01,
    low=-0.01,
    high=0.03,
    bound=0.025,
    samples=24,
    smallest_provable=0.12,
)


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table under ``## title``, head included."""
    table = text.partition(f"## {title}\n\n")[2].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").replace("\\|", "\0").split("|")]
        for line in table.strip().splitlines()
    ]


def test_a_verdict_that_held() -> None:
    text = verdict_markdown(verdict(limit("cosine", held=True, where="logits"), metrics=(TOP1,)), "m.onnx", "out")
    assert text.startswith("# optkit check: m.onnx against out\n\n**Passed.** All limits held.")
    assert "24 samples of e.npz" in text and "SYNTHETIC" not in text
    for words in ("top1", "0.9500", "0.9400", "24"):
        assert words in text
    head, line, *cells = rows(text, "Limits")
    assert head[0] == "limit" and set(line) == {"---"} and cells[0][0] == "cosine" and cells[0][-1] == "yes"


def test_a_verdict_that_missed_and_what_was_not_checked() -> None:
    limits = (limit("cosine", held=False), limit("speedup", held=None, limit="not-slower", measured=None))
    text = verdict_markdown(verdict(*limits), "m.onnx", "out")
    assert "**Failed.**" in text and "cosine" in text.split("**Failed.**")[1].splitlines()[0]
    assert [row[-1] for row in rows(text, "Limits")[2:]] == ["NO", "not checked"]


def test_made_up_inputs_are_said_beside_the_numbers() -> None:
    on = MeasuredOn(split="evaluation", source="synthetic", samples=16, batch=8, synthetic=True)
    assert "SYNTHETIC" in verdict_markdown(verdict(measured_on=on), "m.onnx", "out")


def test_cells_cannot_break_the_table() -> None:
    odd = "a | b\nc"
    text = verdict_markdown(verdict(limit("cosine", held=True, where=odd)), "m.onnx", "out")
    table = rows(text, "Limits")
    assert len(table) == 3 and {len(row) for row in table} == {len(table[0])}
    assert "a \0 b c" in table[2][3]


def test_what_was_left_alone_comes_with_its_reason_at_most_ten_a_step() -> None:
    skipped = tuple(Change(where=f"Add_{i}", what="its bias\nis no constant") for i in range(12))
    steps = (step("fuse", "fused", skipped=skipped), step("fold", "fused", "no effect", None, skipped=skipped[:1]))
    section = markdown(manifest(steps=steps)).partition("## Left alone\n\n")[2].partition("\n\n")[0].splitlines()
    assert section == [
        *(f"- fuse: Add_{i}: its bias is no constant" for i in range(10)),
        "- fuse: and 2 more in `--json`",
        "- fold: Add_0: its bias is no constant",
    ]
    written = manifest(steps=steps).model_copy(update={"output": "out"})
    assert "- fuse: and 2 more in `manifest.json`" in markdown(written)
    assert "Left alone" not in markdown(manifest())
