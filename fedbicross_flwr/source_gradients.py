"""The gradients of the sources' losses as Eq. 8 asks for them: their products with a direction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

ONE_AT_A_TIME = threading.Lock()
"""PyTorch has one level of forward-mode differentiation for all threads of a process: a second is refused."""


class SourceGradients(Protocol):
    """grad L_1, ..., grad L_K at one point."""

    def along(self, direction: Tensor) -> Tensor:
        """Return ``<grad L_j, direction>`` of every source, (K,); `direction` is flat, (P,)."""

    def lengths(self) -> Tensor:
        """Return ``||grad L_j||`` of every source, (K,)."""


@dataclass(frozen=True)
class GradientRows:
    """Gradients that are there, (K, P): one backward pass each."""

    rows: Tensor

    def along(self, direction: Tensor) -> Tensor:
        """Return the products."""
        products: Tensor = self.rows @ direction
        return products

    def lengths(self) -> Tensor:
        """Return the norms."""
        lengths: Tensor = self.rows.norm(dim=1)
        return lengths


@dataclass(frozen=True)
class DirectionalDerivatives:
    """Gradients that nobody computes: forward-mode differentiation gives all products in one pass.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        The point, by the parameters' names, in the order of a flat direction.
    losses : callable
        ``losses(parameters)`` are L_1, ..., L_K there, (K,).
    """

    parameters: Mapping[str, Tensor]
    losses: Callable[[Mapping[str, Tensor]], Tensor]

    def along(self, direction: Tensor) -> Tensor:
        """Return d/ds of the losses at ``parameters + s * direction`` and s = 0."""
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        parts = direction.split(sizes)
        with ONE_AT_A_TIME, torch.no_grad(), forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(parameter, part.view_as(parameter))
                for (name, parameter), part in zip(self.parameters.items(), parts, strict=True)
            }
            products: Tensor = forward_ad.unpack_dual(self.losses(duals)).tangent.clone()
            return products

    def lengths(self) -> Tensor:
        """Return the norms, by one backward pass each."""
        leaves = {name: parameter.clone().requires_grad_() for name, parameter in self.parameters.items()}
        with torch.enable_grad():
            losses = self.losses(leaves)
        norms = []
        for loss in losses:
            parts = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
            norms.append(torch.stack([part.norm() for part in parts]).norm())
        return torch.stack(norms)
