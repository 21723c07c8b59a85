"""A comparison: every variant on the same uploads, what is used again, and what a failure leaves behind."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import TINY, Step, Watch, checksums, flip_byte, read_json, reference, without_report

from fedbicross_flwr import cli, in_process, server_rows
from fedbicross_flwr import simulate as simulate_module
from fedbicross_flwr.artifacts import load_model, read_tensors
from fedbicross_flwr.compare import central as central_module
from fedbicross_flwr.compare import engine, single_run
from fedbicross_flwr.compare.collect import collect
from fedbicross_flwr.compare.engine import check_runs
from fedbicross_flwr.compare.in_turn import make_runs
from fedbicross_flwr.compare.pace import Pace
from fedbicross_flwr.compare.plan import PlannedRun, base_settings, cells_of, plan_runs
from fedbicross_flwr.compare.single_run import Failure
from fedbicross_flwr.compare.variants import ASKED_FOR, GROUPS, VARIANTS, variants_named
from fedbicross_flwr.compare.wall_time import wall_seconds
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.data.source import ImageSource
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.federated_data import deal, open_data
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.launch import RunStatus
from fedbicross_flwr.methods import METHODS
from fedbicross_flwr.report import load_run
from fedbicross_flwr.runs import code_version, opening
from fedbicross_flwr.runs.folder import FAILED, LOCK, RunFolder

CELL = "phantom-N3-alphainf"


def planned(
    out: Path, methods: str = "fedavg,fedbicross", seeds: int = 1, clients: str = "", **changes: Any
) -> list[PlannedRun]:
    """The runs of a small comparison; ``client__lr=0.1`` stands for ``client.lr``."""
    base = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return plan_runs(base, cells_of(base, [], clients, ""), variants_named(methods), seeds, out)


@dataclasses.dataclass
class Made:
    """What came of a comparison: its lines, the steps that were worked on, and what failed."""

    out: Path
    lines: list[str]
    steps: list[Step]
    failures: list[Failure]

    @property
    def trained(self) -> Counter[int | None]:
        """How many epochs each client was trained for."""
        return Counter(client for stage, client, _ in self.steps if stage == "training")

    @property
    def work(self) -> set[tuple[str, int | None]]:
        """Stages that were worked on, and by which client."""
        return {(stage, client) for stage, client, _ in self.steps}


def make(runs: Sequence[PlannedRun], stop: Step | None = None) -> Made:
    """Make the runs, without reports."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch, without_report():
        watch = Watch(patch, stop)
        failures = make_runs(runs, say=said.append)
    return Made(runs[0].folder.parents[2], "".join(said).splitlines(), watch.steps, failures)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two variants with two seeds; tests only read it."""
    return make(planned(tmp_path_factory.mktemp("comparison"), seeds=2))


def with_cache_of(made: Made, out: Path) -> Path:
    """A new comparison that begins with the cache of another."""
    shutil.copytree(made.out / "cache", out / "cache")
    return out


def metrics(out: Path, variant: str, seed: int = 0) -> str:
    return (out / CELL / variant / f"seed-{seed}" / "metrics.json").read_text()


# --- which runs there are


def test_the_variants_of_a_cell_differ_by_their_overrides_alone(tmp_path: Path) -> None:
    runs = planned(tmp_path, "all")
    plain = planned(tmp_path, "fedbicross")[0].config.flat()
    for run in runs:
        mine = run.config.flat()
        differing = {key for key in plain if mine[key] != plain[key]} - {"out"}
        assert differing <= set(run.variant.overrides)
        assert all(mine[key] == value for key, value in run.variant.overrides.items())
    assert len({run.config.upload_fingerprint() for run in runs}) == 1
    shaping = [tuple(run.config.shaping().items()) for run in runs]
    assert len(set(shaping)) == len(runs)


def test_runs_go_seed_by_seed_and_cell_by_cell(tmp_path: Path) -> None:
    runs = planned(tmp_path, seeds=2, clients="3,2")
    assert [run.title for run in runs] == [
        f"phantom-N{clients}-alphainf {variant} seed {seed}"
        for seed in range(2)
        for clients in (3, 2)
        for variant in ("fedavg", "fedbicross")
    ]
    assert runs[0].folder == tmp_path / CELL / "fedavg" / "seed-0"
    assert len({run.folder for run in runs}) == len(runs)
    assert {run.config.cache for run in runs} == {str(tmp_path / "cache")}


def test_cells_are_all_combinations_and_say_so() -> None:
    data = [{"data.name": "phantom"}, {"data.name": "site", "data.path": "/data/own.npz"}]
    found = cells_of({}, data, "5,10,5", "0.1,inf")
    names = [f"{d}-N{n}-alpha{a}" for d in ("phantom", "own") for n in (5, 10) for a in ("0.1", "inf")]
    assert [cell.name for cell in found] == names
    assert found[1].settings == {
        "data.name": "phantom",
        "partition.clients": 5,
        "partition.alpha": float("inf"),
    }


def test_alphas_that_would_have_the_same_folder_are_named() -> None:
    with pytest.raises(FedBiCrossError, match=r"--alphas '0.3,0.3000000000000001': two of them are equal"):
        cells_of({}, [], "", "0.3,0.3000000000000001")
    with pytest.raises(FedBiCrossError, match=r"two data sets of this comparison are called own"):
        cells_of({}, [{"data.path": "/one/own.npz"}, {"data.path": "/two/own.npz"}], "", "0.3")


def test_a_cell_of_one_client_suits_a_method_without_clusters_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_settings("quick", None, [])
    cells = cells_of(base, [], "1", "")
    assert [cell.name for cell in cells] == ["phantom-N1-alpha0.3"]
    assert len(plan_runs(base, cells, variants_named("fedavg"), 1, tmp_path)) == 1
    with pytest.raises(
        FedBiCrossError, match=r"clustering\.clusters = 2 is more than partition\.clients = 1"
    ):
        plan_runs(base, cells, variants_named("fedbicross"), 1, tmp_path)
    monkeypatch.chdir(tmp_path)
    (cell,) = cells_of({}, [{"data.path": "."}], "", "")
    assert cell.name == f"{tmp_path.name}-N5-alpha0.3"


def test_a_cell_is_named_after_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    """As the runs' own settings have it: by these a run is known to be of its cell."""
    (tmp_path / "4fa1.npz").touch()
    (tmp_path / "clinic.npz").symlink_to(tmp_path / "4fa1.npz")
    (cell,) = cells_of({}, [{"data.path": str(tmp_path / "clinic.npz")}], "", "")
    (run,) = plan_runs({}, [cell], variants_named("fedavg"), 1, tmp_path / "out")
    assert run.cell == cell.name == "4fa1-N5-alpha0.3"
    assert Path(run.config.data.path).stem == "4fa1"


