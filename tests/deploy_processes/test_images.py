"""The images of deploy/compose: named so that the scripts find in them what they call. Nothing is pulled."""

from __future__ import annotations

import re
import tomllib

import pytest
from federation import SCRIPTS

COMPOSE = SCRIPTS / "compose"
PROJECT = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text())["project"]
PACKAGES = {"ssh-keygen": "openssh-client", "openssl": "openssl", "pkill": "procps"}
"""What scripts call and Flower's image may lack -> Ubuntu's package with it."""


def images() -> list[tuple[str, str]]:
    """Return file and image of every place that names one."""
    files = sorted(path for path in COMPOSE.iterdir() if path.is_file())
    return [
        (path.name, image) for path in files for image in re.findall(r"BASE[:=] ?(\S+)", path.read_text())
    ]


def test_every_file_names_an_image() -> None:
    assert [name for name, _ in images()] == ["Dockerfile", "superlink.yml", "supernode.yml"]


@pytest.mark.parametrize(("file", "image"), images())
def test_the_image_has_flower_s_pinned_version_on_ubuntu_and_a_python_that_will_do(
    file: str, image: str
) -> None:
    named = re.fullmatch(r"flwr/(superlink|supernode):([\d.]+)-py3\.(\d+)-ubuntu24\.04", image)
    assert named, f"{file}: {image}, where a bare version would be Alpine's image, without bash"
    assert f"flwr[simulation]=={named[2]}" in PROJECT["dependencies"]
    (least,) = re.findall(r"^>=3\.(\d+)$", PROJECT["requires-python"])
    assert int(named[3]) >= int(least)


@pytest.mark.parametrize("program", list(PACKAGES))
def test_what_scripts_call_is_installed_by_root_before_the_image_s_user_is_back(program: str) -> None:
    scripts = [path.read_text() for path in SCRIPTS.iterdir() if path.is_file()]
    assert any(program in script for script in scripts)
    text = (COMPOSE / "Dockerfile").read_text()
    ((installed, user),) = re.findall(r"USER root\nRUN .*?apt-get install (.*?)\n.*?USER (\w+)\n", text, re.S)
    assert PACKAGES[program] in installed.split() and user == "app"
