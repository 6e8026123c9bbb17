"""The subjects: every model of the zoo with its data, each built when asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import optkit
from benchmarks import images, page, scores, sounds, venvs
from benchmarks.artefacts import made, subject_folder
from benchmarks.subjects import Arrays, Point, Subject, batches, export, saved, written
from optkit.model.target import Target
from optkit.runner.open import open_runner
from tests import zoo

Array = NDArray[Any]

TRAIN = 3000
"""Sentences that the sentiment probe is fitted on."""


def load(name: str) -> Subject:
    """One subject by its name in ``SUBJECTS``; downloads and exports on first use."""
    return SUBJECTS[name]()


# --- text ---------------------------------------------------------------------------------------------------------


@cache
def tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, without padding and truncation."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_padding()
    found.no_truncation()
    return found


def encoded(folder: Path, texts: Sequence[str], size: int) -> tuple[Arrays, ...]:
    """Batches of texts, each padded to its longest: input_ids, attention_mask int64[size, seq]."""
    ids = [each.ids for each in tokenizer(folder).encode_batch(list(texts))]
    return tuple(_padded(ids[begin : begin + size]) for begin in range(0, len(ids), size))


def _padded(rows: list[list[int]]) -> Arrays:
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
    return {"input_ids": ids, "attention_mask": mask}


def blocks(folder: Path, texts: Sequence[str], seq: int) -> Arrays:
    """All texts one after the other, cut into rows of ``seq`` tokens: input_ids, attention_mask int64[rows, seq]."""
    stream = np.concatenate([each.ids for each in tokenizer(folder).encode_batch(list(texts))])
    ids = stream[: len(stream) // seq * seq].reshape(-1, seq).astype(np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def minilm() -> Subject:
    """MiniLM-L6: sentences of movie reviews; the probe for sentiment is fitted on the fp32 model's vectors."""
    folder, reviews = zoo.minilm(), zoo.movie_reviews()
    texts = {split: reviews[split].texts for split in ("calibration", "search", "evaluation")}
    data = {
        "calibration": written("minilm", "calibration", texts["calibration"]),
        "evaluation": written("minilm", "evaluation", texts["search"]),
    }
    baseline = export("minilm", optkit.Model.open(folder), data)
    evaluation = encoded(folder, texts["evaluation"], 8)
    probe = _probe(folder, baseline, reviews["train"])
    return Subject(
        name="minilm",
        title="MiniLM-L6 sentence encoder (transformer, 22.7 M)",
        model=folder,
        factory=None,
        signature=None,
        baseline=baseline,
        points=({"batch": 1, "seq": 32}, {"batch": 8, "seq": 128}),
        calibration=encoded(folder, texts["calibration"], 1),
        evaluation=evaluation,
        score=scores.sentences([each["attention_mask"] for each in evaluation], reviews["evaluation"].labels, probe),
        headline="cosine",
        feeds=lambda point: list(batches(blocks(folder, texts["evaluation"], point["seq"]), point["batch"])[:4]),
        data=data,
        transformer=True,
    )


def _probe(folder: Path, baseline: Path, train: Any) -> tuple[Array, float]:
    """Weights and bias of a logistic regression on the sentence vectors of ``TRAIN`` clearly rated reviews."""

    def make(place: Path) -> None:
        from sklearn.linear_model import LogisticRegression

        chosen = np.flatnonzero(np.abs(train.ratings) >= 0.5)[:TRAIN]
        vectors = []
        with open_runner(optkit.Model.open(baseline), Target()) as runner:
            for batch in encoded(folder, [train.texts[index] for index in chosen], 32):
                vectors.append(scores.pooled(runner.run(batch)["last_hidden_state"], batch["attention_mask"]))
        fitted = LogisticRegression(max_iter=2000).fit(np.concatenate(vectors), train.labels[chosen])
        np.savez(place / "probe.npz", weights=fitted.coef_[0], bias=fitted.intercept_[0])

    place, _ = made(subject_folder("minilm"), "probe", (str(baseline.parent.parent.name), TRAIN), make)
    with np.load(place / "probe.npz") as file:
        return file["weights"], float(file["bias"])