def test_when_every_run_fails_the_table_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = planned(tmp_path, "fedavg")
    failing(monkeypatch, "fedavg", FedBiCrossError("no luck"))
    assert engine.compare_all(runs, False, tmp_path) == 1
    assert "FedAvg-1 (failed)" in (tmp_path / "comparison.md").read_text()


def test_variants_keep_the_order_of_the_tables_and_all_leaves_flower_out() -> None:
    assert [one.name for one in variants_named("fedbicross, fedavg,fedavg")] == ["fedavg", "fedbicross"]
    named = variants_named("all")
    assert [one.name for one in named] == [n for n, one in VARIANTS.items() if one.group not in ASKED_FOR]
    assert variants_named("flower:Krum,all")[-1].name == "flower:Krum"
    assert {one.group for one in VARIANTS.values()} == set(GROUPS)


def test_the_automatic_k_is_asked_for_by_name_and_chosen_by_the_silhouette(tmp_path: Path) -> None:
    assert "fedbicross-auto" not in {one.name for one in variants_named("all")}
    (run,) = planned(tmp_path, "fedbicross-auto")
    assert (run.config.method, run.config.clustering.clusters) == ("fedbicross", "auto")
    assert run.variant.group == VARIANTS["fedbicross-K2"].group == "cluster-count"
    assert "silhouette" in run.variant.title


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_files_of_the_scales_can_be_compared(scale: str, tmp_path: Path) -> None:
    base = base_settings(scale, None, ["client.epochs=3"])
    runs = plan_runs(base, cells_of(base, [], "", ""), variants_named("all"), 1, tmp_path)
    assert {run.config.client.epochs for run in runs} == {3}


