"""Tables for LaTeX documents, with booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "α": r"$\alpha$",
    "–": "--",
    "−": r"$-$",
    "†": r"$^\dagger$",
    "’": "'",
    "×": r"$\times$",
}
TABLE = str.maketrans(SPECIAL)
LAST_LATIN = "\u024f"
"""pdfLaTeX sets letters up to here; it stops at one beyond."""


def escape(text: str) -> str:
    """Return a text that LaTeX prints as it stands."""
    return text.translate(TABLE)


def bold(text: str) -> str:
    """Return text that is already LaTeX in bold."""
    return rf"\textbf{{{text}}}"


def latex_table(
    header: Sequence[str],
    groups: Sequence[Sequence[Sequence[str]]],
    caption: str,
    label: str,
    notes: Sequence[str] = (),
) -> str:
    r"""Return a ``table*`` as wide as the page.

    Parameters
    ----------
    header : sequence of str
        Plain text; the first column is to the left, all others to the right.
    groups : sequence of groups of rows of str
        Cells that are already LaTeX; a rule parts the groups.
    caption, label : str
        Plain text; of the label, what LaTeX does not take in one becomes a hyphen, and a letter outside
        ASCII its number, so that two names stay two labels.
    notes : sequence of str
        Plain text, below the table.
    """
    lines = [" & ".join(escape(title) for title in header) + r" \\"]
    for rows in groups:
        lines.append(r"\midrule")
        lines += [" & ".join(row) + r" \\" for row in rows]
    body = "\n".join(lines)
    below = "".join(f"\\par\\smallskip\\footnotesize {escape(note)}\n" for note in notes)
    ascii_label = "".join(sign if sign.isascii() else f"{ord(sign):x}" for sign in label)
    fitting = re.sub(r"[^A-Za-z0-9:._-]", "-", ascii_label)
    latin = max(escape(caption) + body) <= LAST_LATIN
    engine = "" if latin else "; XeLaTeX or LuaLaTeX, with a font that has these letters"
    return (
        f"% needs \\usepackage{{booktabs,graphicx}}{engine}\n"
        "\\begin{table*}\n\\centering\n"
        f"\\caption{{{escape(caption)}}}\n\\label{{{fitting}}}\n"
        "\\resizebox{\\textwidth}{!}{%\n"
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}\n\\toprule\n{body}\n"
        "\\bottomrule\n\\end{tabular}}\n"
        f"{below}\\end{{table*}}\n"
    )
