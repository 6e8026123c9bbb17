"""optkit bench"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optkit.cli import options as shared
from optkit.cli.door import answer
from optkit.cli.reports import report_writer
from optkit.cli.words import parse_counts, parse_dims, parse_entries, parse_load, parse_rules


def bench(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL[@ENGINE]", help="The baseline, then what to compare with it.")
    ],
    inputs: Annotated[Path | None, typer.Option("--input", "-i", help="As of run; default: evaluation data.")] = None,
    dims: Annotated[list[str] | None, typer.Option(metavar="NAME=N[,N]", help="Sizes: batch=1,8. Repeatable.")] = None,
    threads: Annotated[list[str] | None, typer.Option(metavar="N[,N]", help="Numbers of intra-op threads.")] = None,
    provider: shared.Provider = None,
    factory: shared.Factory = None,
    signature: shared.Signature = None,
    trust_pickle: shared.TrustPickle = False,
    data: shared.Data = None,
    session: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Session entry. Repeatable.")] = None,
    budget: Annotated[float | None, typer.Option(help="Seconds a point, first start aside. (default: 10)")] = None,
    precision: Annotated[float | None, typer.Option(help="Noise at which to stop earlier. (default: 0.01)")] = None,
    margin: Annotated[float | None, typer.Option(help="Share up to which is the same. (default: 0.02)")] = None,
    launches: Annotated[int | None, typer.Option(help="Starts of each candidate, at most. (default: 8)")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every random choice. (default: 0)")] = None,
    noise_floor: Annotated[bool, typer.Option("--noise-floor", help="Time the baseline against itself too.")] = False,
    load: Annotated[str | None, typer.Option(metavar="RATE", help="Requests that do not wait, too: 200/s.")] = None,
    load_seconds: Annotated[float | None, typer.Option(help="How long --load lasts, each. (default: 10)")] = None,
    samples: Annotated[bool, typer.Option("--samples/--no-samples", help="Raw samples in the JSON.")] = True,
    markdown: shared.Markdown = None,
    json: shared.JsonFlag = False,
) -> None:
    """Time models against the first one, in turn and a process each: faster, same or slower.

    ENGINE after MODEL: eager or compile (torch), openvino, or an execution provider of onnxruntime.
    """
    rules = parse_rules(locals())

    def work() -> Any:
        from optkit.bench.measure import Rules
        from optkit.cli.progress import bar
        from optkit.pipeline.bench import Load, bench
        from optkit.pipeline.candidates import About

        about = About(factory, signature, trust_pickle, provider, parse_entries(session or ()))
        offered = parse_load(load, load_seconds)
        with bar() as watch:
            return bench(
                models,
                inputs=inputs,
                data=data,
                dims=parse_dims(dims or ()),
                threads=parse_counts("--threads", threads or ()),
                rules=Rules(**rules),
                noise_floor=noise_floor,
                load=Load(**offered) if offered else None,
                samples=samples and json,
                about=about,
                watch=watch,
            )

    def show(facts: Any) -> None:
        from optkit.cli.render_bench import show_bench

        show_bench(facts)

    def words(facts: Any) -> str:
        from optkit.report.bench import bench_markdown

        return bench_markdown(facts)

    on_end = report_writer("optkit bench", None, markdown, words)
    answer("bench", json, work, show, show_missed=show, on_end=on_end, remind=True)
