"""Activations that are computed again in the backward pass instead of being kept (gradient checkpointing)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from fedbicross_flwr.batch_norm import UntouchedStatistics, batch_norms


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Keep only what goes into each block; a backward pass has each block compute the rest once more.

    The gradients are the same, and so are running statistics, which the second time leaves alone.

    Parameters
    ----------
    blocks : sequence of nn.Module
        Parts of a network that is called inside, without randomness of their own: a dropout would be drawn
        anew. With an empty sequence everything is kept.
    """

    def contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), UntouchedStatistics(batch_norms(block))

    for block in blocks:
        block.forward = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=partial(contexts, block),
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
