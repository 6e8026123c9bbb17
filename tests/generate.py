"""Writes what is generated (recipe schema, passes, families, JSON output schema), or checks that it is fresh.

python tests/generate.py            writes
python tests/generate.py --check    exit 1 with the names of stale files
"""

import json
import sys
from pathlib import Path

from optkit.passes._fusion.families import FAMILIES
from optkit.recipe.schema import passes_page, schema_text
from optkit.report.json import output_schema

ROOT = Path(__file__).resolve().parents[1]
FUSING = ROOT / "docs" / "fusing.md"
MARKS = "<!-- families -->\n", "<!-- /families -->\n"
"""Between them in ``FUSING`` stands the table of families."""


def families() -> str:
    """The page with its table as the code has it."""
    rows = (
        f"| `{each.name}` | `{each.rewrite}` | {_where(each.devices)}{f'; {each.why}' if each.why else ''} |\n"
        for each in FAMILIES
    )
    before, rest = FUSING.read_text().split(MARKS[0])
    head = "| family | before -> after | without measuring |\n| --- | --- | --- |\n"
    return "".join([before, MARKS[0], head, *rows, MARKS[1], rest.split(MARKS[1])[1]])


def _where(devices: frozenset[str]) -> str:
    names = {"cpu": "CPU", "gpu": "GPU"}
    return " and ".join(names[device] for device in sorted(devices)) or "nowhere"


def wanted() -> dict[Path, str]:
    """File -> the text it should have."""
    return {
        ROOT / "recipes" / "schema.json": schema_text(),
        ROOT / "recipes" / "PASSES.md": passes_page(),
        FUSING: families(),
        ROOT / "docs" / "output.schema.json": json.dumps(output_schema(), indent=2, ensure_ascii=False) + "\n",
    }


def stale() -> list[Path]:
    """The generated files that are missing or differ."""
    return [path for path, text in wanted().items() if not path.is_file() or path.read_text() != text]


def main() -> int:
    """Write, or check with ``--check``."""
    if "--check" in sys.argv:
        for path in stale():
            print(f"stale: {path.relative_to(ROOT)}; run: make generate", file=sys.stderr)
        return 1 if stale() else 0
    for path, text in wanted().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