# --- end to end


def test_clients_are_trained_once_for_all_variants(made: Made) -> None:
    assert made.failures == []
    assert made.trained == dict.fromkeys(range(3), 2 * 2)  # two epochs, two seeds
    assert len(list((made.out / "cache").glob("*/*/local.safetensors"))) == 6
    for variant in ("fedavg", "fedbicross"):
        for seed in range(2):
            folder = made.out / CELL / variant / f"seed-{seed}"
            run = load_run(folder)
            assert run.finished and run.seed == seed and run.config["method"] == variant
            assert run.results is not None and run.results.rows[-2].name == METHODS[variant].title
    assert metrics(made.out, "fedbicross", 0) != metrics(made.out, "fedbicross", 1)


def test_the_numbers_are_those_of_the_run_alone(made: Made) -> None:
    assert metrics(made.out, "fedbicross") == (reference() / "metrics.json").read_text()


def test_the_wall_time_of_a_run_alone_has_the_training_that_it_found_done(made: Made) -> None:
    (cell,) = collect(made.out).cells
    found = wall_seconds(cell)
    for seed in range(2):
        first, second = (
            dict(read_json(made.out / CELL / variant / f"seed-{seed}" / "run.json")["seconds"])
            for variant in ("fedavg", "fedbicross")
        )
        assert found["fedavg", seed] == pytest.approx(first["total"], abs=0.1)
        # What the uploads answer to the test images was asked in the first run, and counts in both.
        own = max(second["total"], sum(value for stage, value in second.items() if stage != "total"))
        assert found["fedbicross", seed] == pytest.approx(own + first["upload round"], abs=0.1)


def test_each_run_is_one_line_with_an_estimate(made: Made) -> None:
    assert [line.split(" ... ")[0] for line in made.lines] == [
        f"{number}/4 {CELL} {variant} seed {seed}"
        for number, (seed, variant) in enumerate(
            [(seed, variant) for seed in range(2) for variant in ("fedavg", "fedbicross")], start=1
        )
    ]
    assert all(line.endswith(" left") for line in made.lines[:-1])
    assert made.lines[-1].endswith(" s")


def test_the_estimate_takes_what_a_variant_took() -> None:
    pace = Pace(["a", "b", "a", "b", "c"])
    assert pace.left() == ""
    pace.note("a", 10.0)
    assert pace.left() == ", about 40 s left"
    pace.note("b", 30.0)
    assert pace.left() == ", about 1 min 0 s left"  # 10 + 30 + the mean of both
    pace.note("a", None)
    assert pace.left() == ", about 50 s left"


def test_what_is_finished_is_not_run_again(made: Made) -> None:
    runs = planned(made.out, seeds=2)
    before = checksums(made.out)
    check_runs(runs, made.out)
    again = make(runs)
    assert again.steps == [] and again.failures == []
    assert all(line.endswith("finished before") for line in again.lines)
    assert checksums(made.out) == before


