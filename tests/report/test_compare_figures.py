"""Figures of a comparison: not blank, drawn from the right numbers, or left out with a reason."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_builder import FLOWER_LEVELS, MODEL, ROUNDS, build_comparison
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from run_builder import edit
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from fedbicross_flwr.compare.collect import Comparison, collect
from fedbicross_flwr.compare.commands import figure
from fedbicross_flwr.compare.figures import FIGURES, draw_images, write_comparison_figures
from fedbicross_flwr.compare.figures.by_alpha import draw_by_alpha
from fedbicross_flwr.compare.figures.cluster_count import (
    AUTOMATIC_MARKER,
    by_clusters,
    chosen_clusters,
    draw_cluster_count,
)
from fedbicross_flwr.compare.figures.clusterings import draw_clusterings, rand_index
from fedbicross_flwr.compare.figures.cost import LEAST_SECONDS, draw_cost
from fedbicross_flwr.compare.figures.images import CLASS_GAP, GAP, dealt, strip
from fedbicross_flwr.compare.figures.looks import STRATEGIES, look_of, percent_of
from fedbicross_flwr.compare.figures.traffic import draw_traffic
from fedbicross_flwr.compare.variants import AUTOMATIC
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.figures.missing import NothingToDrawError
from fedbicross_flwr.report.record import SyntheticImages
from fedbicross_flwr.report.style import DPI, LIGHT, WIDTH, png

VARIANTS = ("fedavg", "dense", "fedbicross", "fedbicross-parameters", "fedbicross-K2", "central")
CELLS = (("phantom", 5, 0.1), ("phantom", 5, 0.3))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that tests only look at."""
    return build_comparison(tmp_path_factory.mktemp("comparison"), CELLS, VARIANTS, (0, 1))


@pytest.fixture(scope="module")
def comparison(out: Path) -> Comparison:
    return collect(out)


def data(drawn: Any) -> NDArray[np.float64]:
    """Return a line's coordinates as numbers."""
    return np.asarray(drawn, dtype=np.float64)


def test_every_figure_is_written_and_none_is_blank_or_cut(out: Path) -> None:
    written = write_comparison_figures(collect(out))
    expected = [*FIGURES, *(f"images-{data}-N{clients}-alpha{alpha:g}" for data, clients, alpha in CELLS)]
    assert [file.stem for file in written.files] == expected
    assert written.left_out == {}
    surface = 255 * np.array(to_rgb(LIGHT.surface))
    for file in written.files:
        assert file.parent == out / "figures"
        with Image.open(file) as picture:
            image = np.asarray(picture.convert("RGB"), dtype=np.float64)
        assert abs(image.shape[1] - WIDTH * DPI) <= 1
        assert image.std() > 5, f"{file.name} is empty"
        # A cut label leaves ink on the outermost pixels.
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
            assert np.abs(edge - surface).max() <= 2, f"{file.name} touches its edge"


def test_a_figure_without_data_is_left_out_with_its_reason(tmp_path: Path) -> None:
    build_comparison(tmp_path, variants=("fedavg",), seeds=(0,))
    stale = tmp_path / "figures" / "clusterings.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier call")
    written = write_comparison_figures(collect(tmp_path))
    drawn = ["cost", "accuracy-by-bytes"]
    assert [file.stem for file in written.files] == drawn
    assert set(written.left_out) == {*FIGURES, "images-phantom-N5-alpha0.3"} - set(drawn)
    assert "two alphas" in written.left_out["accuracy-by-alpha"]
    assert not stale.exists()