def smollm2() -> Subject:
    """SmolLM2-135M, its 4-bit weights dequantized: one prefill of news text."""

    def make(place: Path) -> None:
        venvs.run("gguf", venvs.HERE / "gguf_folder.py", str(zoo.smollm2()), str(place / "model"))

    place, _ = made(
        subject_folder("smollm2"), "folder", (zoo.smollm2().name, venvs.requirements("gguf").read_text()), make
    )
    folder, news = place / "model", zoo.news_text()
    data = {
        "calibration": saved("smollm2", "calibration", blocks(folder, news[:40], 128)),
        "evaluation": written("smollm2", "evaluation", news[100:108]),
    }
    evaluation = batches(blocks(folder, news[240:270], 128), 1)[:16]
    return Subject(
        name="smollm2",
        title="SmolLM2-135M language model (transformer, dequantized Q4_1, 135 M)",
        model=folder,
        factory=None,
        signature=None,
        baseline=export("smollm2", optkit.Model.open(folder), data),
        points=({"batch": 1, "seq": 128},),
        calibration=batches(blocks(folder, news[:40], 128), 1)[:32],
        evaluation=evaluation,
        score=scores.language("logits", [each["input_ids"] for each in evaluation]),
        headline="perplexity",
        feeds=lambda point: list(batches(blocks(folder, news[240:270], point["seq"]), point["batch"])[:2]),
        data=data,
        transformer=True,
    )


# --- vision -------------------------------------------------------------------------------------------------------


