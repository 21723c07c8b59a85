"""What each choice for speed is worth by itself: ``python -m benchmarks.choices``.

Every line is timed in turn with all others, on one thread of a CPU as a run gives to one piece of work, or on
an accelerator.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated
from unittest import mock

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from benchmarks.machine import about
from benchmarks.sizes import Sizes
from benchmarks.stages import AT_ONCE, Bench
from benchmarks.timing import synchronise
from fedbicross_flwr import cross_cluster
from fedbicross_flwr.batch_norm import StatisticsModel, plain_statistics_loss
from fedbicross_flwr.batch_norm_parts import PartwiseModel
from fedbicross_flwr.compute import Compute, cpu_threads
from fedbicross_flwr.config import RuntimeConfig
from fedbicross_flwr.cross_cluster import Source, Target, split_indices
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.inversion import balanced_labels
from fedbicross_flwr.models import build_model

Step = Callable[[], object]
FLOAT32 = torch.float32
MIXED = 40
"""Images of a source in a mixture; 32 of them are for the inner level, as in a step of the preset."""


def inversion_steps(bench: Bench) -> dict[str, Step]:
    """Return gradients of an image batch through one teacher, from the plain way to ours."""
    device, fast = bench.compute.device, bench.compute
    plain, noise = bench.models(1)[0], bench.noise(bench.sizes.images)
    slow = Compute(device, FLOAT32)

    def through(model: nn.Module, images: Tensor, statistics: bool, compute: Compute) -> Step:
        def step() -> None:
            seen = images.detach().requires_grad_(True)
            model.zero_grad(set_to_none=True)
            with compute.autocast():
                logits, loss = (
                    plain_statistics_loss(model, seen) if statistics else (model(seen), seen.new_zeros(()))
                )
            (logits.float().mean() + loss).backward()

        return step

    frozen = copy.deepcopy(plain).requires_grad_(False)
    placed = fast.place(copy.deepcopy(frozen))

    def fused(network: nn.Module) -> Step:
        model = StatisticsModel(network)

        def step() -> None:
            seen = fast.images(noise).detach().requires_grad_(True)
            with fast.autocast():
                logits, loss = model(seen)
            (logits.float().mean() + loss).backward()

        return step

    def in_parts(size: int) -> Step:
        model = PartwiseModel(loaded)

        def step() -> None:
            parts = fast.images(noise).split(size)
            logits, _ = model.read(parts, 1.0, fast)
            for part, answered in zip(parts, logits.split(size), strict=True):
                leaf = part.detach().requires_grad_(True)
                model.accumulate_gradient(leaf, torch.full_like(answered, 1.0 / logits.numel()), fast)

        return step

    # On a CPU a server's teachers are the uploads' own tensors, in their layout.
    loaded = frozen if device.type == "cpu" else placed
    return {
        "inversion: statistics by hooks, weights trainable, float32": through(plain, noise, True, slow),
        "... teachers frozen": through(frozen, noise, True, slow),
        "... channels_last": through(placed, fast.images(noise), True, slow),
        f"... {fast.precision}": through(placed, fast.images(noise), True, fast),
        "... statistics with BatchNorm's kernel and a fused gradient": fused(placed),
        "... weights as the server loads them (ours)": fused(loaded),
        **{f"... {size} images at once, twice": in_parts(size) for size in (bench.sizes.images, AT_ONCE)},
        "no statistics at all": through(placed, fast.images(noise), False, fast),
    }


def training_steps(bench: Bench) -> dict[str, Step]:
    """Return a client's step, from plain PyTorch to ours."""
    device = bench.compute.device
    images, labels = bench.noise(bench.sizes.batch), torch.arange(bench.sizes.batch, device=device) % 8

    def step_of(dtype: torch.dtype, channels_last: bool) -> Step:
        compute, model = Compute(device, dtype), bench.models(1)[0].train()
        seen = images
        if channels_last:
            model, seen = compute.place(model), compute.images(images)
        optimiser = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(compute.logits(model, seen), labels).backward()
            optimiser.step()

        return step

    fast = bench.compute.dtype
    return {
        "client step, float32": step_of(FLOAT32, False),
        "client step, channels_last": step_of(FLOAT32, True),
        f"client step, channels_last and {bench.compute.precision} (ours)": step_of(fast, True),
    }


