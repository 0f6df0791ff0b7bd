"""As many devices as $STANDIN_DEVICES says, one by default."""

import os
from typing import Any


class CUDARuntimeError(RuntimeError):
    pass


def getDeviceCount() -> int:
    count = int(os.environ.get("STANDIN_DEVICES", "1"))
    if not count:
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return count


def driverGetVersion() -> int:
    return 13000


def runtimeGetVersion() -> int:
    return 13000


def getDeviceProperties(number: int) -> dict[str, Any]:
    return {"name": b"Stand-in", "uuid": bytes([number] * 16)}
