"""Words of memory that processes share, and sleeping until one changes (futex(2), Linux).

Elsewhere waiting is a short timed wait: correct, less quick. A word has one writer; a reader may see it late, never
torn. What was written before a word was set is visible to who sees the word, whatever order a processor would rather
have: `Words.set` passes a memory fence before it writes, `Words.get` one after it has read. Who peeks at many words
passes one fence for all.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
import threading

import numpy as np

_NUMBERS = {"x86_64": 202, "aarch64": 98, "ppc64le": 221, "s390x": 238, "riscv64": 98}
_WAIT, _WAKE = 0, 1
_EVERYBODY = 0x7FFFFFFF
_WORD = struct.Struct("<I")
_FALLBACK_S = 0.0002
SLICE_S = 0.02
"""How long a waiter sleeps before it looks whether a peer is lost; a change itself wakes it at once."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_NUMBER = _NUMBERS.get(platform.machine()) if sys.platform == "linux" else None
_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall


class Words:
    """The little-endian u32 words of a piece of shared memory, by byte offset (a multiple of 4)."""

    def __init__(self, view: memoryview) -> None:
        """Look at ``view``, which must be writable for `set`; for one thread at a time."""
        self._view = view
        self._base = np.frombuffer(view, dtype=np.uint8).__array_interface__["data"][0]
        self._held = threading.Lock()
        self._held.acquire()

    def fence(self) -> None:
        """Keep the order of all memory accesses before and after."""
        # A lock nobody contends for is atomic operations without a system call (0.1 us both). What came before a
        # release stays before it, what follows an acquire stays behind it, and the two keep their order. Taken first
        # and released then they would be no fence: what is around could move in from both ends and cross inside.
        self._held.release()
        self._held.acquire()

    def peek(self, at: int) -> int:
        """The word now; what its writer wrote before it is seen only after a `fence`."""
        return int(_WORD.unpack_from(self._view, at)[0])

    def get(self, at: int) -> int:
        """The word now; what its writer wrote before it is seen from here on."""
        value = self.peek(at)
        self.fence()
        return value

    def set(self, at: int, value: int) -> None:
        """Write the word, after all that was written or read before, and wake everybody who sleeps on it."""
        self.fence()
        _WORD.pack_into(self._view, at, value)
        if _NUMBER is not None:
            _SYSCALL(_NUMBER, ctypes.c_void_p(self._base + at), _WAKE, _EVERYBODY, None, None, 0)

    def wait_while(self, at: int, value: int, seconds: float) -> None:
        """Sleep while the word is ``value``, at most ``seconds``. May return early: look again."""
        if _NUMBER is None:
            threading.Event().wait(min(seconds, _FALLBACK_S))
            return
        timeout = _Timespec(int(seconds), int(seconds % 1 * 1e9))
        address = ctypes.c_void_p(self._base + at)
        _SYSCALL(_NUMBER, address, _WAIT, ctypes.c_uint32(value), ctypes.byref(timeout), None, 0)
