"""What models run on, in words: two timings are of one kind where these are equal (floor 3)."""

import platform
from pathlib import Path
from typing import Literal

import torch

__all__ = ["machine", "processor"]


def machine(device: torch.device, *, compiled: bool | Literal["round"] = False) -> str:
    """A device and what else decides how fast a model is on it; without the host's name.

    Args:
        device: of the model.
        compiled: whether forward passes are, or whole rounds recorded.

    >>> machine(torch.device("cpu")) == machine(torch.device("cpu"), compiled=True)
    False
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    how = {False: [], True: ["compiled"], "round": ["rounds recorded"]}[compiled]
    return ", ".join([name, f"{torch.get_num_threads()} threads", f"torch {torch.__version__}", *how])


def processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
