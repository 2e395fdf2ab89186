"""The one room that imports llama_cpp: load, tokenize, decode, rows.

It drives llama.cpp through llama-cpp-python's low-level (ctypes) layer.  llama.cpp aborts the
process on several kinds of misuse (ids out of range, batches over n_batch, ...): everything is
checked here before the call.
"""

from llama_cpp import Llama

from logitfuse.llama.backend import backend_info, last_log
from logitfuse.llama.context import LlamaContext
from logitfuse.llama.decoder import NO_ROOM, LlamaDecoder, Piece, Row
from logitfuse.llama.model import LlamaModel, render_template

__all__ = [
    "NO_ROOM",
    "Llama",
    "LlamaContext",
    "LlamaDecoder",
    "LlamaModel",
    "Piece",
    "Row",
    "backend_info",
    "last_log",
    "render_template",
]
