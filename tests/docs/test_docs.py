"""The documentation says what is so: generated texts, commands, Python blocks and links."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from flwr.cli.app import app as flwr_app
from flwr.common.config import parse_config_args
from rich.console import Console
from snippets import PAGES, ROOT, Block, anchors, blocks, links
from typer.core import TyperGroup
from typer.testing import CliRunner

import fedbicross_flwr
import fedbicross_flwr.simulate
from fedbicross_flwr.cli import app
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.settings import flatten, read_toml

SMALL = [
    "data.phantom_train=200", "data.phantom_test=60", "partition.clients=3", "model.width=2",
    "client.epochs=1", "clustering.clusters=2", "inversion.iterations=4", "inversion.batch_size=16",
    "cross_cluster.sweeps=1", "personal.epochs=1", "clustering.num_probes=16", "runtime.server_threads=1",
]  # fmt: skip
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def execute(block: Block) -> None:
    exec(compile(block.text, block.page.name, "exec"), {"__name__": "__docs__"})


def run_cli(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


# --- what is generated ---


def test_generated_texts_are_up_to_date(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = load_generator()
    generate.main(check=True)
    stale = tmp_path / "configuration.md"
    stale.write_text(
        generate.REFERENCE.read_text(encoding="utf-8").replace("`0.3`", "`0.4`", 1), encoding="utf-8"
    )
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "REFERENCE", stale)
    with pytest.raises(SystemExit) as left:
        generate.main(check=True)
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: not up to date: configuration.md; run `make docs`\n"


def test_tables_of_the_results_are_those_of_the_records() -> None:
    generate = load_generator()
    page = generate.RESULTS.read_text(encoding="utf-8")
    (_, cell), *_ = generate.CELL.findall(page)
    found = generate.with_tables(f"before\n<!-- cell {cell} -->\nstale\n<!-- end -->\nafter <!-- end -->")
    assert found.startswith("before\n") and found.endswith("<!-- end -->\nafter <!-- end -->")
    assert "stale" not in found and "| FedBiCross |" in found
    with pytest.raises(SystemExit, match="has no '<!-- end -->' of its own"):
        generate.with_tables(f"<!-- cell {cell} -->\nprose\n<!-- cell {cell} -->\n<!-- end -->")


def test_pyproject_tells_flower_the_defaults() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert dict(flatten(declared["tool"]["flwr"]["app"]["config"])) == RunConfig().flat()


def test_the_reference_names_every_setting_once() -> None:
    named = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE)
    assert named == list(RunConfig().flat())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_file_loads(path: Path) -> None:
    RunConfig.from_flat(read_toml(path))


def test_paper_toml_states_what_the_method_page_says_of_it() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    known, paper = RunConfig().flat(), read_toml(ROOT / "configs" / "paper.toml")
    sections = "|".join(sorted({key.partition(".")[0] for key in known if "." in key}))
    named = set(re.findall(rf"`((?:{sections})\.(?!py`)\w+)(?: = [^`]*)?`", text))
    assert len(named) > 25 and named <= set(known), named - set(known)
    elsewhere = {key for key in named if key.startswith(("runtime.", "data."))}
    assert named - elsewhere <= set(paper), named - elsewhere - set(paper)
    # The values that the page itself gives as the paper's.
    said = {
        "model.width": 64, "client.epochs": 100, "client.lr": 1e-3, "client.batch_size": 128,
        "clustering.num_probes": 256, "teacher.aggregation": "logits", "teacher.noise_momentum": 0.9,
        "teacher.noise_window": 0, "inversion.iterations": 500, "inversion.batch_size": 256,
        "inversion.tv": "norm", "inversion.tv_weight": 2.5e-5, "inversion.bn_weight": 10.0,
        "inversion.bn_models": "sum", "cross_cluster.temperature": 20.0, "cross_cluster.lr": 1e-3,
        "cross_cluster.replay_fraction": 1.0, "cross_cluster.replay_order": "in_order",
        "cross_cluster.sweeps": 1, "personal.epochs": 10, "personal.gamma": 0.5, "personal.delta": 0.3,
    }  # fmt: skip
    assert {key: paper[key] for key in said} == said


# --- the package's front door ---


def test_import_is_cheap_and_lazy() -> None:
    code = "import sys, fedbicross_flwr as f; assert 'torch' not in sys.modules; f.RunConfig; print(dir(f))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == "['RunConfig', '__version__', 'load_model']"
    assert fedbicross_flwr.RunConfig is RunConfig
    with pytest.raises(AttributeError, match="has no attribute 'RunConfi'"):
        fedbicross_flwr.__getattr__("RunConfi")


def test_installed_modules_are_compiled() -> None:
    """``make setup`` sees to it, as PyTorch's modules take longer to compile than to run.

    Nothing here imports Matplotlib's pylab, so that no import has compiled it.
    """
    found = importlib.util.find_spec("pylab")
    assert found is not None and found.origin is not None
    assert Path(importlib.util.cache_from_source(found.origin)).exists()


def test_the_version_is_told_alike_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == fedbicross_flwr.__version__
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# --- commands ---

COMMANDS = [words for block in blocks("bash") for words in block.commands()]


def parse(program: typer.Typer, words: list[str]) -> dict[str, Any]:
    """Let a command line parse a subcommand with its words; an unknown one or a wrong option is an error."""
    group = typer.main.get_command(program)
    assert isinstance(group, TyperGroup)
    name, *rest = words
    return group.commands[name].make_context(name, rest).params


def check_fedbicross(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the words to the real command line, which builds its configuration and stops short of running."""
    if words[0] != "simulate":
        # These look at runs that a reader has and this test has not.
        parse(app, words)
        return
    built: list[RunConfig] = []

    def instead(config: RunConfig, out: Path | None, in_process: bool, console: Console) -> None:
        built.append(config)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(fedbicross_flwr.simulate, "simulate_run", instead)
    run_cli(words)
    assert len(built) == 1 or "--help" in words


