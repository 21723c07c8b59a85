"""The command as a user gives it: once on Flower's simulation with Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray_processes import processes_of
from ray_processes import temporary as temporary
from small_runs import TINY, checksums, outcome, read_json, reference


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
def test_simulate_gives_the_numbers_of_the_run_in_process_and_leaves_nothing(
    tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "run"
    script = str(Path(sys.executable).with_name("fedbicross"))
    settings = [f"--set={key}={value}" for key, value in TINY.items()]

    def simulate() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["env", f"TMPDIR={temporary}", script, "simulate", "--out", str(folder), *settings],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )

    done = simulate()
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome(folder) == outcome(reference())
    assert read_json(folder / "run.json")["runner"] == "flower"
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert "personalisation: done" in done.stdout
    assert "<html" in (folder / "report.html").read_text()
    assert not (folder / "stages").exists()
    assert list(temporary.iterdir()) == [] and processes_of(temporary) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]

    before = checksums(folder)
    again = simulate()
    assert again.returncode == 0, again.stderr
    assert "is finished; nothing was run" in " ".join(again.stdout.split())
    assert checksums(folder) == before
