"""A model as ONNX, for programs without PyTorch; needs the optional packages of the extra ``onnx``.

The graph is all that `Classifier.predict` does: it takes images as uint8, scales them, and gives calibrated
probabilities. A file is put in place only after onnxruntime has answered as PyTorch does.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedbicross_flwr.artifacts import Classifier, digest, load_model
from fedbicross_flwr.data.source import IMAGE_SIZE
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import check_apart, write_bytes
from fedbicross_flwr.models import state_of
from fedbicross_flwr.seeds import numpy_generator
from fedbicross_flwr.site.prediction import model_file

PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
INPUT: Final = "images"
OUTPUT: Final = "probabilities"
TOLERANCE: Final = 1e-4
"""Largest difference of a probability between ONNX and PyTorch."""

TRIED: Final = (1, 7, 56)
"""Sizes of the batches that both answer."""


@dataclass(frozen=True)
class Exported:
    """A file that was written: the largest difference of a probability, over how many images."""

    path: Path
    difference: float
    images: int


class WholeModel(nn.Module):
    """All that `Classifier.predict` does, as one graph.

    Takes uint8 (n, 28, 28, channels) and returns float32 (n, C), rows that sum to one.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model = classifier.model
        self.temperature = classifier.temperature

    def forward(self, images: Tensor) -> Tensor:
        """Scale as `fedbicross_flwr.data.source.normalise` does, answer, calibrate."""
        scaled = images.permute(0, 3, 1, 2).float() * (2.0 / 255.0) - 1.0
        logits: Tensor = self.model(scaled)
        return (logits / self.temperature).softmax(1)


def export_onnx(model: Path, out: Path) -> Exported:
    """Write a model as ONNX, checked.

    Parameters
    ----------
    model : Path
        See `fedbicross_flwr.site.prediction.model_file`.
    out : Path
        The file to write; one that is there stays as it is if anything fails.

    Raises
    ------
    FedBiCrossError
        When the optional packages are absent, the model cannot be read or would be overwritten, or
        onnxruntime answers otherwise than PyTorch.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise FedBiCrossError(
            f"export-onnx needs packages that are not installed: {', '.join(missing)}; "
            "run uv pip install -e '.[onnx]' in the checkout"
        )
    path = model_file(model)
    check_apart(out, [path])
    classifier = load_model(path, device="cpu")
    content = serialised(classifier)
    difference = largest_difference(content, classifier)
    if not difference <= TOLERANCE:
        raise FedBiCrossError(
            f"{path}: ONNX answers differ from PyTorch's by up to {difference:.2g}, more than "
            f"{TOLERANCE:g} is not taken; {out} was not written"
        )
    return Exported(write_bytes(out, content), difference, sum(TRIED))


def described(classifier: Classifier) -> dict[str, str]:
    """Return what the ONNX file says of itself; the classes are what its outputs mean."""
    return {
        "class_names": json.dumps(list(classifier.class_names), ensure_ascii=False),
        "temperature": repr(classifier.temperature),
        "sha256_of_arrays": digest(state_of(classifier.model)),
        "note": "not a medical device",
    }


def serialised(classifier: Classifier) -> bytes:
    """Return the ONNX file's content; the number of images in a batch is free."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    size = (2, IMAGE_SIZE, IMAGE_SIZE, classifier.spec.channels)
    example = torch.zeros(size, dtype=torch.uint8)
    # The exporter warns of its own use of PyTorch, which is nothing to whoever exports.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            WholeModel(classifier).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("n")}},
        )
    # The exporter notes at each node where in this machine's files it comes from.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(described(classifier))
    content: bytes = program.model_proto.SerializeToString()
    return content


def largest_difference(content: bytes, classifier: Classifier) -> float:
    """Return the largest difference of a probability on random images, flat ones among them.

    It is infinite when a size is not taken or an answer has another shape.
    """
    answer = runner(content)
    generator = numpy_generator(0, "onnx")
    differences = []
    for count in TRIED:
        shape = (count, IMAGE_SIZE, IMAGE_SIZE, classifier.spec.channels)
        images = generator.integers(0, 256, shape, dtype=np.uint8)
        images[: count // 3] = images[: count // 3, :1, :1]
        found, expected = answer(images), classifier.predict(images)
        if found.shape != expected.shape:
            return float("inf")
        differences.append(np.abs(found - expected).max())
    return float(np.max(differences))


def runner(content: bytes) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return a function that lets onnxruntime answer, as whoever uses the file will."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
        return found

    return answer
