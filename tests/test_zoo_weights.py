"""A language model with weights of 4 bits: what gptq saves of what rounding loses, and the size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import optkit
from optkit.passes.quantize_weights import QuantizeWeights
from tests.helpers import MemoryData, run_pass, session_of

TOKENS = 128
ROWS = 8
CALIBRATION_ROWS = 24


def perplexity(path: Path, rows: dict[str, np.ndarray]) -> float:
    """Of the next token, a row at a time."""
    from benchmarks.scores import negative_log_likelihood

    session, lost = session_of(path), []
    for index in range(len(rows["input_ids"])):
        feeds = {name: array[index : index + 1] for name, array in rows.items()}
        logits = session.run(["logits"], feeds)[0]
        lost.append(negative_log_likelihood(logits[:, :-1], feeds["input_ids"][:, 1:]))
    return float(np.exp(np.mean(lost)))


@pytest.mark.zoo
@pytest.mark.large
@pytest.mark.timeout(1800)
def test_gptq_has_less_perplexity_than_rounding_in_a_third_of_the_size() -> None:
    from benchmarks import zoo_subjects

    subject = zoo_subjects.smollm2()
    news, folder = zoo_subjects.zoo.news_text(), Path(subject.model)
    calibration = zoo_subjects.blocks(folder, news[:40], TOKENS)
    unseen = {name: rows[:ROWS] for name, rows in zoo_subjects.blocks(folder, news[200:230], TOKENS).items()}
    data = MemoryData("calibration", {name: rows[:CALIBRATION_ROWS] for name, rows in calibration.items()})
    model = optkit.Model.open(subject.baseline)
    found = {"float32": perplexity(model.path, unseen)}
    for method in ("rtn", "gptq"):
        outcome = run_pass(QuantizeWeights(method=method, block_size=128), model, data={"calibration": data})
        assert outcome.model.size_bytes <= 0.35 * model.size_bytes
        found[method] = perplexity(outcome.model.path, unseen)
        outcome.model.path.unlink()
    assert found["float32"] < found["gptq"] < found["rtn"], found
