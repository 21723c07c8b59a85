"""Draws the contact sheet of the phantom that the documentation shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fedbicross_flwr.data.phantom import PhantomSource


def draw_contact_sheet(path: Path, *, columns: int = 12, scale: int = 3, seed: int = 0) -> None:
    """Write a PNG with one row a class, its name at the left, and `columns` images of the training part.

    Parameters
    ----------
    path : Path
        The file to write; it appears only when complete.
    columns : int
        Images a class (default 12).
    scale : int
        Size of a phantom's pixel in the picture (default 3).
    seed : int
        The phantom's seed (default 0).
    """
    source = PhantomSource(seed=seed)
    labels = source.labels("train")
    cell, margin = source.info.size * scale + 4, 190
    sheet = Image.new("RGB", (margin + columns * cell, source.info.num_classes * cell), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for row, name in enumerate(source.info.class_names):
        pen.text((8, row * cell + cell // 2), name, fill="black", font=font, anchor="lm")
        images = source.images("train", np.flatnonzero(labels == row)[:columns])
        for column, image in enumerate(images):
            enlarged = Image.fromarray(image).resize((cell - 4, cell - 4), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (margin + column * cell, row * cell + 2))
    temporary = path.with_name(f".{path.name}.part")
    sheet.save(temporary, format="PNG", optimize=True)
    temporary.replace(path)
