"""The figures: images of the expected size with something on them, and no state left in Matplotlib."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from run_builder import MakeRun, edit

from fedbicross_flwr.report import load_run
from fedbicross_flwr.report.figures import (
    FIGURES,
    NothingToDrawError,
    draw_accuracy,
    draw_clustering,
    draw_partition,
    draw_weights,
    write_figures,
)
from fedbicross_flwr.report.figures.synthetic import GAP, contact_sheet
from fedbicross_flwr.report.record import SyntheticImages
from fedbicross_flwr.report.style import DARK, DPI, LIGHT, WIDTH, Theme, context, figure, fonts, label, png


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def test_every_figure_is_a_picture_of_the_expected_size(run_folder: Path) -> None:
    written = write_figures(load_run(run_folder), run_folder / "figures")
    assert [path.name for path in written] == [f"{name}.png" for name in FIGURES]
    for path in written:
        image = pixels(path)
        assert abs(image.shape[1] - WIDTH * DPI) <= 1
        assert image.shape[0] > DPI
        assert image.std() > 5, f"{path.name} is empty"
    assert sorted(path.name for path in (run_folder / "figures").iterdir()) == sorted(p.name for p in written)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_nothing_is_drawn_over_the_edge(run_folder: Path, theme: Theme) -> None:
    run = load_run(run_folder)
    surface = 255 * np.array(to_rgb(theme.surface))
    for name, draw in FIGURES.items():
        with Image.open(io.BytesIO(png(draw(run, theme), theme))) as picture:
            image = np.asarray(picture.convert("RGB"), dtype=np.float64)
        # A cut label leaves ink on the outermost pixels.
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert np.abs(edge - surface).max() <= 2, f"{name} touches the edge in the {theme.name} theme"


def test_many_clients_and_clusters_with_long_names(make_run: MakeRun) -> None:
    names = tuple(
        f"actinic keratoses and intraepithelial carcinoma of a long name {index}" for index in range(11)
    )
    run = load_run(make_run(clients=20, clusters=8, classes=names, steps=5, rounds=1))
    surface = 255 * np.array(to_rgb(LIGHT.surface))
    for name in ("clustering", "partition", "synthetic"):
        with Image.open(io.BytesIO(png(FIGURES[name](run, LIGHT), LIGHT))) as picture:
            image = np.asarray(picture.convert("RGB"), dtype=np.float64)
        assert np.abs(image[:, 0] - surface).max() <= 2, f"{name} cuts its labels"


def test_drawing_leaves_matplotlib_as_it_was(run_folder: Path) -> None:
    before = dict(mpl.rcParams)
    for draw in FIGURES.values():
        draw(load_run(run_folder), DARK)
    assert dict(mpl.rcParams) == before


def test_equal_runs_give_equal_files(run_folder: Path) -> None:
    run = load_run(run_folder)
    assert png(draw_weights(run, LIGHT), LIGHT) == png(draw_weights(run, LIGHT), LIGHT)


def test_the_partition_shows_every_count(run_folder: Path) -> None:
    run = load_run(run_folder)
    drawn = {text.get_text() for text in draw_partition(run).axes[0].texts}
    for client in run.clients:
        assert {f"{number:,}" for number in client.class_counts or ()} <= drawn


def test_clients_stand_by_cluster(run_folder: Path) -> None:
    axes = draw_clustering(load_run(run_folder)).axes[0]
    # Clients 0..4 are dealt to three clusters in turn.
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"client {c}" for c in (0, 3, 1, 4, 2)]
    names = [text.get_text() for text in axes.texts if text.get_text().startswith("cluster")]
    assert names == ["cluster 0", "cluster 1", "cluster 2"]


def test_accuracy_has_a_dot_a_client_and_a_panel_a_protocol(make_run: MakeRun) -> None:
    figure = draw_accuracy(load_run(make_run(failed=(2,))))
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert [np.shape(dots.get_offsets())[0] for dots in axes.collections] == [4] * 6


def test_weights_draw_each_source_in_each_target(run_folder: Path) -> None:
    run = load_run(run_folder)
    assert run.weights is not None
    panels = draw_weights(run).axes
    assert len(panels) == 3
    for target, axes in enumerate(panels):
        for source, line in enumerate(axes.lines):
            np.testing.assert_array_equal(line.get_ydata(), run.weights.weights[:, target, source])


def test_the_contact_sheet_puts_each_class_in_its_row() -> None:
    images = np.stack([np.full((1, 4, 4), value, np.float32) for value in (-1, 1, 0, 9)])
    sheet = contact_sheet(SyntheticImages(0, images, np.array([1, 0, 1, 1])), classes=3, columns=2)
    assert sheet.shape == (3 * (4 + GAP) - GAP, 2 * (4 + GAP) - GAP, 4)
    below = 4 + GAP
    assert sheet[0, 0].tolist() == [1, 1, 1, 1]
    assert sheet[below, 0].tolist() == [0, 0, 0, 1]
    assert sheet[below, below].tolist() == [0.5, 0.5, 0.5, 1]
    assert sheet[0, below, 3] == 0, "a class with one image leaves its second place transparent"
    assert sheet[2 * below :].max() == 0, "a class without images leaves its row transparent"


def test_unknown_class_counts_leave_the_partition_out(make_run: MakeRun) -> None:
    run = load_run(make_run(deployment=True, clusters=1))
    with pytest.raises(NothingToDrawError, match="did not disclose"):
        draw_partition(run)
    with pytest.raises(NothingToDrawError, match="single cluster"):
        draw_weights(run)


def test_a_figure_that_can_no_longer_be_drawn_is_removed(run_folder: Path) -> None:
    figures = run_folder / "figures"
    write_figures(load_run(run_folder), figures)
    (run_folder / "inversion.json").unlink()
    write_figures(load_run(run_folder), figures)
    assert {path.stem for path in figures.iterdir()} == set(FIGURES) - {"inversion"}


def test_a_dollar_sign_is_no_formula(run_folder: Path) -> None:
    edit(
        run_folder / "run.json", lambda content: content["dataset"]["class_names"].__setitem__(0, r"$\bad{$")
    )
    run = load_run(run_folder)
    for name in ("partition", "synthetic"):
        assert png(FIGURES[name](run, LIGHT), LIGHT)
    assert label("a $5 and $6 note") == r"a \$5 and \$6 note"


def test_a_diverged_inversion_is_still_drawn(run_folder: Path) -> None:
    edit(
        run_folder / "inversion.json",
        lambda content: content[0]["cross_entropy"].__setitem__(5, float("nan")),
    )
    edit(run_folder / "inversion.json", lambda content: content[1].update(batch_norm=[float("inf")] * 80))
    assert png(FIGURES["inversion"](load_run(run_folder), LIGHT), LIGHT)


def test_letters_that_one_font_lacks_come_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedbicross_flwr.report.style.OTHER_SCRIPTS", ("no such font", "STIXGeneral"))
    fonts.cache_clear()
    try:
        assert fonts() == ["DejaVu Sans", "STIXGeneral"]
        with warnings.catch_warnings(), context(LIGHT):
            warnings.simplefilter("error")
            made = figure(1.0)
            made.text(0.1, 0.5, "A\u2313")  # a segment, which Matplotlib's other font alone has
            assert png(made, LIGHT)
    finally:
        fonts.cache_clear()
