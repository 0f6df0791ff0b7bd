"""A model as a PyTorch module that scales its inputs; imported where PyTorch is wanted."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["ScaledMLP"]


class ScaledMLP(nn.Sequential):
    """Linear and activation modules behind what :func:`pdadmm.inputs.scaling.normalise_inputs` does.

    In operations of PyTorch, so that it can be saved, traced and exported, and gradients reach the inputs.
    It has no parameters of its own: the state dict is that of the modules.

    Parameters
    ----------
    parts
        The modules.
    features_per_hop, input_norm, hop_decay
        As of `normalise_inputs`; where features are negative, hellinger makes NaN of them.
    """

    def __init__(self, *parts: nn.Module, features_per_hop: int, input_norm: str, hop_decay: float) -> None:
        super().__init__(*parts)
        self.features_per_hop, self.input_norm, self.hop_decay = features_per_hop, input_norm, hop_decay

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of inputs (..., n_0) as they are in a feature file."""
        blocks = x.split(self.features_per_hop, dim=-1)
        scaled = [self._scaled(block, self.hop_decay**k) for k, block in enumerate(blocks)]
        return super().forward(torch.cat(scaled, dim=-1))

    def _scaled(self, block: torch.Tensor, by: float) -> torch.Tensor:
        if self.input_norm == "hellinger":
            total = block.sum(dim=-1, keepdim=True)
            block = (block / torch.where(total > 0, total, torch.ones_like(total))).sqrt()
        return block * by

    def extra_repr(self) -> str:
        """What is done to the inputs."""
        return (
            f"features_per_hop={self.features_per_hop}, input_norm={self.input_norm!r}, "
            f"hop_decay={self.hop_decay:g}"
        )
