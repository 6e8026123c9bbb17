"""Every test session (and every worker of it) has a cache, logs and results of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing a test does reaches the user's cache or logs, nor depends on what lies there."""
    base = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTKIT_CACHE", str(base / "cache"))
        patch.setenv("XDG_STATE_HOME", str(base / "state"))
        for name in ("OPTKIT_CACHE_SIZE", "GITHUB_STEP_SUMMARY", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        yield