def test_an_interrupted_comparison_goes_on(made: Made, tmp_path: Path) -> None:
    runs = planned(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        make(runs, stop=("cross-cluster optimisation", None, 1))
    assert RunFolder(runs[0].folder).finished and not RunFolder(runs[1].folder).finished
    check_runs(runs, tmp_path)
    rest = make(runs)
    assert {stage for stage, _, _ in rest.steps} == {
        "cross-cluster optimisation",
        "personalisation",
    }
    assert metrics(tmp_path, "fedbicross") == metrics(made.out, "fedbicross")


# --- what is used again


@pytest.mark.parametrize(
    ("setting", "value", "epochs"),
    [("personal__epochs", 2, 0), ("client__lr", 0.01, 2), ("model__width", 3, 2)],
)
def test_what_shapes_an_upload_trains_anew_and_nothing_else(
    made: Made, tmp_path: Path, setting: str, value: Any, epochs: int
) -> None:
    out = with_cache_of(made, tmp_path)
    found = make(planned(out, "fedavg", **{setting: value}))
    assert found.failures == []
    assert found.trained == Counter({client: epochs for client in range(3) if epochs})


def test_a_damaged_model_in_the_cache_is_trained_again(made: Made, tmp_path: Path) -> None:
    out = with_cache_of(made, tmp_path)
    for model in (out / "cache").glob("*/*/local.safetensors"):
        flip_byte(model)
        break
    found = make(planned(out, "fedavg", seeds=2))
    assert sorted(found.trained.values()) == [2]  # one client's two epochs
    for seed in range(2):
        assert metrics(out, "fedavg", seed) == metrics(made.out, "fedavg", seed)


# --- stages that runs share


def shared_stages(out: Path) -> list[Path]:
    return sorted((out / "cache").glob("*/stages/*.safetensors"))


def seconds_of(out: Path, variant: str) -> dict[str, float]:
    return dict(read_json(out / CELL / variant / "seed-0" / "run.json")["seconds"])


def test_ablations_share_synthesis_and_answers(made: Made, tmp_path: Path) -> None:
    out = with_cache_of(made, tmp_path)
    first = shared_stages(out)
    # Two seeds; images and answers of two clusters, what was learned, and what FedAvg-1 and the ensemble say.
    assert len(first) == 2 * (2 + 2 + 1 + 1)
    found = make(planned(out, "fedbicross-intra,fedbicross-no-clustering"))
    assert found.failures == []
    assert len(shared_stages(out)) == len(first) + 1 + 3  # one ensemble of all has its own images and answers
    for kind in ("synthesis", "teacher answers"):
        assert seconds_of(out, "fedbicross-intra")[kind] == seconds_of(made.out, "fedbicross")[kind]
    alone = make(planned(tmp_path / "alone", "fedbicross-intra"))
    assert metrics(out, "fedbicross-intra") == metrics(alone.out, "fedbicross-intra")


def test_what_all_uploads_answer_to_test_images_is_asked_once(made: Made, tmp_path: Path) -> None:
    out = with_cache_of(made, tmp_path)

    def asked(*arguments: object) -> None:
        raise AssertionError("the ensemble was asked again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_rows, "ensemble_scores", asked)
        assert make(planned(out, "fedbicross-intra")).failures == []
        (failure,) = make(planned(tmp_path / "alone", "fedbicross-intra")).failures
    assert "asked again" in failure.error
    stages = [read_tensors(file) for file in shared_stages(made.out)]
    took = [float(facts["seconds"]) for tensors, facts in stages if tensors.keys() == {"fedavg", "ensemble"}]
    assert len(took) == 2, "one a seed"
    assert seconds_of(out, "fedbicross-intra")["evaluation"] >= min(took), "it counts here as there"


@pytest.mark.parametrize("changed", [{"inversion__lr": 0.07}, {"teacher__noise_momentum": 0.5}])
def test_other_images_are_not_taken_for_these(made: Made, tmp_path: Path, changed: dict[str, Any]) -> None:
    out = with_cache_of(made, tmp_path)
    first = shared_stages(out)
    make(planned(out, "fedbicross", **changed))
    assert len(shared_stages(out)) == len(first) + 5


def test_the_same_clusters_found_in_another_way_share_all_that_follows(made: Made, tmp_path: Path) -> None:
    out = with_cache_of(made, tmp_path)
    first = shared_stages(out)
    found = make(planned(out, "fedbicross", clustering__num_probes=17))
    assert found.failures == []
    assert {stage for stage, _ in found.work} == {"clustering"}
    assert shared_stages(out) == first
    assert metrics(out, "fedbicross") == metrics(made.out, "fedbicross")
    ours, theirs = (root / CELL / "fedbicross" / "seed-0" for root in (out, made.out))
    assert checksums(ours / "sites") == checksums(theirs / "sites")


def test_another_budget_of_stage_3_shares_what_comes_before_it(made: Made, tmp_path: Path) -> None:
    out = with_cache_of(made, tmp_path)
    found = make(planned(out, "fedbicross", personal__epochs=2))
    assert found.failures == []
    assert {stage for stage, _ in found.work} >= {"personalisation", "fine-tuning"}
    assert not {stage for stage, _ in found.work} & {"training", "cross-cluster optimisation"}


def test_other_starts_of_the_cluster_models_are_learned_from_anew(made: Made, tmp_path: Path) -> None:
    out = with_cache_of(made, tmp_path)
    found = make(planned(out, "fedbicross", cross_cluster__student_init="random"))
    assert {stage for stage, _ in found.work} >= {"cross-cluster optimisation", "personalisation"}
    assert not any(stage.startswith("synthesis") for stage, _ in found.work)


@pytest.mark.parametrize("damage", [flip_byte, Path.unlink], ids=["damaged", "gone"])
def test_a_personal_model_of_another_run_that_is_lost_is_made_again(
    made: Made, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    root = tmp_path / "first"
    make(planned(root, "fedbicross"))
    damage(root / CELL / "fedbicross" / "seed-0" / "sites" / "client-01" / "personal.safetensors")
    out = tmp_path / "second"
    shutil.copytree(root / "cache", out / "cache")
    found = make(planned(out, "fedbicross", clustering__num_probes=17))
    assert {client for stage, client in found.work if stage == "personalisation"} == {1}
    assert metrics(out, "fedbicross") == metrics(made.out, "fedbicross")


def test_another_version_of_the_code_uses_nothing(made: Made, tmp_path: Path) -> None:
    out = with_cache_of(made, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_version, "code_fingerprint", lambda: "another")
        found = make(planned(out, "fedavg"))
    assert found.trained == dict.fromkeys(range(3), 2)
    assert (out / "cache" / "another").is_dir()


def test_images_that_are_dealt_otherwise_under_the_same_settings_use_nothing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As another version of NumPy may deal them: two clients change places.
    def dealt(source: ImageSource, config: RunConfig) -> Partition:
        plain = deal(source, config)
        order = [1, 0, *range(2, plain.num_clients)]
        return Partition(tuple(plain.train[i] for i in order), tuple(plain.test[i] for i in order))

    monkeypatch.setattr(opening, "deal", dealt)
    found = make(planned(with_cache_of(made, tmp_path), "fedavg"))
    assert set(found.trained) == {0, 1}


# --- failures


def failing(patch: pytest.MonkeyPatch, method: str, error: BaseException) -> None:
    """Let the server's part of a method fail."""

    def serve(*arguments: object) -> None:
        raise error

    patch.setitem(METHODS, method, dataclasses.replace(METHODS[method], serve=serve))  # type: ignore[arg-type]  # returns nothing


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FedBiCrossError("it cannot\nbe"), "it cannot be"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
    ],
)
def test_a_failure_stops_no_other_run_and_is_tried_again(
    made: Made, tmp_path: Path, error: Exception, said: str
) -> None:
    out = with_cache_of(made, tmp_path)
    runs = planned(out)
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, "fedavg", error)
        found = make(runs)
    assert [(failure.run.variant.name, failure.error) for failure in found.failures] == [("fedavg", said)]
    failed = runs[0].folder / FAILED
    written = read_json(failed)
    assert written["error"] == said
    assert ("traceback" in written) == isinstance(error, RuntimeError)
    assert RunFolder(runs[1].folder).finished and not RunFolder(runs[0].folder).finished
    assert ": " + said in found.lines[0] and "failed after" in found.lines[0]
    check_runs(runs, out)
    again = make(runs)
    assert again.failures == [] and again.lines[1].endswith("finished before")
    assert not failed.exists() and RunFolder(runs[0].folder).finished
    assert metrics(out, "fedavg") == metrics(made.out, "fedavg")


