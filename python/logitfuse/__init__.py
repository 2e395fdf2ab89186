"""Several local GGUF language models answer as one."""
