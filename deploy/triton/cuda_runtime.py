"""What ONNX Runtime's Python interface lacks of CUDA: copies between parts of its buffers, by address.

A sequence's keys are one piece of memory a head in a slot of the cache, so a slot is filled, moved and copied by
strided copies, which the driver does at the memory's speed. Copies run on CUDA's default stream, which ONNX Runtime's
streams do not wait for: `synchronise` before a session runs that reads them.
"""

from __future__ import annotations

import ctypes
from functools import cache

import onnxruntime as ort

LIBRARIES = ("libcudart.so.13", "libcudart.so.12")
DEFAULT_KIND = 4
"""cudaMemcpyDefault: the addresses tell where they are."""


class CudaError(RuntimeError):
    """A call of CUDA's runtime failed."""


@cache
def runtime() -> ctypes.CDLL:
    """CUDA's runtime library, as ONNX Runtime loads it. Raises CudaError where there is none."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError(f"none of {', '.join(LIBRARIES)} can be loaded: install onnxruntime-gpu[cuda,cudnn]")


def copy(target: int, source: int, size: int) -> None:
    """Copy bytes between any two addresses; from and to the host it is done on return."""
    _check(runtime().cudaMemcpy(ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), DEFAULT_KIND))


def copy_strided(target: int, target_stride: int, source: int, source_stride: int, size: int, count: int) -> None:
    """Copy `count` pieces of `size` bytes that stand so many bytes apart."""
    if not size:
        return
    _check(
        runtime().cudaMemcpy2D(
            ctypes.c_void_p(target),
            ctypes.c_size_t(target_stride),
            ctypes.c_void_p(source),
            ctypes.c_size_t(source_stride),
            ctypes.c_size_t(size),
            ctypes.c_size_t(count),
            DEFAULT_KIND,
        )
    )


def fill_zero(target: int, size: int) -> None:
    """Clear bytes."""
    _check(runtime().cudaMemset(ctypes.c_void_p(target), 0, ctypes.c_size_t(size)))


def synchronise() -> None:
    """Wait for copies and fills."""
    _check(runtime().cudaStreamSynchronize(None))


def free_memory() -> int:
    """Bytes of the device that nobody holds."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _check(runtime().cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
    return free.value


def _check(status: int) -> None:
    if status:
        runtime().cudaGetErrorString.restype = ctypes.c_char_p
        raise CudaError(f"CUDA: {runtime().cudaGetErrorString(status).decode()} (error {status})")
