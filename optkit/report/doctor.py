"""What ``optkit doctor`` found out about this installation, and as tables."""

from __future__ import annotations

from typing import Literal

from optkit.model.manifest import Fact
from optkit.report.tables import Table, size


class Feature(Fact):
    """One ability of the processor."""

    name: str
    """As people call it: VNNI, BF16, ..."""
    present: bool
    follows: str
    """What follows from having it, or from lacking it."""


class Extra(Fact):
    """One optional part of optkit."""

    name: str
    """As in ``pip install 'optkit[NAME]'``."""
    brings: str
    """What it makes possible."""
    missing: tuple[str, ...]
    """Distributions of it that are not installed; empty = all there."""
    command: str
    """What installs it."""


class Problem(Fact):
    """Something that is wrong here."""

    what: str
    fix: str


class Processor(Fact):
    """What computes, and how much of it this process may use."""

    name: str
    arch: str
    physical_cores: int
    logical_cores: int
    affinity: int
    """Logical cores that the scheduler lets this process use."""
    cgroup_limit: float | None
    """Cores' worth of time that the cgroup grants; null = no limit."""
    threads: int
    """What optkit uses by default."""
    memory_bytes: int
    """Of the machine, or the cgroup's limit where that is lower."""
    memory_available_bytes: int
    gpus: tuple[str, ...]
    """NVIDIA devices whose driver is loaded."""


class CacheFacts(Fact):
    """The cache of finished steps."""

    path: str
    entries: int
    size_bytes: int
    cap_bytes: int
    writable: bool


class Diagnosis(Fact):
    """This installation on this machine."""

    optkit: str
    python: str
    platform: str
    packages: dict[str, str]
    """Distribution -> installed version, of those that optkit can use."""
    providers: tuple[str, ...]
    """Short names of the execution providers that can run here."""
    processor: Processor
    features: tuple[Feature, ...]
    extras: tuple[Extra, ...]
    cache: CacheFacts | None
    """Null where its settings cannot be read, see ``problems``."""
    problems: tuple[Problem, ...]

    @property
    def state(self) -> Literal["fine", "problems"]:
        """In one word."""
        return "problems" if self.problems else "fine"


def diagnosis_tables(found: Diagnosis) -> list[Table]:
    """All of it; the problems last, where eyes are."""
    return [_versions(found), _machine(found), _features(found), _extras(found), _problems(found)]


def _versions(found: Diagnosis) -> Table:
    own = [("optkit", found.optkit), ("python", found.python), ("platform", found.platform)]
    return Table("Versions", ("what", "version"), (*own, *found.packages.items()))


def _machine(found: Diagnosis) -> Table:
    cpu, cache = found.processor, found.cache
    limit = "none" if cpu.cgroup_limit is None else f"{cpu.cgroup_limit:g} cores"
    cores = f"{cpu.physical_cores} physical, {cpu.logical_cores} logical, {cpu.affinity} usable; cgroup limit {limit}"
    rows = [
        ("execution providers", ", ".join(found.providers) or "none"),
        ("processor", f"{cpu.name} ({cpu.arch})"),
        ("cores", cores),
        ("threads used by default", str(cpu.threads)),
        ("memory", f"{size(cpu.memory_bytes)}, {size(cpu.memory_available_bytes)} free"),
    ]
    rows += [("NVIDIA device", name) for name in cpu.gpus]
    if cache is not None:
        rows.append(("cache", cache.path))
        rows.append(
            ("cache size", f"{size(cache.size_bytes)} in {cache.entries} entries, at most {size(cache.cap_bytes)}")
        )
    return Table("Machine", ("what", "here"), tuple(rows))


def _features(found: Diagnosis) -> Table:
    rows = tuple((each.name, "yes" if each.present else "no", each.follows) for each in found.features)
    return Table("Processor features", ("feature", "there", "what follows"), rows)


def _extras(found: Diagnosis) -> Table:
    rows = [
        (each.name, each.brings, ", ".join(each.missing) or "nothing", each.command if each.missing else "")
        for each in found.extras
    ]
    return Table("Extras", ("extra", "what it brings", "missing", "command"), tuple(rows))


def _problems(found: Diagnosis) -> Table:
    return Table("Problems", ("what", "what to do"), tuple((each.what, each.fix) for each in found.problems))
