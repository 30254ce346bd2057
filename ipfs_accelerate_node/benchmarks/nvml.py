"""What an NVIDIA driver says of its card: energy and why it is slowed. No torch: the daemon has none.

Only where the machine has one card: how runtimes number several depends on settings that are not known here.
Source: nvml.h, NVML API reference.
"""

from __future__ import annotations

import ctypes
from functools import cache

_OK = 0
_SLOWED = {
    0x04: "power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "power_brake",
}


@cache
def _library() -> ctypes.CDLL | None:
    """NVML, initialised; None where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        ready = library.nvmlInit_v2() == _OK
    except (OSError, AttributeError):
        return None
    return library if ready else None


class Card:
    """The one card of this machine."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library = library
        self._handle = handle

    @classmethod
    def find(cls, device: str) -> Card | None:
        """device: as torch or OpenVINO call it. None for what is no NVIDIA card, or not the only one."""
        if device != "cuda:0" or (library := _library()) is None:
            return None
        count, handle = ctypes.c_uint(), ctypes.c_void_p()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _OK or count.value != 1:
            return None
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(handle)) != _OK:
            return None
        return cls(library, handle)

    def energy_mj(self) -> int | None:
        """Millijoules since the driver was loaded; None where the card does not count them."""
        spent = ctypes.c_ulonglong()
        told = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(spent)) == _OK
        return spent.value if told else None

    def slowed(self) -> tuple[str, ...]:
        """Why its clocks are lower than they could be, now; idling is no reason."""
        reasons = ctypes.c_ulonglong()
        if self._library.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle, ctypes.byref(reasons)) != _OK:
            return ()
        return tuple(name for bit, name in _SLOWED.items() if reasons.value & bit)
