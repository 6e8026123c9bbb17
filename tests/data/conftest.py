"""One way to open data in these tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optkit.data.dataset import Dataset
from optkit.data.open import open_dataset
from optkit.data.spec import DataSource
from optkit.model.signature import Signature, parse_signature

Opener = Callable[..., Dataset]


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    """opened('x=float32[batch,3]', 'e.npz', samples=2) below tmp_path."""

    def run(signature: str, source: str, *, preprocess: Any = None, code: bool = False, **options: Any) -> Dataset:
        return open_dataset(
            "evaluation",
            DataSource(source=source, **options),
            signature=Signature(parse_signature(signature)),
            base=tmp_path,
            preprocess=preprocess or {},
            assets_dir=None,
            allow_code=code,
        )

    return run
