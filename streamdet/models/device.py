"""Which device the model runs on: never another than asked for without a word."""

import torch

from streamdet.config import Model
from streamdet.errors import DeviceError


def choose_device(settings: Model) -> tuple[torch.device, str | None]:
    """The device, and what to say if it is not the one asked for.

    From here on torch uses one thread a call: one scores, one trains, and more would fight for the cores and change
    the rounding.

    Raises:
        DeviceError: the device asked for is not there and `strict` forbids another.
    """
    torch.set_num_threads(1)
    asked = settings.device
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and not available):
        if asked == "auto" and settings.strict:
            raise DeviceError(
                "model.device is auto and model.strict is set, but there is no GPU: set device to cpu"
            )
        return torch.device("cpu"), None
    index = int(asked.partition(":")[2] or 0)
    if index < available:
        return torch.device("cuda", index), None
    missing = f"model.device is {asked}, but there are {available} CUDA devices"
    if settings.strict:
        raise DeviceError(f"{missing}, and model.strict forbids the CPU")
    return torch.device("cpu"), f"{missing}: scoring on the CPU"