def check_flwr(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Flower parse the words; its settings must be ours, and its nodes as many as our clients."""
    given = parse(flwr_app, words)
    if words[0] != "run":
        return
    config = RunConfig.from_flat(parse_config_args(list(given["run_config_overrides"] or [])))
    federation = parse_config_args(list(given["federation_config_overrides"] or []))
    assert given["app"] == "."
    assert federation["num-supernodes"] == config.partition.clients


def check_make(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let make say what it would do."""
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)


def check_script(script: Path) -> Callable[[list[str], pytest.MonkeyPatch], None]:
    """Return a check that a script of deploy/ explains the options that it is given."""

    def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        told = subprocess.run([script, "--help"], check=True, capture_output=True, text=True).stdout
        assert all(word in told for word in words if word.startswith("-"))

    return check


SCRIPTS = [path for path in (ROOT / "deploy").iterdir() if path.is_file() and not path.suffix]
CHECKS: Mapping[str, Callable[[list[str], pytest.MonkeyPatch], None]] = {
    "fedbicross": check_fedbicross,
    "flwr": check_flwr,
    "make": check_make,
    **{f"deploy/{script.name}": check_script(script) for script in SCRIPTS},
    # The shell's own, and what every machine has.
    "cp": lambda words, monkeypatch: None,
    "git": lambda words, monkeypatch: None,
    "openssl": lambda words, monkeypatch: None,
    "source": lambda words, monkeypatch: None,
    "export": lambda words, monkeypatch: None,
}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[0] in CHECKS, f"nothing checks {words[0]}: teach this test, or leave the command out"
    CHECKS[words[0]](words[1:], monkeypatch)


# --- what is executed ---


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the marked commands have been run, in the order of the pages, with small settings.

    Python blocks that make data for a later command are run before it, as a reader would.
    """
    folder = tmp_path_factory.mktemp("docs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        small = [word for setting in SMALL for word in ("--set", setting)]
        for block in blocks("python"):
            if "np.savez_compressed" in block.text:
                execute(block)
        for block in blocks("bash"):
            for words in block.commands() if block.executed else []:
                assert words[:2] == ["fedbicross", "simulate"] and "--in-process" in words
                run_cli([*words[1:], *small])
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def test_marked_commands_leave_finished_runs(workplace: Path) -> None:
    runs = {path.parent.name for path in workplace.glob("runs/*/report.html")}
    assert {"first", "clinic"} <= runs


PYTHON = blocks("python")


@pytest.mark.parametrize("block", PYTHON, ids=[f"{b.page.stem}-{i}" for i, b in enumerate(PYTHON)])
def test_python_blocks_run(block: Block, workplace: Path) -> None:
    execute(block)


# --- links ---


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(goal), f"{page.name} links to {target}; {goal.name} has no such heading"
