"""As many devices as $STANDIN_DEVICES says, one by default."""

import os
import threading
import weakref
from typing import Any

#: those that were made, by their ptr
events: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class _Current(threading.local):
    """The device of a thread, which begins on the first."""

    device = 0


current = _Current()


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int | str) -> None:
        names = {700: "cudaErrorIllegalAddress: an illegal memory access was encountered"}
        super().__init__(names.get(status, str(status)) if isinstance(status, int) else status)


def eventQuery(ptr: int) -> int:
    """0 where it was reached, 600 where not; 700 on another device, and from query $STANDIN_FAILS_AT on.

    A GPU would make a context on that one, which takes memory and may fail.
    """
    global queries
    if events[ptr].device != current.device:
        return 700
    queries += 1
    if queries >= int(os.environ.get("STANDIN_FAILS_AT", "1000000000")):
        return 700
    return 0 if events[ptr]._reached.is_set() else 600


queries = 0


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
