"""Sessions of onnxruntime that passes make for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from optkit.model.model import config_entries

if TYPE_CHECKING:
    import onnxruntime

SILENT = 4
"""Severity of what is logged: nothing but fatal errors."""


def session_options(session: Mapping[str, str]) -> onnxruntime.SessionOptions:
    """Silent ones with the config entries among a model's session options; properties are for those who run it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    for key, value in config_entries(session).items():
        options.add_session_config_entry(key, value)
    return options
