"""The house rules that no type checker sees: which package may import what, and what no file may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fedbicross_flwr

ROOT = Path(fedbicross_flwr.__file__).parents[1]
PACKAGES = ("fedbicross_flwr", "server_app", "client_app")
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.add(node.module or "")
    return found


def dotted(node: ast.AST) -> str:
    """``a.b.c`` for a name or an attribute of names, else nothing."""
    if isinstance(node, ast.Attribute):
        outer = dotted(node.value)
        return f"{outer}.{node.attr}" if outer else ""
    return node.id if isinstance(node, ast.Name) else ""


def names_used(path: Path) -> Iterator[str]:
    """The dotted names that a file reads."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute | ast.Name):
            yield dotted(node)


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 50
    assert "fedbicross_flwr.config" in imports(Path("server_app/app.py"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_arrows_point_inward(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(path)}
    forbidden = {
        "fedbicross_flwr": {"flwr", "ray", "server_app", "client_app"},
        "server_app": {"client_app", "ray"},
        "client_app": {"server_app", "ray"},
    }
    if path in {Path("fedbicross_flwr/compare/at_once.py"), Path("fedbicross_flwr/ray_tasks.py")}:
        tops.discard("ray")  # runs of a comparison and clusters of a run side by side, without Flower
    assert not tops & forbidden[path.parts[0]]
    assert "flwr_datasets" not in tops or path == Path("fedbicross_flwr/data/partition.py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_unpickled(path: Path) -> None:
    assert not {"pickle", "dill", "cloudpickle", "joblib.memory", "shelve", "marshal"} & imports(path)
    used = set(names_used(path))
    assert not {"torch.load", "torch.save", "joblib.load", "np.load"} & used
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_global_generator_is_seeded_or_drawn_from(path: Path) -> None:
    used = set(names_used(path))
    assert not {"np.random.seed", "numpy.random.seed", "random.seed", "torch.seed"} & used
    assert "random" not in imports(path)
    if path != Path("fedbicross_flwr/models/registry.py"):
        assert not {"torch.manual_seed", "torch.cuda.manual_seed_all"} & used
    drawn = {name for name in used if name.startswith(("np.random.", "numpy.random."))}
    assert drawn <= {"np.random.Generator", "np.random.Philox", "np.random.default_rng"}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and dotted(node.func) == "np.random.default_rng":
            assert node.args, f"{path}:{node.lineno}: a generator without a seed"


def test_only_who_asks_the_machine_knows_of_cuda() -> None:
    asks = {Path("fedbicross_flwr/compute.py"), Path("fedbicross_flwr/runs/record.py")}
    for path in FILES:
        if path in asks or path.parts[:2] == ("fedbicross_flwr", "launch"):
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith("cuda"), f"{path}:{node.lineno}: {node.value!r}"
            assert not (isinstance(node, ast.Attribute) and node.attr == "cuda"), f"{path}: .cuda"


def test_the_network_of_a_method_is_its_task_alone() -> None:
    """Methods touch neither files nor the clock, so that they can be tested and repeated."""
    for path in FILES:
        if path.parts[:2] == ("fedbicross_flwr", "methods"):
            tops = {name.partition(".")[0] for name in imports(path)}
            assert not tops & {"time", "pathlib", "os", "shutil", "tempfile", "safetensors"}
