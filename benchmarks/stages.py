"""Each stage twice, at the same sizes: as the software runs it, and as `benchmarks.reference` does.

A piece of work is prepared here and timed elsewhere. The software works on as many pieces at once as a run
would, one thread each; the reference has all threads to itself, one piece after another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import reference
from benchmarks.sizes import DISTILLATION, TRAINING, Sizes
from fedbicross_flwr.compute import Compute, server_threads
from fedbicross_flwr.config import RuntimeConfig
from fedbicross_flwr.cross_cluster import Source, Target, split_indices
from fedbicross_flwr.cross_replay import optimise
from fedbicross_flwr.distillation import personalise
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.inversion import balanced_labels, invert
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.methods import ServerTask
from fedbicross_flwr.models import build_model, load_state, state_of
from fedbicross_flwr.noise_adaptation import adapt_statistics, teacher_scores
from fedbicross_flwr.parallel import Check, side_by_side
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.settings import Scalar
from fedbicross_flwr.sgd import Recipe, batches, fit
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.training import ClientTask

Piece = Callable[[], None]

AT_ONCE = 32
"""Images that pass through a teacher at once where memory is to be least."""


@dataclass(frozen=True)
class Stage:
    """A stage, ready to be timed.

    Parameters
    ----------
    name : str
        As printed.
    ours, plain : callable
        ``ours(index)`` and ``plain(index)`` prepare one piece of work.
    steps : int
        Steps of one piece; times are given for one.
    images : int
        Images of one step, for the throughput.
    alone : bool
        Our piece occupies all cores by itself, so that one is worked on at a time.
    alike : bool
        The other side is our own code without something, and works on as many pieces at once.
    warm_up : bool
        Whether a round goes before that does not count. A long piece, made of what others have warmed up, is
        not worth it.
    goals : mapping of str to float
        The ratio that is aimed at, by type of device: ``cpu`` (two cores) or ``cuda``.
    """

    name: str
    ours: Callable[[int], Piece]
    plain: Callable[[int], Piece]
    steps: int
    images: int
    alone: bool = False
    alike: bool = False
    warm_up: bool = True
    goals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """Where the pieces come from.

    Parameters
    ----------
    compute : Compute
        Device and arithmetic of our side; the reference is in float32 on the same device.
    workers : int
        Pieces that our side works on at once.
    """

    sizes: Sizes
    compute: Compute
    workers: int

    @classmethod
    def here(cls, sizes: Sizes, compute: Compute) -> Bench:
        """Return the bench with as many pieces at once as a run has: one an accelerator, or one a core."""
        workers = server_threads(RuntimeConfig()) if compute.device.type == "cpu" else 1
        return cls(sizes, compute, workers)

    def models(self, count: int, seed: int = 0) -> list[nn.Module]:
        """Return networks in the reference's layout, in eval mode, with statistics of some noise."""
        made = []
        for index in range(count):
            model = build_model(self.sizes.spec, 100 * seed + index).to(self.compute.device)
            with torch.no_grad():
                model.train()(self.noise(64, seed=index))
            made.append(model.eval())
        return made

    def noise(self, count: int, seed: int = 0) -> Tensor:
        """Return images (count, 3, 28, 28) of independent pixels."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((count, 3, 28, 28), generator=generator).to(self.compute.device)

    def data(self, count: int, seed: int = 0) -> LabelledImages:
        """Return a client's images: their cost does not depend on what they show."""
        return LabelledImages(
            self.noise(count, seed).cpu(), torch.arange(count) % self.sizes.spec.num_classes
        )

    def ensemble(self, models: Sequence[nn.Module]) -> Ensemble:
        """Return our frozen ensemble of copies of the models, as the server loads them."""
        task = ServerTask(self.sizes.spec, self.sizes.config(), self.compute, Silent())
        return Ensemble([task.load(state_of(model)) for model in models], "logits")

    def task(self, index: int, **changes: int) -> ClientTask:
        """Return a client's task."""
        config = self.sizes.config(**changes)
        return ClientTask(index, self.sizes.spec, config, self.compute, Silent())

    def dealt(self, data: LabelledImages, epochs: int) -> list[tuple[Tensor, Tensor]]:
        """Return the batches of some epochs."""
        device = self.compute.device
        return [
            (data.images[rows].to(device), data.labels[rows].to(device))
            for epoch in range(epochs)
            for rows in batches(len(data), self.sizes.batch, torch.Generator().manual_seed(epoch))
        ]

    def client_training(self) -> Stage:
        """Return a client's training, by the batch; models and images are at hand on both sides."""
        sizes = self.sizes

        def ours(index: int) -> Piece:
            data = self.data(sizes.training_steps * sizes.batch, index).to(self.compute)
            model = self.compute.place(build_model(sizes.spec, index))
            recipe = Recipe.of(sizes.config(client__epochs=1).client)
            order = torch.Generator().manual_seed(index)

            def loss(logits: Tensor, rows: Tensor) -> Tensor:
                return F.cross_entropy(logits, data.labels[rows])

            return lambda: fit(model, data.images, loss, recipe, order, self.compute)

        def plain(index: int) -> Piece:
            dealt = self.dealt(self.data(sizes.training_steps * sizes.batch, index), 1)
            model = build_model(sizes.spec, index).to(self.compute.device)
            return lambda: void(reference.train(model, dealt, *TRAINING))

        goals = {"cpu": 1.8, "cuda": 3.0}
        return Stage("client training, a batch", ours, plain, sizes.training_steps, sizes.batch, goals=goals)

    def inversion(self, statistics: bool = True, at_once: int = 0) -> Stage:
        """Return an inversion step, beside the reference or beside the networks without statistics."""
        sizes = self.sizes
        steps = sizes.steps if at_once else sizes.inversion_steps
        labels = balanced_labels(sizes.images, torch.ones(sizes.spec.num_classes))

        def ours(index: int) -> Piece:
            ensemble = self.ensemble(self.models(sizes.members, index))
            changes: dict[str, Scalar] = {
                "inversion__iterations": steps,
                "inversion__teachers": "in_turn" if at_once else "together",
                "inversion__images_at_once": at_once,
            }
            config = sizes.config(**changes).inversion
            keep, generator = range(steps + 1), torch.Generator().manual_seed(index)
            return lambda: void(invert(ensemble, labels, 3, keep, config, generator, self.compute))

        def plain(index: int) -> Piece:
            loop = reference.Inversion(
                self.models(sizes.members, index),
                labels.to(self.compute.device),
                self.noise(sizes.images, index),
                0.05,
                10.0,
                2.5e-5,
                2,
                torch.Generator().manual_seed(index),
            )
            return lambda: void(loop.run(steps))

        def bare(index: int) -> Piece:
            ensemble = self.ensemble(self.models(sizes.members, index))
            images = self.compute.images(self.noise(sizes.images, index)).requires_grad_(True)

            def work() -> None:
                for _ in range(steps):
                    images.grad = None
                    ensemble.member_logits(images, self.compute).mean().backward()

            return work

        turns = f", in turn, {at_once} images at once" if at_once else ""
        name = f"inversion, a step of {sizes.members} teachers{turns}"
        if statistics:
            goals = {} if at_once else {"cpu": 3.0, "cuda": 5.0}
            return Stage(name, ours, plain, steps, sizes.images * sizes.members, goals=goals)
        images = sizes.images * sizes.members
        name, goals = f"{name}, beside bare networks", {"cpu": 0.8, "cuda": 0.7}
        return Stage(name, ours, bare, steps, images, alike=True, goals=goals)

    def noise_adaptation(self) -> Stage:
        """Return the statistics of Eq. 3, by the iterate."""
        sizes = self.sizes
        iterates = {t: self.noise(sizes.images, t) for t in range(1, sizes.steps + 1)}
        config = sizes.config().teacher

        def ours(index: int) -> Piece:
            ensemble = self.ensemble(self.models(sizes.members, index))

            @torch.no_grad()
            def work() -> None:
                adapt_statistics(ensemble, iterates, config, self.compute)

            return work

        def plain(index: int) -> Piece:
            models, trajectory = self.models(sizes.members, index), list(iterates.values())
            return lambda: void(reference.adapt(models, trajectory, config.noise_momentum))

        return Stage("noise adaptation, an iterate", ours, plain, sizes.steps, sizes.images * sizes.members)

    def cross_cluster(self, normalisation: str = "source") -> Stage:
        """Return an inner and an outer step of all targets, with all that their teachers answer."""
        sizes = self.sizes
        together = normalisation == "mixture"
        clusters, steps = sizes.clusters, sizes.steps
        iterates = [
            {t: self.noise(sizes.images, 10 * k + t) for t in range(1, steps + 1)} for k in range(clusters)
        ]
        labels = balanced_labels(sizes.images, torch.ones(sizes.spec.num_classes))
        rows = split_indices(labels, 0.8)
        config = sizes.config(cross_cluster__normalisation=normalisation)
        replayed = list(range(1, steps + 1))

        def ours(index: int) -> Piece:
            ensembles = [self.ensemble(self.models(sizes.members, k)) for k in range(clusters)]
            targets = [
                Target(
                    k,
                    self.compute.place(build_model(sizes.spec, k)),
                    torch.full((clusters,), 1 / clusters, device=self.compute.device),
                    config.cross_cluster,
                    self.compute,
                )
                for k in range(clusters)
            ]

            teacher = sizes.config(teacher__noise_window=1).teacher

            def offer(k: int, check: Check) -> Source:
                answers = teacher_scores(ensembles[k], iterates[k], replayed, teacher, self.compute)
                return Source(iterates[k], *answers, *rows)

            def work() -> None:
                sources = side_by_side(offer, range(clusters), self.workers)
                generators = [torch.Generator()] * clusters
                optimise(targets, sources, replayed, steps, 0, steps, generators, workers=self.workers)

            return work

        def plain(index: int) -> Piece:
            device = self.compute.device
            made = [self.models(sizes.members, k) for k in range(clusters)]
            # Its statistics cost nothing here: they are timed as noise adaptation.
            parts = [
                reference.Cluster(models, models, list(trajectory.values()), *rows)
                for models, trajectory in zip(made, iterates, strict=True)
            ]
            students = [build_model(sizes.spec, k).to(device).train() for k in range(clusters)]
            weights = torch.full((clusters, clusters), 1 / clusters, device=device)
            loop = reference.CrossCluster(
                parts, students, weights, 20.0, sizes.student_lr, 2e-3, 0.9, 5e-4, together
            )

            def work() -> None:
                for t in replayed:
                    loop.step(t, steps)

            return work

        images = clusters * (clusters * len(rows[0]) + len(rows[1]))
        name = f"inner and outer step, K = {clusters}" + (", as a mixture" if together else "")
        goals = {} if together else {"cpu": 2.5, "cuda": 4.0}
        # The mixture is the longest piece but the cell, and what it is made of is warm by then.
        return Stage(name, ours, plain, steps, images, alone=True, warm_up=not together, goals=goals)

    def personal_distillation(self) -> Stage:
        """Return stage 3, by the batch, from states to a state on both sides."""
        sizes = self.sizes
        count = sizes.steps * sizes.batch

        def ours(index: int) -> Piece:
            data, task = self.data(count, index), self.task(index)
            cluster, own = (state_of(model) for model in self.models(2, index))
            return lambda: void(personalise(data, Shipment(cluster), own, task))

        def plain(index: int) -> Piece:
            dealt = self.dealt(self.data(count, index), sizes.epochs)
            states = [state_of(model) for model in self.models(2, index)]

            def work() -> None:
                cluster, own = (load_state(sizes.spec, one).to(self.compute.device) for one in states)
                student = copy.deepcopy(cluster)
                reference.personalise(student, (cluster, own), dealt, *DISTILLATION)
                state_of(student)

            return work

        steps = sizes.steps * sizes.epochs
        return Stage("personal distillation, a batch", ours, plain, steps, sizes.batch)


STAGES: Mapping[str, Callable[[Bench], Stage]] = {
    "training": Bench.client_training,
    "inversion": Bench.inversion,
    "turns": lambda bench: bench.inversion(at_once=AT_ONCE),
    "bare": lambda bench: bench.inversion(statistics=False),
    "adaptation": Bench.noise_adaptation,
    "cross": Bench.cross_cluster,
    "mixture": lambda bench: bench.cross_cluster("mixture"),
    "personal": Bench.personal_distillation,
}
"""What can be timed, by its name on the command line."""


def void(result: object) -> None:
    """Take a result that nobody reads."""
