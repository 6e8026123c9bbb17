"""Candidates of a bench from ``MODEL[@ENGINE]``: opened, labelled, each with the engine and provider it runs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from optkit.bench.measure import Candidate
from optkit.errors import ModelError, UsageError
from optkit.model.model import Model
from optkit.model.signature import Signature
from optkit.model.target import Target
from optkit.pipeline.infer import with_signature
from optkit.pipeline.origin import Origin, read_origin
from optkit.runner.engine import Chosen, parse_engine
from optkit.runner.session import check


@dataclass(frozen=True)
class About:
    """What was said about the models; each takes of it what it needs."""

    factory: str | None = None
    """For those that cannot be opened without one."""
    signature: str | None = None
    trust_pickle: bool = False
    provider: str | None = None
    """For those on onnxruntime that name none themselves."""
    session: Mapping[str, str] = field(default_factory=dict)
    """Session options, see ``optkit.runner.session``, over a model's own; torch has none."""


@dataclass(frozen=True)
class Entrant:
    """A candidate with its label, and the manifest of its bundle."""

    label: str
    candidate: Candidate
    origin: Origin | None = None

    @property
    def model(self) -> Model:
        """What it runs."""
        return self.candidate.model

    def with_model(self, model: Model) -> Entrant:
        """The same about a completed model."""
        return replace(self, candidate=replace(self.candidate, model=model))


def open_entrants(models: Sequence[str | Path | Model], about: About) -> list[Entrant]:
    """All candidates, the baseline first; none of their code is run. A label that comes again gets a number.

    Raises:
        UsageError: no candidate, an unknown engine or session option, or an option that none of them can use.
        ModelError: a model that cannot be opened.
    """
    if not models:
        raise UsageError("There is no model to measure.", expected="at least one", fix="name a model")
    check(about.session)
    found = [_entrant(model, about) for model in models]
    _refuse_idle(found, about)
    seen: Counter[str] = Counter()
    unique = []
    for entrant in found:
        seen[entrant.label] += 1
        count = seen[entrant.label]
        unique.append(replace(entrant, label=f"{entrant.label} ({count})") if count > 1 else entrant)
    return unique


def _entrant(given: str | Path | Model, about: About) -> Entrant:
    if isinstance(given, Model):
        label, path, chosen, model = str(given.path), None, Chosen(), given
    else:
        label = str(given)
        path, chosen = parse_engine(label)
        model = _opened(path, about)
    model = with_signature(model)
    origin = read_origin(model, bundle=path is not None and path.is_dir())
    session = {} if model.form == "torch" else {**chosen.session, **about.session}
    return Entrant(label, Candidate(model, _target(model, chosen, origin, about), session, label), origin)


def _opened(path: Path, about: About) -> Model:
    """The model; a factory is for those that cannot be opened without one, and refused by all others."""
    try:
        return Model.open(path, signature=about.signature, trust_pickle=about.trust_pickle)
    except ModelError:
        if about.factory is None:
            raise
    return Model.open(path, factory=about.factory, signature=about.signature, trust_pickle=about.trust_pickle)


def _target(model: Model, chosen: Chosen, origin: Origin | None, about: About) -> Target:
    """Engine and provider as named, else the provider that was asked for, that a bundle was made for, or the CPU."""
    made_for = origin.recipe.target.target() if origin else Target()
    own = chosen.engine not in ("", "onnxruntime") or model.form == "torch"
    provider = "cpu" if own else chosen.provider or about.provider or made_for.provider
    return Target(provider, 0, made_for.shapes, chosen.engine)


def _refuse_idle(found: Sequence[Entrant], about: About) -> None:
    """Options that no candidate can use are refused instead of ignored.

    Raises:
        UsageError: there is one.
    """
    on_ort = [each for each in found if each.model.form != "torch" and not each.candidate.target.engine]
    idle = [
        ("--factory", about.factory, [each for each in found if each.model.factory], "a state_dict or .safetensors"),
        ("--provider", about.provider != "cpu" and about.provider, on_ort, "an ONNX model without @ENGINE"),
        ("--session", about.session, [each for each in found if each.model.form != "torch"], "an ONNX model"),
    ]
    for option, given, users, wanted in idle:
        if given and not users:
            raise UsageError(
                f"{option} is for none of these models.", expected=f"{wanted} among them", fix=f"leave {option} out"
            )


def share_inputs(found: Sequence[Entrant]) -> list[Entrant]:
    """Those that do not say what their inputs are get them from the first that does."""
    known = next((each.model.signature.inputs for each in found if each.model.signature.inputs), ())
    return [
        each
        if each.model.signature.inputs
        else each.with_model(each.model.with_signature(Signature(known, each.model.signature.outputs)))
        for each in found
    ]
