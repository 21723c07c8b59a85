"""Reports: reads a run folder and writes tables, figures and one self-contained HTML page."""

from fedbicross_flwr.report.page import write_report
from fedbicross_flwr.report.render import render_csv, render_markdown, render_terminal
from fedbicross_flwr.report.run_folder import load_run
from fedbicross_flwr.report.seeds_table import seeds_table
from fedbicross_flwr.report.table import results_table

__all__ = [
    "load_run",
    "render_csv",
    "render_markdown",
    "render_terminal",
    "results_table",
    "seeds_table",
    "write_report",
]
