"""What a client keeps in its own directory: f_i, its personal model, and their scores.

A process may end between the rounds, so nothing is kept in memory. A file is used again only when the key
it was written with fits: settings, data and, for the personal model, the cluster model it came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedbicross_flwr.artifacts import digest, read_tensors, read_whole, save_model
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError, MachineError
from fedbicross_flwr.evaluation import Scores, score_problem
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.models import ModelSpec, StateDict
from fedbicross_flwr.runs.code_version import shared_folder
from fedbicross_flwr.training import LocalModel

LOCAL = "local.safetensors"
PERSONAL = "personal.safetensors"
SCORES = "scores.json"
FORMER = "former"
"""The folder in a site's store for the models that another run replaced, each under its key."""

FORMER_KEPT = 4
"""How many former f_i, and how many former personal models, a site keeps: those that were used last.

Runs that take turns at a site find their f_i again. More of them would fill its disk, and models trained on
images that the site has removed since would never go.
"""

RowScores = dict[str, dict[str, Scores]]
"""Row key -> protocol -> metrics."""


@dataclass(frozen=True)
class SiteStore:
    """One client's directory.

    Parameters
    ----------
    folder : Path
        Made when something is written.
    class_names : tuple of str
        Written into the model files.
    cache : Path, optional
        A folder that several runs share: f_i and its scores are kept there instead, under their key, and it
        is noted there where the personal models are.
    keeps_former : bool, default False
        Whether a model that one of other settings or images replaces is kept in the folder `FORMER`: a site
        may be using it. A simulation has a folder for each run.
    """

    folder: Path
    class_names: tuple[str, ...]
    cache: Path | None = None
    keeps_former: bool = False

    @classmethod
    def of(cls, config: RunConfig, folder: Path, class_names: tuple[str, ...]) -> SiteStore:
        """Return a client's store under the configuration's cache, if it has one."""
        return cls(folder, class_names, shared_folder(config))

    def own(self, key: str) -> Path:
        """Return the folder of f_i."""
        return self.cache / key if self.cache else self.folder

    def save_local(self, model: LocalModel, spec: ModelSpec, key: str, images: str = "") -> None:
        """Keep f_i, with the fingerprint of the images that it was trained on."""
        facts = {
            "key": key,
            "images": images,
            "chosen_epoch": str(model.chosen_epoch),
            "validation_accuracy": json.dumps(list(model.validation_accuracy)),
        }
        with self.keeping_former(LOCAL, (), key):
            save_model(self.own(key) / LOCAL, spec, model.state, self.class_names, **facts)

    def local(self, key: str) -> LocalModel | None:
        """Return f_i if it was trained under this key, now or before another one; a damaged file is none.

        Raises
        ------
        MachineError
            When the system does not let it be read: it would be trained again for nothing.
        """
        for path in (self.own(key) / LOCAL, self.former(key) / LOCAL):
            kept = read_whole(path)
            if kept and kept[1].get("key") == key:
                note_use(path)
                return local_model(*kept)
        return None

    def former(self, key: str) -> Path:
        """Return where a model is kept once one of another key is in its place."""
        return self.folder / FORMER / short_hash(key)

    @contextmanager
    def keeping_former(self, name: str, beside: tuple[str, ...], key: str) -> Iterator[None]:
        """Keep a whole model of another key, and what belongs to it, while it is replaced."""
        copies: dict[Path, bytes] = {}
        # What replaces it may be the work of hours: it is written even if the former model cannot be kept.
        with suppress(OSError, FedBiCrossError):
            kept = read_whole(self.folder / name) if self.keeps_former else None
            if kept and (old := kept[1].get("key", "")) != key:
                for one in (name, *beside):
                    file, to = self.folder / one, self.former(old) / one
                    if file.is_file() and not link(file, to):
                        copies[to] = file.read_bytes()
        yield
        # Copies, where there are no links; not before, as they could take the room that the new model needs.
        with suppress(FedBiCrossError):
            for to, content in copies.items():
                write_bytes(to, content)
        self.forget(name)

    def forget(self, name: str) -> None:
        """Delete the former models of a name, but for the `FORMER_KEPT` that were used last."""
        # Another process may do the same at this very moment.
        with suppress(OSError):
            folders = [path.parent for path in self.folder.glob(f"{FORMER}/*/{name}")]
            for folder in sorted(folders, key=lambda one: one.stat().st_mtime_ns)[:-FORMER_KEPT]:
                shutil.rmtree(folder, ignore_errors=True)

    def sent(self, upload: str, images: str) -> LocalModel | None:
        """Return f_i if its tensors have this checksum and it was trained on these images, now or before.

        Its key also tells the arithmetic, which is another one where a hand-over is used on another device.
        """
        for path in (self.folder / LOCAL, *sorted(self.folder.glob(f"{FORMER}/*/{LOCAL}"))):
            try:
                state, facts = read_tensors(path)
            except FedBiCrossError:
                continue
            if digest(state) == upload and facts.get("images") == images:
                note_use(path)
                return local_model(state, facts)
        return None

    def save_controls(self, scores: RowScores, local: str, key: str) -> None:
        """Keep the scores of f_i, and of f_i trained on: they do not depend on what the server does."""
        write_scores(self.own(local) / f"controls-{key}.json", scores, key)

    def controls(self, local: str, key: str) -> RowScores | None:
        """Return the scores of f_i (known as `local`) that were measured under this key."""
        return read_scores(self.own(local) / f"controls-{key}.json", key)

    def save_personal(
        self,
        state: StateDict,
        spec: ModelSpec,
        scores: RowScores,
        key: str,
        local: str,
        temperature: float = 1.0,
    ) -> None:
        """Keep the personal model with its temperature, then the scores: with them, round 2 is done.

        In a shared cache it is noted beside f_i (known as `local`) where they are.
        """
        facts = {"key": key, "temperature": repr(temperature)}
        with self.keeping_former(PERSONAL, (SCORES,), key):
            save_model(self.folder / PERSONAL, spec, state, self.class_names, **facts)
            write_scores(self.folder / SCORES, scores, key)
        if self.cache:
            note = json.dumps({"folder": str(self.folder.resolve())})
            write_bytes(self.personal_note(local, key), note.encode())

    def personal_scores(self, key: str, local: str) -> RowScores | None:
        """Return the scores of round 2 if it was done under this key, and its model is whole.

        What another run of a shared cache did under this key is copied.
        """
        scores = personal_in(self.folder, key)
        if scores is None and (other := self.noted_folder(local, key)):
            # That run may be removed at this very moment; what was copied is what is looked at.
            with suppress(OSError, MachineError):
                if personal_in(other, key):
                    for name in (PERSONAL, SCORES):
                        write_bytes(self.folder / name, (other / name).read_bytes())
            scores = personal_in(self.folder, key)
        return scores

    def personal_note(self, local: str, key: str) -> Path:
        """Return where a shared cache says which run has the personal model of this key."""
        return self.own(local) / f"personal-{short_hash(key)}.json"

    def noted_folder(self, local: str, key: str) -> Path | None:
        """Return the folder of the run that has the personal model of this key, if one is known."""
        if not self.cache:
            return None
        try:
            return Path(json.loads(self.personal_note(local, key).read_text(encoding="utf-8"))["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def link(file: Path, to: Path) -> bool:
    """Give a file another name as well, which takes no room; return whether its file system can.

    It stays as it is when `write_bytes` puts another in its place, which is renamed to the first name.
    """
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.unlink(missing_ok=True)
        # Of a symbolic link, it is the file behind it that will be replaced.
        os.link(os.path.realpath(file), to)
    except OSError:
        return False
    return True


def note_use(path: Path) -> None:
    """Give the folder of a model the present time: in `FORMER` it decides what is deleted."""
    with suppress(OSError):
        os.utime(path.parent)


def local_model(state: StateDict, facts: Mapping[str, str]) -> LocalModel:
    """Return f_i with what its file says of its training."""
    accuracies = tuple(json.loads(facts["validation_accuracy"]))
    return LocalModel(state, int(facts["chosen_epoch"]), accuracies)


def personal_in(folder: Path, key: str) -> RowScores | None:
    """Return the scores of the personal model in a folder, if both are there under this key and whole.

    Raises
    ------
    MachineError
        When the system does not let the model be read: another could not be put in its place either.
    """
    kept = read_whole(folder / PERSONAL)
    return read_scores(folder / SCORES, key) if kept and kept[1].get("key") == key else None


def short_hash(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_scores(path: Path, scores: RowScores, key: str) -> None:
    """Write scores with the key that they were measured under."""
    write_bytes(path, json.dumps({"key": key, "scores": scores}, indent=1).encode())


def read_scores(path: Path, key: str) -> RowScores | None:
    """Return scores that were measured under this key; a damaged file counts as none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores: RowScores = content["scores"]
        damaged = any(score_problem(one) for row in scores.values() for one in row.values())
        return scores if not damaged and content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
