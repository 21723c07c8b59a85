"""Writes the report of a run: its figures, and one HTML page that holds everything."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.report import view
from fedbicross_flwr.report.css import CSS
from fedbicross_flwr.report.figures import Rendered, render_figures, write_rendered
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.render import title
from fedbicross_flwr.report.run_folder import load_run
from fedbicross_flwr.report.style import DARK, LIGHT
from fedbicross_flwr.report.table import MEAN, METRICS, PROTOCOL_TITLES, WORST, results_table, shown
from fedbicross_flwr.report.template import TEMPLATE
from fedbicross_flwr.report.units import human_bytes


def write_report(folder: Path) -> Path:
    """Write ``figures/*.png`` and ``report.html`` into a run folder.

    The page is one file: figures are inlined, in a light and a dark form, and it loads nothing. A part
    that the run did not write is left out, and the page says so. Equal folders give equal pages.

    Parameters
    ----------
    folder : Path
        ``runs/<id>``.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    FedBiCrossError
        When the folder is no run folder, a file in it is damaged, or the report cannot be written.
    """
    run = load_run(folder)
    light = render_figures(run, LIGHT)
    write_rendered(light, run.folder / "figures")
    page = render_page(run, light, render_figures(run, DARK))
    return write_bytes(run.folder / "report.html", page.encode("utf-8"))


def render_page(run: RunRecord, light: Rendered, dark: Rendered) -> str:
    """Return the page as HTML; every value of the run is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE).render(_context(run, light, dark))


def _context(run: RunRecord, light: Rendered, dark: Rendered) -> dict[str, Any]:
    table = results_table(run) if run.results else None
    return {
        # The style sheet is this package's own text: escaping it would break its selectors.
        "css": Markup(CSS),
        "run": run,
        "facts": view.facts(run),
        "warnings": view.warnings(run),
        "exchange": view.exchange(run),
        "subject": view.subject(table.rows) if table else None,
        "shown_parts": view.shown_parts(run, light.images),
        "headlines": view.headlines(table) if table else (),
        "table": table,
        "titles": PROTOCOL_TITLES,
        "metrics": METRICS,
        "statistics": (MEAN, WORST),
        "shown": shown,
        "title": title,
        "human_bytes": human_bytes,
        "protocols": table.protocols if table else (),
        "clients": view.client_lines(run),
        "clustering_text": view.clustering_text(run),
        "synthetic_text": view.synthetic_text(run),
        "traffic": view.traffic(run),
        "timings": view.timings(run),
        "light": _inlined(light),
        "dark": _inlined(dark),
        "left_out": light.left_out,
        "hardware": (("runner", run.runner), *run.hardware.items()),
        "dataset": (
            ("name", run.dataset.name),
            ("classes", ", ".join(run.dataset.class_names)),
            ("channels", run.dataset.channels),
            ("licence", run.dataset.licence),
            ("source", run.dataset.source),
        ),
        "files": [(name, human_bytes(size)) for name, size in run.files.items()],
    }


def _inlined(rendered: Rendered) -> dict[str, str]:
    return {
        name: f"data:image/png;base64,{b64encode(image).decode('ascii')}"
        for name, image in rendered.images.items()
    }
