"""A disk that is full or read-only, at a site and at the centre. Such disks are small tmpfs mounts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import SITES, Deployed, deployed, simulated

from fedbicross_flwr.errors import FedBiCrossError

pytestmark = pytest.mark.deploy


def mount(path: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(
            f"a tmpfs cannot be mounted here, and nothing else is full for root as well: {done.stderr}"
        )


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    mounted: list[Path] = []
    names = [*SITES, "full", "sealed"]
    with deployed(tmp_path_factory.mktemp("room") / "fed", sites=names, started=[]) as here:
        try:
            for path, options in (
                (here.store("full"), "size=64k"),
                (here.store("sealed"), "size=1m,ro"),
                (here.run, "size=64k"),
            ):
                path.mkdir(parents=True)
                mount(path, options)
                mounted.append(path)
            for name in names:
                here.start_site(name)
            yield here
        finally:
            for path in mounted:
                subprocess.run(["umount", "--lazy", str(path)], check=False)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def test_a_full_disk_at_the_centre_fails_the_run_in_one_line(centre: Deployed) -> None:
    status, details = centre.made.wait_for_run(centre.start([*SITES, "full", "sealed"]), 600.0)
    assert status == "finished:failed"
    assert "No space left on device" in details and str(centre.run) in details


def test_a_read_only_disk_at_the_centre_fails_the_run_in_one_line(centre: Deployed) -> None:
    # Nothing can be written at all, so the run is over before start-run has seen it begin.
    remount(centre.run, "ro")
    try:
        with pytest.raises(FedBiCrossError, match="start-run ended with status 1") as said:
            centre.start([*SITES, "full", "sealed"])
    finally:
        remount(centre.run, "rw")
    assert "Read-only file system" in str(said.value) and str(centre.run) in str(said.value)


def test_with_room_the_run_goes_on_without_the_sites_that_cannot_write(centre: Deployed) -> None:
    remount(centre.run, "size=200m")
    centre.finish(centre.start([*SITES, "full", "sealed"]))
    assert centre.digests() == simulated()[0]
    for name, reason in (("full", "No space left on device"), ("sealed", "Read-only file system")):
        entry = centre.entry(name)
        assert entry["state"] == "refused" and reason in entry["reason"]
        assert str(centre.site(name).folder) not in entry["reason"]  # the centre is not told the site's paths
        assert str(centre.store(name)) in centre.made.sites[name].logged()  # its own log has them


def test_a_site_with_room_again_is_taken_late(centre: Deployed) -> None:
    remount(centre.store("full"), "size=50m")
    centre.finish(centre.start([*SITES, "full", "sealed"]))
    assert centre.entry("full")["state"] == "done" and centre.entry("full")["late"]
    assert centre.entry("sealed")["state"] == "refused"
