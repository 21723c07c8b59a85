"""Model files: safetensors with a description of the network, written whole or not at all.

Nothing is pickled. A file says what it takes to build its network again, and carries a checksum of its
tensors, so that `load_model` is all one needs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute, resolve_device
from fedbicross_flwr.data.source import class_names_problem, normalise
from fedbicross_flwr.errors import FedBiCrossError, MachineError
from fedbicross_flwr.files import refuse_pipe, written
from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, load_state
from fedbicross_flwr.models.checks import model_problem

NOT_THERE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""Error numbers that say that there is no such file; with any other one the file may well be whole."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values, whatever the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{values.dtype}|{tuple(values.shape)}|".encode())
        total.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write tensors with a few words about them (`facts`) and their checksum, wholly or not at all.

    Raises
    ------
    MachineError
        When the file cannot be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**(facts or {}), "digest": digest(contiguous)}
    with written(path) as temporary:
        try:
            # From the tensors' own memory: the iterates of an inversion may be gigabytes.
            safetensors.torch.save_file(contiguous, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Read what `write_tensors` wrote.

    Raises
    ------
    FedBiCrossError
        When the file is absent, is no safetensors file, or its tensors do not have their checksum.
    MachineError
        When the file may be whole, and the system does not let it be read.
    """
    try:
        refuse_pipe(path)
        # Of a file that may not be read, safetensors says that there is none.
        path.open("rb").close()
        with safetensors.safe_open(path, framework="pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, safetensors.SafetensorError) as error:
        kept = isinstance(error, OSError) and error.errno not in NOT_THERE
        raise (MachineError if kept else FedBiCrossError)(
            f"cannot read {path}: {error}; check its name and who may read it, or copy it anew"
        ) from error
    if facts.pop("digest", None) != digest(tensors):
        raise FedBiCrossError(f"{path} is damaged: its tensors do not have the checksum it was written with")
    return tensors, facts


def read_whole(path: Path) -> tuple[StateDict, dict[str, str]] | None:
    """Return what `read_tensors` does, or None for a file that is absent or damaged: it can be made again.

    Raises
    ------
    MachineError
        When the system does not let it be read: it may be whole, and would be made again for nothing.
    """
    try:
        return read_tensors(path)
    except MachineError:
        raise
    except FedBiCrossError:
        return None


def save_model(
    path: Path, spec: ModelSpec, state: StateDict, class_names: tuple[str, ...], **facts: str
) -> None:
    """Write one network with all it takes to use it, and more `facts` if there are any."""
    described = {"spec": json.dumps(asdict(spec)), "class_names": json.dumps(list(class_names))}
    write_tensors(path, state, {**facts, **described})


@dataclass(frozen=True)
class Classifier:
    """A network that is ready to use.

    Parameters
    ----------
    model : nn.Module
        In eval mode; takes float32 images (n, channels, 28, 28) scaled to [-1, 1].
    spec : ModelSpec
        What was built.
    class_names : tuple of str
        Names of the outputs.
    temperature : float, default 1.0
        Divides the logits of `predict`; see `fedbicross_flwr.calibration`.
    """

    model: nn.Module
    spec: ModelSpec
    class_names: tuple[str, ...]
    compute: Compute
    temperature: float = 1.0

    def predict(self, images: NDArray[np.uint8], *, calibrated: bool = True) -> NDArray[np.float32]:
        """Return probabilities, float32 (n, C), for uint8 images (n, 28, 28) or (n, 28, 28, channels).

        They are calibrated where the file brings a temperature; with ``calibrated=False`` they are those that
        a run's scores are computed from, but in float32 whatever the run's arithmetic was. The class with the
        highest probability is the same either way.
        """
        shaped = images[..., None] if images.ndim == 3 else images
        if shaped.ndim != 4 or shaped.shape[1:] != (28, 28, self.spec.channels) or shaped.dtype != np.uint8:
            raise FedBiCrossError(
                f"images of shape {images.shape} and type {images.dtype} found, but this model takes uint8 "
                f"images of 28x28 pixels with {self.spec.channels} channel(s)"
            )
        logits = predict_logits(self.model, normalise(shaped), self.compute)
        if calibrated:
            logits = logits / self.temperature
        probabilities: NDArray[np.float32] = logits.softmax(1).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise FedBiCrossError(
                "the model's answers are no numbers: its weights or its temperature are beyond measure; "
                "do not use it"
            )
        return probabilities


def load_model(path: Path | str, device: str = "auto") -> Classifier:
    """Load a model file of a run or of a site, such as ``runs/<id>/sites/client-00/personal.safetensors``.

    Raises
    ------
    FedBiCrossError
        When the file is absent or damaged, or is not a model of this project.
    """
    path = Path(path)
    state, facts = read_tensors(path)
    try:
        spec, names = network_of(facts)
        if problem := model_problem(state, spec):
            raise ValueError(problem)
        temperature = float(facts.get("temperature", "1"))
        if not 0.0 < temperature < math.inf:
            raise ValueError(f"temperature = {temperature} is no positive number")
    except ValueError as error:
        raise no_model(path, error) from error
    compute = Compute(resolve_device(device))
    return Classifier(compute.place(load_state(spec, state)).eval(), spec, names, compute, temperature)


def network_of(facts: Mapping[str, str]) -> tuple[ModelSpec, tuple[str, ...]]:
    """Return the network and the names of its classes that the facts of a model's file tell.

    Raises
    ------
    ValueError
        When they tell of none that could be built.
    """
    try:
        spec, names = ModelSpec(**json.loads(facts["spec"])), json.loads(facts["class_names"])
        with torch.device("meta"):
            build_model(spec, seed=0)
    except KeyError as error:
        raise ValueError(f"{error} is not told, or not known") from error
    except (FedBiCrossError, TypeError, ValueError, RuntimeError) as error:
        # PyTorch's may be pages long.
        raise ValueError(str(error).partition("\n")[0]) from error
    if spec.channels not in (1, 3):
        raise ValueError(f"it takes images of {spec.channels} channels, and there are none but of 1 or 3")
    if not isinstance(names, list) or len(names) != spec.num_classes:
        raise ValueError(f"class_names is not a list of {spec.num_classes} names")
    if problem := class_names_problem(names):
        raise ValueError(problem)
    return spec, tuple(names)


def no_model(path: Path, problem: object) -> FedBiCrossError:
    """Return what is said of a file that describes no model."""
    return FedBiCrossError(
        f"{path} does not describe a model of this project: {problem}; give a file that a run or a site wrote"
    )