def answering_steps(bench: Bench) -> dict[str, Step]:
    """Return ways for several frozen teachers to answer."""
    compute, count = bench.compute, bench.sizes.members
    models = [compute.place(model).requires_grad_(False) for model in bench.models(count)]
    images = compute.images(bench.noise(bench.sizes.images))
    folded = [compute.place(fuse(model)).eval() for model in models]
    parameters, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")

    def call(values: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = torch.func.functional_call(skeleton, (dict(values), dict(kept)), (images,))
        return output

    batched = torch.func.vmap(call)

    @torch.no_grad()
    def loop(networks: list[nn.Module]) -> None:
        for network in networks:
            compute.logits(network, images)

    @torch.no_grad()
    def together() -> None:
        with compute.autocast():
            batched(parameters, buffers)

    return {
        f"{count} teachers answer, one after another (ours)": lambda: loop(models),
        "... with BatchNorm folded into the convolutions": lambda: loop(folded),
        "... as one network (vmap over stacked weights)": together,
    }


def mixture_steps(bench: Bench) -> dict[str, Step]:
    """Return steps of stage 2 over mixtures of K sources, with both ways to the products of Eq. 8."""
    compute, sizes = bench.compute, bench.sizes
    config = sizes.config(cross_cluster__normalisation="mixture").cross_cluster
    labels = balanced_labels(MIXED, torch.ones(sizes.spec.num_classes))
    rows = split_indices(labels, 0.8)

    def step_of(clusters: int, few: int, activations: str = "kept") -> Step:
        answers = torch.zeros(MIXED, sizes.spec.num_classes, device=compute.device)
        sources = [
            Source({1: bench.noise(MIXED, k)}, {1: answers}, {1: answers}, *rows) for k in range(clusters)
        ]
        model = compute.place(build_model(sizes.spec, 0))
        weights = torch.full((clusters,), 1 / clusters, device=compute.device)
        chosen = dataclasses.replace(config, activations=activations)
        target, generator = Target(0, model, weights, chosen, compute), torch.Generator()

        def step() -> None:
            with mock.patch.object(cross_cluster, "FEW_SOURCES", few):
                target.step(sources, 1, 2, 0.01, generator)

        return step

    ways: dict[str, tuple[int, str]] = {
        "a backward pass for each": (99, "kept"),
        "a backward pass for each, recomputed": (99, "recomputed"),
        "one forward-mode pass": (0, "kept"),
        "one forward-mode pass, recomputed": (0, "recomputed"),
    }
    return {
        f"step of stage 2, mixture of {clusters} x {len(rows[0])} images, {way}": step_of(clusters, *how)
        for clusters in (2, 3, 4, 8)
        for way, how in ways.items()
    }


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; the median counts.", min=1)] = 7,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", metavar="FILE")] = None,
) -> None:
    """Time every choice in turn, and print milliseconds."""
    compute, console = Compute.of(RuntimeConfig()), Console(width=110)
    sizes = Sizes.named("auto", compute.device.type)
    bench = Bench.here(sizes, compute)
    steps = {
        **inversion_steps(bench),
        **training_steps(bench),
        **answering_steps(bench),
        **mixture_steps(bench),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    with cpu_threads(1):
        for _ in range(rounds + 1):
            for name, step in steps.items():
                synchronise(compute)
                start = time.perf_counter()
                step()
                synchronise(compute)
                times[name].append(time.perf_counter() - start)
    figures = {name: median(values[1:]) for name, values in times.items()}
    for name, seconds in figures.items():
        console.print(f"{seconds * 1e3:9.1f} ms  {name}", highlight=False)
    if out:
        content = {**about(compute, sizes), "seconds": figures}
        write_bytes(out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