def test_the_papers_numbers_name_its_figures(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure("2", out)
    figure("3", out)
    names = [Path(line).stem for line in capsys.readouterr().out.splitlines()]
    assert names == ["clusterings", "images-phantom-N5-alpha0.1", "images-phantom-N5-alpha0.3"]
    with pytest.raises(FedBiCrossError, match=r"no figure 'clustering' \(did you mean clusterings"):
        figure("clustering", out)


def test_lines_over_alpha_hold_the_means(comparison: Comparison) -> None:
    axes = draw_by_alpha(comparison).axes[0]
    drawn = {tuple(np.round(data(line.get_ydata()), 6)) for line in axes.lines}
    means = []
    for cell in comparison.cells:
        runs = [record.results for _, record in cell.records("fedbicross")]
        rows = [results.row("FedBiCross") for results in runs if results is not None]
        seeds = [
            np.mean([s.accuracy for s in row.scores["global"].values()]) for row in rows if row is not None
        ]
        means.append(round(100 * float(np.mean(seeds)), 6))
    assert tuple(means) in drawn
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.1", "0.3"]


def test_five_clients_come_before_ten(tmp_path: Path) -> None:
    cells = [("phantom", clients, alpha) for clients in (10, 5) for alpha in (0.3, 0.1)]
    made = draw_by_alpha(collect(build_comparison(tmp_path, cells, ("fedavg",), (0,))))
    titles = [axes.get_title(loc="left") for axes in made.axes[::2]]
    assert [title.partition(":")[0] for title in titles] == ["phantom, N = 5", "phantom, N = 10"]


def test_a_long_name_of_data_takes_a_line_of_its_own(tmp_path: Path) -> None:
    cells = [("northern_clinic_of_24", 10, alpha) for alpha in (0.1, 0.3)]
    made = draw_by_alpha(collect(build_comparison(tmp_path, cells, ("fedavg", "dense"), (0,))))
    made.draw_without_rendering()
    for axes in made.axes:
        assert axes._left_title.get_window_extent().x1 <= made.bbox.x1  # type: ignore[attr-defined]  # no public way


def test_a_dollar_sign_in_the_name_of_data_is_no_formula(tmp_path: Path) -> None:
    cells = [("a$b_c_d$", 5, alpha) for alpha in (0.1, 0.3)]
    out = build_comparison(tmp_path, cells, ("fedavg", "dense"), (0, 1))
    for _, _, alpha in cells:
        shutil.rmtree(out / f"a$b_c_d$-N5-alpha{alpha}" / "fedavg" / "seed-1")
    made = draw_by_alpha(collect(out))
    assert made.get_suptitle() != ""
    made.draw_without_rendering()


@pytest.mark.parametrize(
    "draw", [draw_by_alpha, draw_clusterings, draw_cluster_count, draw_cost, draw_traffic]
)
def test_a_mean_of_fewer_seeds_is_named(
    draw: Callable[[Comparison], Figure], comparison: Comparison, tmp_path: Path
) -> None:
    assert draw(comparison).get_suptitle() == ""
    out = build_comparison(tmp_path, CELLS, VARIANTS, (0, 1))
    shutil.rmtree(out / "phantom-N5-alpha0.1" / "fedbicross" / "seed-1")
    made = draw(collect(out))
    assert made.get_suptitle() == "With fewer seeds: FedBiCross (1 of 2, phantom-N5-alpha0.1)"
    made.draw_without_rendering()
    title = made.texts[0].get_window_extent()
    assert all(title.y0 >= axes.title.get_window_extent().y1 for axes in made.axes)


@pytest.mark.parametrize(
    "draw", [draw_by_alpha, draw_clusterings, draw_cluster_count, draw_cost, draw_traffic]
)
def test_a_run_that_lost_a_client_is_named(
    draw: Callable[[Comparison], Figure], out: Path, tmp_path: Path
) -> None:
    shutil.copytree(out, tmp_path / "out")
    run = tmp_path / "out" / "phantom-N5-alpha0.1" / "fedbicross" / "seed-1" / "run.json"
    edit(run, lambda content: content["clients"][2].update(status="failed", reason="too few images"))
    made = draw(collect(tmp_path / "out"))
    assert made.get_suptitle() == "Without some clients: phantom-N5-alpha0.1 (seed 1)"


def test_cost_shows_both_models_and_no_time_below_the_least(comparison: Comparison) -> None:
    made = draw_cost(comparison)
    seconds, traffic = made.axes[:2]
    points = [float(xs[0]) for line in seconds.lines if len(xs := data(line.get_xdata())) == 1]
    # FedAvg-1, DENSE and FedBiCross as shipped and fine-tuned; a central model is no federation's cost.
    assert len(points) == 6
    assert not any("central" in text.get_text() for legend in made.legends for text in legend.get_texts())
    assert min(points) == LEAST_SECONDS
    assert seconds.get_xscale() == "log" and traffic.get_xscale() == "linear"


def curves(axes: Any) -> dict[str, list[list[float]]]:
    """What is drawn as a line with markers and what as points alone, by kind: x and y of each."""
    found: dict[str, list[list[float]]] = {"curve": [], "point": []}
    for line in axes.lines:
        xs, ys = data(line.get_xdata()), data(line.get_ydata())
        if line.get_marker() not in ("None", "none", "", None):
            found["point" if len(xs) == 1 else "curve"].append([*xs, *ys])
    return found


def test_bytes_show_one_shot_methods_as_points_and_strategies_as_curves(tmp_path: Path) -> None:
    build_comparison(tmp_path, variants=("fedavg", "fedbicross", "flower:FedAvg"), seeds=(0, 1))
    made = draw_traffic(collect(tmp_path))
    sent, received, local, _ = made.axes
    size, rounds = MODEL / 1e6, range(1, ROUNDS + 1)
    accuracy = [100 * FLOWER_LEVELS["flower:FedAvg"][0] * number / ROUNDS for number in rounds]
    assert curves(sent)["curve"] == [pytest.approx([*(size * one for one in rounds), *accuracy])]
    assert curves(received)["curve"] == [pytest.approx([*(size * (one + 1) for one in rounds), *accuracy])]
    assert curves(local)["curve"] == [], "nobody scores the global model under the local protocol"
    for axes, many in ((sent, ROUNDS), (local, ROUNDS), (received, ROUNDS + 1)):
        places = sorted(point[0] for point in curves(axes)["point"])
        assert places == pytest.approx(4 * [size] + 2 * [many * size])
        assert axes.get_xscale() == "log"
        low, high = axes.get_ylim()
        assert all(low < point[1] < high for point in curves(axes)["point"]), "a point lies outside"


def test_bytes_have_room_for_all_strategies(tmp_path: Path) -> None:
    build_comparison(tmp_path, variants=("fedavg", "fedbicross", *FLOWER_LEVELS), seeds=(0,))
    made = draw_traffic(collect(tmp_path))
    made.draw_without_rendering()
    for axes in made.axes:
        box = axes.get_window_extent()
        points = [line for line in axes.lines if len(data(line.get_xdata())) == 1]
        assert len(points) == 2 * (2 + len(FLOWER_LEVELS))
        for line in points:
            ((x, y),) = line.get_transform().transform(line.get_xydata())
            assert box.x0 < x < box.x1 and box.y0 < y < box.y1


@pytest.mark.parametrize(
    ("variants", "points", "lines"), [(("fedavg",), 2, 0), (("flower:Krum", "flower:FedProx"), 4, 2)]
)
def test_bytes_leave_out_the_kind_that_was_not_run(
    tmp_path: Path, variants: tuple[str, ...], points: int, lines: int
) -> None:
    build_comparison(tmp_path, variants=variants, seeds=(0,))
    drawn = curves(draw_traffic(collect(tmp_path)).axes[0])
    assert (len(drawn["point"]), len(drawn["curve"])) == (points, lines)


def test_seeds_with_different_rounds_have_no_common_curve(tmp_path: Path) -> None:
    build_comparison(tmp_path, variants=("flower:Krum",), seeds=(0, 1))
    run = tmp_path / "phantom-N5-alpha0.3" / "flower:Krum" / "seed-1" / "run.json"
    edit(run, lambda content: content.update(flower={"rounds": 2, "accuracy": [0.1, 0.2, 0.3]}))
    drawn = curves(draw_traffic(collect(tmp_path)).axes[0])
    assert drawn["curve"] == [] and len(drawn["point"]) == 2


def test_bytes_need_a_method_that_sends_models(tmp_path: Path) -> None:
    build_comparison(tmp_path, variants=("central",), seeds=(0,))
    with pytest.raises(NothingToDrawError, match="sends models"):
        draw_traffic(collect(tmp_path))


def test_no_two_strategies_look_alike() -> None:
    looks = [look_of(name, LIGHT) for name in STRATEGIES]
    assert len(STRATEGIES) == 10
    assert len({(look.colour, look.marker) for look in looks}) == len(looks)


def test_clusters_are_studied_over_k(comparison: Comparison) -> None:
    found = by_clusters(comparison.cells[0])
    assert {k: line.variant for k, line in found.items()} == {2: "fedbicross-K2", 3: "fedbicross"}
    axes = draw_cluster_count(comparison).axes[1]
    assert data(axes.lines[0].get_xdata()).tolist() == [2, 3]
    assert data(axes.lines[0].get_ydata()).tolist() == pytest.approx([0.38, 0.44])


def test_of_a_plain_run_and_one_of_the_study_that_of_more_seeds_is_shown(tmp_path: Path) -> None:
    build_comparison(tmp_path, variants=("fedbicross",), seeds=(0, 1))
    folder = tmp_path / "phantom-N5-alpha0.3"
    shutil.copytree(folder / "fedbicross", folder / "fedbicross-K3")
    assert by_clusters(collect(tmp_path).cells[0])[3].variant == "fedbicross"
    shutil.rmtree(folder / "fedbicross" / "seed-1")
    assert by_clusters(collect(tmp_path).cells[0])[3].variant == "fedbicross-K3"


def stars(axes: Any) -> list[tuple[float, float]]:
    """Where the automatic K is drawn."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_marker() == AUTOMATIC_MARKER
    ]


def test_the_automatic_k_stands_at_the_mean_of_what_it_chose(tmp_path: Path) -> None:
    variants = ("fedbicross", "fedbicross-K2", AUTOMATIC)
    (cell,) = collect(build_comparison(tmp_path, variants=variants, seeds=(0, 1))).cells
    # Chosen: 2 and 3.
    auto = chosen_clusters(cell)
    assert auto is not None and (auto.clusters, auto.deviation) == pytest.approx((2.5, 0.5**0.5))
    assert list(by_clusters(cell)) == [2, 3], "it was asked for no K, and is no point of the study"
    made = draw_cluster_count(collect(tmp_path))
    accuracy, silhouette = made.axes
    values = [percent_of(auto.line, key) for key in ("global_accuracy", "local_accuracy")]
    assert stars(accuracy) == [pytest.approx((2.5, value[0])) for value in values if value]
    assert stars(silhouette) == [pytest.approx((2.5, (0.38 + 0.44) / 2))]
    assert [text.get_text() for text in made.legends[0].get_texts()][-1] == ("automatic K (best silhouette)")
    for axes in made.axes:
        low, high = axes.get_xlim()
        assert low < auto.clusters - auto.deviation and auto.clusters + auto.deviation < high
    without = collect(build_comparison(tmp_path / "without", variants=variants[:2]))
    assert not stars(draw_cluster_count(without).axes[0])


def test_one_k_beside_the_automatic_one_is_drawn_and_that_one_alone_is_not(tmp_path: Path) -> None:
    build_comparison(tmp_path, variants=(AUTOMATIC,), seeds=(0,))
    with pytest.raises(NothingToDrawError, match="two K"):
        draw_cluster_count(collect(tmp_path))
    build_comparison(tmp_path, variants=("fedbicross",), seeds=(0,))
    axes = draw_cluster_count(collect(tmp_path)).axes[0]
    assert data(axes.get_xticks()).tolist() == [2, 3]
    assert len(stars(axes)) == 2


def test_the_rand_index_is_scikit_learns(comparison: Comparison) -> None:
    seen = 0
    for _, record in comparison.cells[0].records("fedbicross"):
        assert record.clustering is not None
        counts = np.array([client.class_counts for client in record.clients], dtype=float)
        shares = counts / counts.sum(1, keepdims=True)
        expected = KMeans(3, n_init=50, random_state=1).fit_predict(shares)
        assert rand_index(record) == pytest.approx(
            adjusted_rand_score(expected, record.clustering.assignment)
        )
        seen += 1
    assert seen == 2


def test_the_rand_index_says_nothing_of_unknown_counts_or_one_cluster(tmp_path: Path) -> None:
    build_comparison(tmp_path, variants=("fedbicross", "fedbicross-no-clustering"), seeds=(0,))
    run = tmp_path / "phantom-N5-alpha0.3" / "fedbicross" / "seed-0" / "run.json"
    edit(run, lambda content: content["clients"][1].update(class_counts=None))
    for _, record in collect(tmp_path).cells[0].records():
        assert rand_index(record) is None


def test_images_are_dealt_from_all_clusters_in_turn() -> None:
    def sheet(cluster: int, labels: list[int]) -> SyntheticImages:
        images = np.stack(
            [np.full((1, 2, 2), 0.1 * index + cluster, np.float32) for index in range(len(labels))]
        )
        return SyntheticImages(cluster, images, np.array(labels))

    joined = dealt([sheet(0, [1, 0, 0]), sheet(1, [0])])
    assert joined.labels.tolist() == [0, 0, 0, 1]
    assert joined.images[:, 0, 0, 0].tolist() == pytest.approx([0.1, 1.0, 0.2, 0.0])
    canvas = strip(joined, classes=2, each=2)
    assert canvas.shape == (2, 2 * (2 * 2 + GAP) + CLASS_GAP, 4)
    second = 2 * 2 + GAP + CLASS_GAP
    assert canvas[0, 0, :].tolist() == pytest.approx([0.55, 0.55, 0.55, 1])
    assert canvas[0, 2 + GAP, :].tolist() == pytest.approx([1, 1, 1, 1])
    assert canvas[0, second, 0] == pytest.approx(0.5)
    assert canvas[0, second + 2 + GAP, 3] == 0, "a class with one image leaves its second place transparent"


@pytest.mark.parametrize(
    "stem", ["actinic keratoses and intraepithelial carcinoma", "i" * 60, "W" * 60, "tubular adenocarcinoma"]
)
def test_images_need_a_run_that_kept_some_and_long_names_fit(stem: str, tmp_path: Path) -> None:
    names = tuple(f"{stem} {index}" for index in range(7))
    build_comparison(tmp_path, variants=("fedavg", "dense"), seeds=(0,), classes=names)
    (cell,) = collect(tmp_path).cells
    with Image.open(io.BytesIO(png(draw_images(cell), LIGHT))) as picture:
        image = np.asarray(picture.convert("RGB"), dtype=np.float64)
    for edge in (image[0], image[:, -1]):
        assert np.abs(edge - 255).max() <= 2
    (tmp_path / cell.cell.name / "dense" / "seed-0" / "synthetic.safetensors").unlink()
    with pytest.raises(NothingToDrawError, match="kept synthetic images"):
        draw_images(cell)
