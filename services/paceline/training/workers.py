"""Training in several processes: each computes part of a step, gradients are added up."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets it


class Workers:
    """This process among those of the run.

    Args:
        device: where tensors travel from; NCCL takes a GPU's alone.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count = rank, count
        self._device = device or torch.device("cpu")

    @classmethod
    def join(cls, device: torch.device) -> Self:
        """Meet the others if torchrun's environment says there are any."""
        if any(name not in os.environ for name in ENVIRONMENT) or int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        if device.type == "cuda" and device.index is None:  # each process of a machine has a GPU of its own
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        given = list(tensors)
        if self.count == 1 or not given:
            return
        flat = torch.cat([tensor.flatten() for tensor in given]).to(self._device)
        dist.all_reduce(flat)
        for tensor, summed in zip(given, torch.split(flat, [tensor.numel() for tensor in given]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def agree(self, value: float) -> float:
        """The leader's value, in every process."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self._device)
        dist.broadcast(shared, 0)
        return float(shared)

    def leave(self) -> None:
        """Say good-bye."""
        if self.count > 1:
            dist.destroy_process_group()