def efficientnet() -> Subject:
    """EfficientNet-Lite0: 500 views of 20 labelled ImageNet photos; calibrated on eight other photos."""
    weights, factory = zoo.efficientnet_lite0()
    signature = "image=float32[batch,3,224,224]"
    views = [np.load(file) for file in sorted(zoo.photos().glob("*.npz"))]
    pictures, labels = (np.concatenate([view[name] for view in views]) for name in ("image", "labels"))
    two = np.concatenate([np.load(file)["image"] for file in sorted(zoo.calibration_photos().glob("*.npz"))])
    others = np.concatenate([two, images.other_photos(24)])[np.random.default_rng(0).permutation(64 + 144)]
    data = {
        "calibration": saved("efficientnet", "calibration", {"image": others[:128]}),
        "evaluation": saved("efficientnet", "evaluation", {"image": others[128:]}),
    }
    return Subject(
        name="efficientnet",
        title="EfficientNet-Lite0 image classifier (convolutions, 4.7 M)",
        model=weights,
        factory=factory,
        signature=signature,
        baseline=export("efficientnet", optkit.Model.open(weights, factory=factory, signature=signature), data),
        points=({"batch": 1}, {"batch": 8}),
        calibration=batches({"image": others[:128]}, 1),
        evaluation=batches({"image": pictures}, 25),
        score=scores.classes("output", labels),
        headline="top1",
        feeds=lambda point: list(batches({"image": pictures[:: 500 // 32]}, point["batch"])[:4]),
        data=data,
    )


def _ocr(
    part: str,
    title: str,
    points: tuple[Point, ...],
    draw: Callable[[str, int, Point], Array],
    score: scores.Score,
    headline: str,
    *,
    extra: tuple[Arrays, ...] = (),
    transformer: bool = False,
) -> Subject:
    """A model of PP-OCR on pictures that ``draw(split, count, point)`` makes: float32[count, 3, height, width].

    ``extra`` batches are scored too, behind the others.
    """
    model = zoo.rapidocr()[part]
    least = points[0]
    calibration, choice = draw("calibration", 64, least), draw("choice", 64, least)
    return Subject(
        name=part,
        title=title,
        model=model,
        factory=None,
        signature=None,
        baseline=model,
        points=points,
        calibration=batches({"x": calibration}, 1),
        evaluation=batches({"x": draw("evaluation", 200 if part != "detector" else 40, least)}, 8) + extra,
        score=score,
        headline=headline,
        feeds=lambda point: list(batches({"x": draw("evaluation", 4 * point["batch"], point)}, point["batch"])),
        data={
            "calibration": saved(part, "calibration", {"x": calibration}),
            "evaluation": saved(part, "evaluation", {"x": choice}),
        },
        transformer=transformer,
    )


SEEDS = {"calibration": 1, "choice": 2, "evaluation": 3}


def detector() -> Subject:
    """PP-OCR's text detector on photos with text in them."""

    def draw(split: str, count: int, point: Point) -> Array:
        grounds = images.photo_files()["evaluation" if split == "evaluation" else "other"]
        texts = images.phrases(zoo.news_text(), 40, SEEDS[split])
        return images.scenes((grounds * count)[:count], texts, point["height"], SEEDS[split])

    points = ({"batch": 1, "height": 320, "width": 320}, {"batch": 1, "height": 640, "width": 640})
    name = _outputs("detector")[0]
    score = scores.and_page(scores.maps(name), name, lambda found: _read(page.cut_lines(found)))
    title = "PP-OCRv6 text detector (convolutions)"
    return _ocr("detector", title, points, draw, score, "iou", extra=({"x": page.page()},))


def recognizer() -> Subject:
    """PP-OCR's recognizer on lines of text."""

    def draw(split: str, count: int, point: Point) -> Array:
        return images.lines(_line_texts(split, count), point["width"], SEEDS[split])

    points = tuple({"batch": batch, "width": 320} for batch in (1, 8))
    name, characters = _outputs("recognizer")[0], _characters()
    lines = scores.reading(name, characters, _line_texts("evaluation", 200))
    score = scores.and_page(lines, name, lambda found: scores.decode(found, characters))
    title = "PP-OCRv6 text recognizer (convolutions and attention)"
    return _ocr("recognizer", title, points, draw, score, "same_text", extra=({"x": _page_lines()},), transformer=True)


def _page_lines() -> Array:
    """The lines that the original detector finds on the scanned page: float32[lines, 3, 48, 1024]."""
    return page.cut_lines(_run("detector", page.page()))


def _read(lines: Array) -> list[str]:
    """What the original recognizer reads."""
    return scores.decode(_run("recognizer", lines), _characters()) if len(lines) else []


def _run(part: str, pictures: Array) -> Array:
    with open_runner(optkit.Model.open(zoo.rapidocr()[part]), Target()) as runner:
        return runner.run({"x": pictures})[_outputs(part)[0]]


def classifier() -> Subject:
    """PP-OCR's angle classifier on lines of text, every other one upside down."""

    def draw(split: str, count: int, point: Point) -> Array:
        turned = [index % 2 == 1 for index in range(count)]
        return images.lines(_line_texts(split, count), point["width"], SEEDS[split], turned)

    points = tuple({"batch": batch, "width": 192} for batch in (1, 8))
    score = scores.classes(_outputs("classifier")[0], np.arange(200) % 2)
    return _ocr("classifier", "PP-OCR angle classifier (convolutions, small)", points, draw, score, "agreement")


def _line_texts(split: str, count: int) -> list[str]:
    """The first ``count`` of 200 phrases of a split, the same whatever the count."""
    return images.phrases(zoo.news_text(), 200, SEEDS[split])[:count]


def _outputs(part: str) -> list[str]:
    return [spec.name for spec in optkit.Model.open(zoo.rapidocr()[part]).signature.outputs]


def _characters() -> list[str]:
    """What the recognizer's classes 1, 2, ... stand for, as the file itself says; the last is the space."""
    import onnx

    properties = onnx.load(zoo.rapidocr()["recognizer"], load_external_data=False).metadata_props
    listed = next(entry.value for entry in properties if entry.key == "character")
    return [*listed.split("\n"), " "]


# --- sound --------------------------------------------------------------------------------------------------------

SILERO = "input=float32[batch,sequence];state=float32[2,batch,128];sr=int64[]"
WINDOW, CONTEXT = 512, 64
"""Samples of one call, and those repeated from the call before (silero_vad/utils_vad.py)."""


def silero() -> Subject:
    """The file that its users run; its weights lie in If branches, which not every tool gets through."""
    return _silero("silero", "onnx", "Silero voice activity (convolutions and LSTM in If branches)")


def silero_ifless() -> Subject:
    """The same model as its makers also publish it, without branches."""
    return _silero("silero_ifless", "onnx_ifless", "Silero voice activity without branches (convolutions and LSTM)")


def _silero(name: str, form: str, title: str) -> Subject:
    """Silero on speech-like streams, noise and silence, with the states that it had itself."""
    model, axes = zoo.silero()[form], {"state": 1}
    calibration, choice, evaluation = (_stream(model, split, 40) for split in ("calibration", "choice", "evaluation"))
    parts = batches(evaluation, 8, axes)
    return Subject(
        name=name,
        title=title,
        model=model,
        factory=None,
        signature=SILERO,
        baseline=model,
        points=({"batch": 1, "sequence": 576}, {"batch": 8, "sequence": 576}),
        calibration=batches(calibration, 1, axes)[:200],
        evaluation=parts,
        score=scores.voice("output"),
        headline="agreement",
        feeds=lambda point: list(batches(evaluation, point["batch"], axes)[:8]),
        data={
            "calibration": saved(name, "calibration", calibration),
            "evaluation": saved(name, "evaluation", choice),
        },
    )


def _stream(model: Path, split: str, windows: int) -> Arrays:
    """Windows of 8 streams with the states that the model carried to them, all as samples of their own."""
    seed, seconds = SEEDS[split], windows * WINDOW / sounds.RATE
    streams = [sounds.speech(seconds, 100 * seed + voice, 10 * seed + voice) for voice in range(5)]
    streams += [sounds.noise(seconds, 10 * seed + voice) for voice in range(2)] + [
        np.zeros(len(streams[0]), np.float32)
    ]
    sound = np.pad(np.stack([stream[: windows * WINDOW] for stream in streams]), ((0, 0), (CONTEXT, 0)))
    state, rate = np.zeros((2, len(sound), 128), np.float32), np.array(sounds.RATE, np.int64)
    fed: list[Arrays] = []
    with open_runner(optkit.Model.open(model, signature=SILERO), Target(threads=1)) as runner:
        for begin in range(0, windows * WINDOW, WINDOW):
            fed.append({"input": sound[:, begin : begin + WINDOW + CONTEXT], "state": state, "sr": rate})
            state = runner.run(fed[-1])["stateN"]
    found = {"input": np.concatenate([each["input"] for each in fed])}
    return found | {"state": np.concatenate([each["state"] for each in fed], axis=1), "sr": rate}


def speaker() -> Subject:
    """The speaker encoder on utterances of made-up voices, 1.6 s each."""
    factory, signature = f"{venvs.ROOT / 'tests' / 'zoo_factories.py'}:speaker_encoder", "mels=float32[batch,160,40]"
    splits = {split: _utterances(seed, 12 if seed == 3 else 8, 8) for split, seed in SEEDS.items()}
    mels = splits["evaluation"]
    data = {
        "calibration": saved("speaker", "calibration", {"mels": splits["calibration"]}),
        "evaluation": saved("speaker", "evaluation", {"mels": splits["choice"]}),
    }
    model = optkit.Model.open(zoo.speaker_encoder(), factory=factory, signature=signature)
    return Subject(
        name="speaker",
        title="Resemblyzer speaker encoder (3-layer LSTM, 1.4 M)",
        model=zoo.speaker_encoder(),
        factory=factory,
        signature=signature,
        baseline=export("speaker", model, data),
        points=({"batch": 1}, {"batch": 8}),
        calibration=batches({"mels": splits["calibration"]}, 1),
        evaluation=batches({"mels": mels}, 8),
        score=scores.voices("embedding"),
        headline="cosine",
        feeds=lambda point: list(batches({"mels": mels}, point["batch"])[:4]),
        data=data,
    )


def _utterances(seed: int, voices: int, each: int) -> Array:
    """Mels of ``each`` utterances of every voice: float32[voices * each, 160, 40]."""
    made_up = (sounds.speech(1.7, 1000 * seed + voice, 77 * voice + n) for voice in range(voices) for n in range(each))
    return np.stack([sounds.mels(sound)[:160] for sound in made_up])


SUBJECTS: dict[str, Callable[[], Subject]] = {
    each.__name__: each
    for each in (minilm, efficientnet, detector, recognizer, classifier, silero, silero_ifless, speaker, smollm2)
}
"""By name, in the order of the tables; the last one needs several GB of memory."""
