"""llama.cpp as a library: its log and what it was built for."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llama_cpp.llama_cpp as lib

_log_lines: deque[str] = deque(maxlen=8)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_log(_level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    """Keep llama.cpp's last lines for error messages instead of printing them."""
    line = text.decode("utf-8", "replace").strip()
    if line.strip("."):
        _log_lines.append(line)


_started = False


def start_backend() -> None:
    """Take over llama.cpp's log (it has one for the process) and initialise it, once."""
    global _started
    if not _started:
        lib.llama_log_set(_keep_log, ctypes.c_void_p(0))
        lib.llama_backend_init()
        _started = True


def forget_log() -> None:
    """What is logged from now on belongs to the next call."""
    _log_lines.clear()


def last_log() -> str:
    """llama.cpp's complaint since `forget_log`."""
    lines = [line for line in _log_lines if "failed" in line or "error" in line.lower()]
    return (lines or list(_log_lines) or ["it gives no reason"])[0].rstrip(".")


def call_aside(
    make: Callable[[], Any], *, free: Callable[[Any], object], cancel: Callable[[], object] = bool
) -> Any:
    """Let llama.cpp make something in a thread of its own, so that Ctrl-C is not lost.

    While llama.cpp works it calls our log callback, and a KeyboardInterrupt raised in there goes
    nowhere.  Here it is raised in the calling thread: `cancel` asks for an early end, and what was
    made all the same is freed.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="logitfuse-load") as thread:
        future = thread.submit(make)
        try:
            return future.result()
        except KeyboardInterrupt:
            cancel()
            if handle := future.result():
                free(handle)
            raise


def backend_info() -> dict[str, str | bool | int]:
    """What this build of llama.cpp can do."""
    import llama_cpp

    start_backend()
    return {
        "llama_cpp_python": llama_cpp.__version__,
        "llama_cpp": _build(),
        "system": lib.llama_print_system_info().decode().strip(),
        "gpu_offload": bool(lib.llama_supports_gpu_offload()),
        "mmap": bool(lib.llama_supports_mmap()),
    }


def _build() -> str:
    """Version and commit of llama.cpp, as far as this build knows them."""
    known = []
    for name, title in (("llama_version", ""), ("ggml_version", "ggml "), ("ggml_commit", "")):
        function = getattr(lib._lib, name, None)
        if function is not None:
            function.argtypes, function.restype = [], ctypes.c_char_p
            known.append(title + function().decode())
    return ", ".join(known) or "unknown"


def repacks_safely() -> bool:
    """Whether llama.cpp's repacked weights can be trusted.

    GCC before 13 drops the stores that fill an AMX tile configuration, so llama.cpp built with it
    for an AMX CPU crashes in the first matrix product; the build does not say which compiler it
    saw.
    """
    return "AMX_INT8 = 1" not in str(backend_info()["system"])


def address(name: str) -> int:
    """Address of a C function of libllama."""
    return ctypes.cast(getattr(lib._lib, name), ctypes.c_void_p).value or 0
