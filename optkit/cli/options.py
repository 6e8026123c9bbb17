"""Options that several verbs share, said once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the facts as JSON on stdout, also on failure.")]
Factory = Annotated[
    str | None,
    typer.Option(metavar="PKG.MODULE:FN|FILE.py:FN", help="Code that builds the module for a state_dict."),
]
Signature = Annotated[
    str | None,
    typer.Option(metavar="'x=float32[batch,3,224,224]'", help="Inputs, where the model does not say; ';' between."),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Allow code inside the model file to run. Only for files you trust.")
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="[SPLIT=]PATH", help="Data of a split; a bare path is evaluation. Repeatable."),
]
Metric = Annotated[str | None, typer.Option(help="Task metric: top1, f1, mse, ... or pkg.module:Class.")]
Limit = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="KEY=VALUE", help="A limit, like cosine=0.995 or metric_drop=0.01. Repeatable."),
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="passes.ID.option=value. Repeatable.")
]
SyntheticCalibration = Annotated[
    bool, typer.Option("--allow-synthetic-calibration", help="Calibrate on made-up inputs where there are no data.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of every random choice. (default: 0)")]
Provider = Annotated[
    str | None, typer.Option(help="Execution provider: cpu, cuda, tensorrt, openvino, directml, coreml, ...")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Intra-op threads; default: as many as may be used.")]
Junit = Annotated[Path | None, typer.Option(help="Write the verdict as JUnit XML.")]
Markdown = Annotated[Path | None, typer.Option(help="Write the report as Markdown.")]


ASKED = frozenset(
    {
        *("factory", "signature", "trust_pickle", "data", "metric", "limits", "provider", "threads"),
        *("allow_synthetic_calibration", "seed"),
    }
)
"""What the pipeline's functions take under the same name."""


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a verb's arguments, as its ``locals()`` has them first thing, those of ``ASKED`` that were given at all."""
    return {key: value for key, value in arguments.items() if key in ASKED and value not in (None, [], False)}
