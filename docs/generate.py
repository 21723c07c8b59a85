"""Writes what the documentation has from the code: `make docs`.

- ``docs/configuration.md``, the reference of all settings, from the declarations in `fedbicross_flwr.config`;
- the block ``[tool.flwr.app.config]`` at the end of ``pyproject.toml``, which tells Flower the defaults;
- the tables of ``docs/results.md``, from the records in ``results/``;
- ``docs/pictures/phantom.png``, the phantom's contact sheet.

With ``--check`` nothing is written, and the exit status is 1 if one of the texts is not up to date.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedbicross_flwr.compare.commands import table_text
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.phantom_sheet import draw_contact_sheet
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.runs.folder import to_toml
from fedbicross_flwr.settings import Scalar, read_toml, walk

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT, REFERENCE = ROOT / "pyproject.toml", ROOT / "docs" / "configuration.md"
PAPER, PICTURE = ROOT / "configs" / "paper.toml", ROOT / "docs" / "pictures" / "phantom.png"
RESULTS, RECORDS = ROOT / "docs" / "results.md", ROOT / "results"
CELL = re.compile(r"(<!-- cell (\S+) -->\n)(?:(?!<!-- cell ).)*?(?=<!-- end -->)", re.DOTALL)
"""Where the table of a cell stands in the results; what is between the marks is written."""
MARK = "# --- run configuration: the defaults of fedbicross_flwr/config.py, written by `make docs` ---\n"
TABLE = "tool.flwr.app.config"

HEADER = ("setting", "default", "paper.toml", "values", "what it does", "source")
INTRODUCTION = """\
# Configuration

<!-- Written by `make docs` from fedbicross_flwr/config.py; changes belong there. -->

A run is described by the settings below and by nothing else. A setting is given

- in a TOML file, one table a section: `fedbicross simulate --config configs/paper.toml`;
- on the command line, over the file: `--set partition.alpha=0.1`, as often as needed; the last counts;
- under plain Flower: `flwr run . --run-config "partition.alpha=0.1"`, or `--run-config configs/paper.toml`.

What is not given has its default. An unknown setting, a wrong type or a value out of range is refused in one
line that names the setting. A number without an upper bound below is at most 2147483647 if it is an integer,
else 1e38. The configuration as it was resolved is kept in the run's folder, in `config.toml`.

The defaults are this project's own preset, at a size for two CPU cores. The column *paper.toml* shows the
value in `configs/paper.toml`, which holds the paper's values, where it differs. The last column says where a
setting, or a value that differs from the default, comes from: a section, equation or algorithm of the paper
(IV-A is its experimental setup), or FedISCA (Kang et al., MICCAI 2023), on whose recipe the paper builds.
[The method, equation by equation](method.md) says what the settings decide.
"""


def reference(paper: Mapping[str, Scalar]) -> str:
    """Return ``configuration.md``; `paper` are the flat settings of ``configs/paper.toml``."""
    config = RunConfig()
    sections: dict[str, list[tuple[str, ...]]] = {}
    for key, declared, value in walk(config):
        section = key.rpartition(".")[0]
        sections.setdefault(section, []).append(row(key, declared, value, paper.get(key, value)))
    blocks = [INTRODUCTION, "## The run\n", table(sections.pop(""))]
    for name, rows in sections.items():
        summary = (inspect.getdoc(type(getattr(config, name))) or "").replace("``", "`")
        blocks += [f"## `[{name}]`\n", f"{summary}\n", table(rows)]
    return "\n".join([*blocks, footer(config)])


def row(key: str, declared: dataclasses.Field[Any], value: Scalar, paper: Scalar) -> tuple[str, ...]:
    """Return one setting's cells, in the order of `HEADER`."""
    rules = declared.metadata
    differs = f"`{literal(paper)}`" if paper != value else ""
    return (f"`{key}`", f"`{literal(value)}`", differs, values(declared), rules["doc"], rules["source"])


def literal(value: Scalar) -> str:
    """Return a value as TOML writes it; a JSON scalar is a TOML scalar."""
    return "inf" if value == float("inf") else json.dumps(value, ensure_ascii=False)


def values(declared: dataclasses.Field[Any]) -> str:
    """Return what a setting may be: its type, bounds and words."""
    rules = declared.metadata
    if rules["choices"]:
        return ", ".join(f"`{choice}`" for choice in rules["choices"])
    kind = {bool: "true or false", int: "integer", float: "number", str: "text"}[type(declared.default)]
    low, above, high = rules["low"], rules["above"], rules["high"]
    if low is not None and high is not None:
        kind += f" {low:.10g} to {high:.10g}"
    elif low is not None:
        kind += f" ≥ {low:g}"
    elif above is not None:
        kind += f" > {above:g}" + (f", ≤ {high:g}" if high is not None else "")
    words = [*rules["words"], *(["inf"] if rules["infinite"] else [])]
    return " or ".join([kind, *(f"`{word}`" for word in words)])


def table(rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table under `HEADER`; a bar inside a cell is escaped."""
    cells = [HEADER, ("---",) * len(HEADER), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in cells)


def footer(config: RunConfig) -> str:
    """Return the paragraph on settings that a run may change when it is taken up again."""
    passing = [f"`{key}`" for key, declared, _ in walk(config) if not declared.metadata["shapes_result"]]
    return (
        "## Taking up a run\n\n"
        "A folder belongs to one configuration: a run is taken up again only with the same values of the "
        "settings that its method\nreads. Those of other methods, and in a simulation those of `deployment`, "
        "may change. Of what it reads these alone may\ndiffer, as they do not shape the result: "
        f"{', '.join(passing)}.\n"
    )


def with_defaults(pyproject: str) -> str:
    """Return pyproject.toml with the block of defaults, which runs from its mark to the end, written anew."""
    before, mark, _ = pyproject.partition(MARK)
    if not mark:
        sys.exit(f"error: {PYPROJECT} has no line {MARK.strip()!r}; put it back before [{TABLE}]")
    return f"{before}{mark}[{TABLE}]\n{to_toml(RunConfig()).replace(f'{chr(10)}[', f'{chr(10)}[{TABLE}.')}"


def with_tables(page: str) -> str:
    """Return the page of results with each marked table as the records have it."""
    if len(CELL.findall(page)) != page.count("<!-- cell "):
        sys.exit(f"error: {RESULTS}: a line '<!-- cell ... -->' has no '<!-- end -->' of its own")
    return CELL.sub(lambda found: f"{found[1]}\n{table_text(found[2], RECORDS, 'markdown')}\n", page)


def outdated() -> Iterator[tuple[Path, str]]:
    """Yield every generated text that is not up to date, with what it should be."""
    pyproject = PYPROJECT.read_text(encoding="utf-8")
    wanted = {
        REFERENCE: reference(read_toml(PAPER)),
        PYPROJECT: with_defaults(pyproject),
        RESULTS: with_tables(RESULTS.read_text(encoding="utf-8")),
    }
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            yield path, text


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; say whether the texts are up to date.")
    ] = False,
) -> None:
    """Write the generated parts of the documentation."""
    texts = dict(outdated())
    if check:
        if texts:
            names = ", ".join(str(path.relative_to(ROOT)) for path in texts)
            print(f"error: not up to date: {names}; run `make docs`", file=sys.stderr)
            sys.exit(1)
        return
    for path, text in texts.items():
        write_bytes(path, text.encode())
    draw_contact_sheet(PICTURE)


if __name__ == "__main__":
    typer.run(main)
