"""The replay of stage 2 (Algorithm 1, lines 7-15): the iterates in their order, every target along them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedbicross_flwr.config_fedbicross import CrossClusterConfig
from fedbicross_flwr.cross_cluster import Source, Target
from fedbicross_flwr.parallel import Call, Check, Step, call_here, side_by_side
from fedbicross_flwr.sgd import SCHEDULES


def replay_schedule(iterations: int, config: CrossClusterConfig, generator: torch.Generator) -> list[int]:
    """Return the iterates t in the order of one synthesis round's replay: all sweeps one after another."""
    replayed = replayed_steps(iterations, config)
    order: list[int] = []
    for _ in range(config.sweeps):
        if config.replay_order == "shuffled":
            picks = torch.randperm(len(replayed), generator=generator).tolist()
            order += [replayed[index] for index in picks]
        else:
            order += replayed
    return order


def replayed_steps(iterations: int, config: CrossClusterConfig) -> list[int]:
    """Return the t that are replayed: the last ``replay_fraction`` of 1..T, at least one."""
    count = max(round(iterations * config.replay_fraction), 1)
    return list(range(iterations - count + 1, iterations + 1))


def optimise(
    targets: Sequence[Target],
    sources: Sequence[Source],
    order: Sequence[int],
    iterations: int,
    done: int,
    total: int,
    generators: Sequence[torch.Generator],
    after_step: Callable[[int], None] = lambda step: None,
    workers: int = 1,
    call: Call = call_here,
) -> Tensor:
    """Replay one synthesis round over all targets, which do not depend on each other.

    Parameters
    ----------
    order : sequence of int
        The t of each step.
    iterations : int
        T.
    done, total : int
        Steps before this round, and steps of all rounds: the learning-rate schedule is in fractions of
        the whole.
    generators : sequence of torch.Generator
        One a target: draws the images of its steps.
    after_step : callable
        Called with 1, 2, ... for each step of each target.
    workers : int, default 1
        Targets that are worked on at once.
    call : callable, optional
        Works on one target, here or elsewhere.

    Returns
    -------
    Tensor
        w after each step, (steps, K, K).
    """
    steps = itertools.count(1)

    def replay(work: tuple[Target, torch.Generator], check: Check) -> Tensor:
        target, generator = work
        history, state = call(
            replay_target,
            *(target, sources, order, iterations, done, total, generator),
            after_step=lambda step: after_step(next(steps)),
            check=check,
        )
        target.load(state)
        return history

    pairs = list(zip(targets, generators, strict=True))
    return torch.stack(side_by_side(replay, pairs, workers, in_turns=call is call_here), dim=1)


def replay_target(
    target: Target,
    sources: Sequence[Source],
    order: Sequence[int],
    iterations: int,
    done: int,
    total: int,
    generator: torch.Generator,
    after_step: Step,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Replay one synthesis round over one target; see `optimise` for what is not said here.

    Parameters
    ----------
    target : Target
        G_k, w_k and the optimiser, all changed in place.
    sources : sequence of Source
        Those of all K clusters, by cluster.
    generator : torch.Generator
        Draws the images of each step.
    after_step : callable
        Called with 1, 2, ...

    Returns
    -------
    tuple of Tensor and dict of str to Tensor
        w_k after each step, (steps, K), and the target's state after the last.
    """
    config, history = target.config, []
    for step, t in enumerate(order):
        lr = config.lr * SCHEDULES[config.schedule]((done + step) / total)
        target.step(sources, t, iterations, lr, generator)
        history.append(target.weights.detach())
        after_step(step + 1)
    return torch.stack(history).cpu(), target.state()
