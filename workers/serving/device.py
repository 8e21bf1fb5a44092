"""Whether the device of a model is lost: only a new process can use it again."""

from __future__ import annotations

import torch

# CUDA's words where PyTorch raises a plain RuntimeError.
_LOST = ("CUDA error", "CUDNN_STATUS_", "CUBLAS_STATUS_", "NCCL error", "device-side assert")
# A device without room, or without what was asked of it, is not lost.
_NOT_LOST = ("out of memory", "ALLOC_FAILED", "NOT_SUPPORTED")


class DeviceLostError(RuntimeError):
    """The device does not answer any more."""


def is_lost(error: BaseException) -> bool:
    """Whether an error of PyTorch means that all later work of this process fails too."""
    if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _NOT_LOST):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)  # since PyTorch 2.8
    if accelerator and isinstance(error, accelerator):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