def test_a_run_that_failed_before_it_began_is_tried_again(tmp_path: Path) -> None:
    runs = planned(tmp_path, "fedavg")
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / FAILED).write_text('{"error": "early"}')
    check_runs(runs, tmp_path)
    assert make(runs).failures == []


def wrapped(error: OSError) -> FedBiCrossError:
    made = FedBiCrossError("cannot write it")
    made.__cause__ = error
    return made


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def test_a_run_whose_process_was_killed_at_its_start_is_tried_again(made: Made, tmp_path: Path) -> None:
    (run, *_) = planned(with_cache_of(made, tmp_path))
    run.folder.mkdir(parents=True)
    for name in (FAILED, LOCK):
        (run.folder / name).write_text("{}")
    check_runs([run], tmp_path)
    (run.folder / "letter.txt").write_text("mine")
    with pytest.raises(FedBiCrossError, match="but no run; choose an empty folder"):
        check_runs([run], tmp_path)


@pytest.mark.parametrize("error", [NO_SPACE, wrapped(NO_SPACE)], ids=["plain", "wrapped"])
def test_a_full_disk_ends_it_at_once(made: Made, tmp_path: Path, error: Exception) -> None:
    runs = planned(with_cache_of(made, tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, "fedavg", error)
        with pytest.raises(FedBiCrossError, match=r"there is no space left for .*seed-0") as caught:
            make(runs)
    assert "\n" not in str(caught.value)
    assert not (runs[0].folder / FAILED).exists() and not runs[1].folder.exists()


def test_a_client_that_is_left_out_is_told_under_its_run(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = in_process.upload

    def refused(server: Any, client: int, check: Any) -> Any:
        if client == 1:
            raise FedBiCrossError("its disk was moved")
        return upload(server, client, check)

    monkeypatch.setattr(in_process, "upload", refused)
    found = make(planned(with_cache_of(made, tmp_path), "fedavg"))
    assert found.lines[1] == "    client 1 is left out: its disk was moved"


def test_under_flower_each_run_is_handed_over_and_a_failed_one_stops_no_other(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[RunConfig] = []

    def simulate(app: Path, flat: dict[str, Any], *rest: Any, on_line: Any, **more: Any) -> RunStatus:
        on_line("a line of the log")
        handed.append(config := RunConfig.from_flat(flat))
        if config.method == "fedavg":
            return RunStatus(1, "failed", "a worker died")
        run_in_process(config, Path(config.out))
        return RunStatus(2, "completed", "")

    monkeypatch.setattr(simulate_module, "simulate", simulate)
    runs = planned(with_cache_of(made, tmp_path))
    with without_report():
        failures = make_runs(runs, flower=True, say=lambda text: None)
    assert handed == [run.config for run in runs]
    log = runs[0].folder / "flower.log"
    reason = f"the run failed: a worker died; Flower's log is {log}"
    assert [(failure.run, failure.error) for failure in failures] == [(runs[0], reason)]
    assert read_json(runs[0].folder / FAILED) == {"error": reason}
    assert log.read_text() == "a line of the log\n"
    assert metrics(tmp_path, "fedbicross") == metrics(made.out, "fedbicross")


def test_a_strategy_of_flower_s_is_handed_to_flower_and_the_rest_is_not(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[str] = []

    def simulate(app: Path, flat: dict[str, Any], *rest: Any, **more: Any) -> RunStatus:
        handed.append(flat["method"])
        return RunStatus(1, "failed", "this is as far as the test goes")

    monkeypatch.setattr(simulate_module, "simulate", simulate)
    runs = planned(with_cache_of(made, tmp_path), "fedavg,flower:FedProx", flower__rounds=2)
    check_runs(runs, tmp_path)
    with without_report():
        (failure,) = make_runs(runs, say=lambda text: None)
    assert handed == ["flower:FedProx"] and failure.run.variant.name == "flower:FedProx"
    assert metrics(tmp_path, "fedavg") == metrics(made.out, "fedavg")


# --- the central model


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlannedRun, list[Failure]]:
    """A central model with its report, in whose cache all else can begin."""
    run = planned(tmp_path_factory.mktemp("central"), "central")[0]
    return run, make_runs([run], say=lambda text: None)


def test_the_central_model_is_scored_for_every_client(central: tuple[PlannedRun, list[Failure]]) -> None:
    run, failures = central
    assert failures == [] and RunFolder(run.folder).finished
    record = load_run(run.folder)
    assert record.results is not None
    (row,) = record.results.rows
    assert (row.name, row.kind) == ("central model on pooled data", "ceiling")
    assert row.bytes_up == 0 and row.bytes_down == record.files["models/central.safetensors"] - overhead(
        run.folder
    )
    source = open_data(run.config)
    labels = source.labels("test")
    model = load_model(run.folder / "models" / "central.safetensors", device="cpu")
    right = model.predict(source.images("test")).argmax(1) == labels
    shares = read_json(run.folder / "partition.json")["test"]
    for client, share in enumerate(shares):
        assert row.scores["global"][client].accuracy == pytest.approx(right.mean())
        assert row.scores["local"][client].accuracy == pytest.approx(right[np.array(share)].mean())
    page = (run.folder / "report.html").read_text()
    assert "central model on pooled data" in page


def overhead(folder: Path) -> int:
    """Bytes of the model file that are not tensors: the header and its length."""
    content = (folder / "models" / "central.safetensors").read_bytes()
    return 8 + int.from_bytes(content[:8], "little")


def test_the_central_model_does_not_depend_on_how_images_are_dealt(
    central: tuple[PlannedRun, list[Failure]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = central[0]
    shutil.copytree(run.config.cache, tmp_path / "cache")
    monkeypatch.setattr(central_module, "write_report", lambda folder: folder)
    other = make(planned(tmp_path, "central", clients="2"))
    assert other.failures == [] and other.steps == []
    changed = make(planned(tmp_path / "other", "central", client__lr=0.01))
    assert changed.failures == [] and changed.steps == [("training", -1, 1), ("training", -1, 2)]


# --- the command


@dataclasses.dataclass
class Answer:
    """How the command ended."""

    status: object
    output: str
    error: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Answer]:
    """``fedbicross compare`` on the small configuration with more arguments."""
    (tmp_path / "tiny.toml").write_text("")

    def run(*arguments: str, config: bool = True) -> Answer:
        flat = [f"--set={key}={value}" for key, value in TINY.items()]
        chosen = ["--config", str(tmp_path / "tiny.toml")] if config else []
        chosen += [] if "--jobs" in arguments or "--flower" in arguments else ["--jobs", "1"]
        monkeypatch.setattr(sys, "argv", ["fedbicross", "compare", *chosen, *flat, *arguments])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left, without_report():
            cli.main()
        captured = capsys.readouterr()
        return Answer(left.value.code or 0, captured.out, captured.err)

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "fedbicros"], ("'fedbicros' is unknown", "did you mean fedbicross")),
        (["--methods", " , "], ("names no method",)),
        (["--seeds", "0"], ("--seeds 0", "at least 1")),
        (["--seeds", "1000000000", "--methods", "fedavg,dense"], ("--seeds 1000000000", "2000000000 runs")),
        (["--alphas", "0.1,x"], ("--alphas", "'0.1,x'")),
        (["--alphas", " ,"], ("--alphas ' ,' names nothing",)),
        (["--alphas", "1_0.5"], ("--alphas", "numbers", "not '1_0.5'")),
        (["--clients", ","], ("--clients ',' names nothing",)),
        (["--clients", "3,1_0"], ("--clients", "whole numbers", "not '1_0'")),
        (["--clients", "\u0663"], ("--clients", "whole numbers")),
        (["--alphas", "0.1,-1"], ("partition.alpha = -1",)),
        (["--clients", "2.5"], ("--clients", "whole numbers")),
        (["--clients", "1"], ("clustering.clusters = 2", "partition.clients = 1")),
        (["--data", "bloodmnst"], ("'bloodmnst' is unknown", "did you mean bloodmnist")),
        (["--data", "phantom", "--data", "absent.npz"], ("absent.npz", "no such file")),
        (["--set", "seed=3"], ("--set seed", "--seeds")),
        (["--set", "client.epoch=3"], ("'client.epoch'", "did you mean client.epochs")),
        (["--scale", "quick"], ("--scale quick", "--config", "exclude each other")),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(
    command: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(engine, "make_runs", lambda *arguments: pytest.fail("a run was started"))
    answer = command(*arguments)
    assert answer.status == 2, answer
    lines = answer.error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert all(word in lines[0] for word in words), lines
    assert list(tmp_path.glob("comparisons/phantom*")) == []


def test_what_a_configuration_sets_and_a_comparison_sets_itself_is_told(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    config = tmp_path / "own.toml"
    config.write_text("seed = 7\n")
    answer = command("--config", str(config), "--seeds", "0", config=False)
    assert answer.status == 2
    assert answer.error.startswith(f"note: seed of {config} has no effect; use --seeds instead\nerror: ")


def test_a_scale_that_there_is_not_is_named(command: Callable[..., Answer]) -> None:
    answer = command("--scale", "quik", config=False)
    assert answer.status == 2 and "'quik' is not one of quick, paper (did you mean quick?)" in answer.error


def test_settings_of_a_deployment_are_refused_before_anything_runs(tmp_path: Path) -> None:
    runs = planned(tmp_path, deployment__sites="aachen,bonn,cologne", deployment__class_names="a,b")
    with pytest.raises(FedBiCrossError, match=r"deployment\.sites = 'aachen,bonn,cologne' names sites"):
        check_runs(runs, tmp_path)
    assert not any(run.folder.exists() for run in runs)


def test_a_folder_of_other_settings_is_refused_before_anything_runs(
    command: Callable[..., Answer], made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made.out / CELL / "fedbicross", out / CELL / "fedbicross")
    before = checksums(out)
    answer = command("--methods", "fedavg,fedbicross", "--set", "personal.lr=0.5", "--out", str(out))
    assert answer.status == 2 and "personal.lr = 0.02" in answer.error and "--out" in answer.error
    assert checksums(out) == before


def test_a_run_s_folder_takes_no_comparison(
    command: Callable[..., Answer], made: Made, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.out / CELL / "fedavg" / "seed-0", run)
    before = checksums(run)
    answer = command("--methods", "fedavg", "--seeds", "1", "--out", str(run))
    assert answer.status == 2 and answer.error.startswith(f"error: {run} is a run's folder; "), answer
    assert checksums(run) == before


def test_the_command_makes_the_table_and_its_status_says_whether_all_is_well(
    command: Callable[..., Answer], made: Made, tmp_path: Path
) -> None:
    out = with_cache_of(made, tmp_path / "out")
    arguments = ["--methods", "fedavg,fedbicross", "--seeds", "1", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, "fedbicross", RuntimeError("out of memory"))
        answer = command(*arguments)
    assert answer.status == 1, answer
    assert answer.error == f"failed: {CELL} fedbicross seed 0: RuntimeError: out of memory\n"
    assert f"1/2 {CELL} fedavg seed 0 ... " in answer.output
    table = Path(answer.output.splitlines()[-1].removeprefix("table: "))
    assert table.is_file() and table.is_relative_to(out)
    assert shared_stages(out)
    answer = command(*arguments)
    assert answer.status == 0 and answer.error == ""
    assert not shared_stages(out)
    assert metrics(out, "fedbicross") == metrics(made.out, "fedbicross")


def test_one_process_at_a_time_makes_the_runs_of_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "PATIENCE", 0.0)
    monkeypatch.setattr(single_run, "make_run", lambda *arguments: pytest.fail("a run was made"))
    runs = planned(tmp_path, "fedavg")
    (tmp_path / "comparison.md").write_text("of an earlier call")
    with (
        opening.sole_comparison(tmp_path),
        pytest.raises(FedBiCrossError, match="another process makes runs of the comparison in"),
    ):
        engine.compare_all(runs, False, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.md"]
    with opening.sole_comparison(tmp_path):
        pass


def test_a_central_model_s_folder_is_its_own_while_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "PATIENCE", 0.0)
    (run,) = planned(tmp_path, "central")
    with (
        opening.sole_use(run.folder),
        pytest.raises(FedBiCrossError, match="another process works on the run"),
    ):
        central_module.run_central(run.config, run.folder)
