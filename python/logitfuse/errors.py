"""Every error logitfuse raises on purpose.

Each says what was wrong, the value, and what to do; the data is also on the error as attributes.

::

    LogitfuseError
    ├── ModelError                         .path
    │   ├── ModelNotFoundError             (FileNotFoundError)
    │   └── ModelLoadError                 (ValueError)  llama.cpp or we refuse the file
    ├── MemberError                        .member .text  a member failed while answering
    │   └── DecodeError                    (RuntimeError)  .code  llama_decode failed
    ├── ContextLengthError                 (ValueError)  .member .n_tokens .n_ctx
    ├── PromptError                        (ValueError)  empty, or not UTF-8
    ├── VocabError                         (ValueError)
    │   └── UnsupportedTokenizerError      .model_type
    ├── FusionError                        (ValueError)  .member  rows, weights, pools, sampling
    ├── ConfigError                        (ValueError)  .path .key
    ├── TimeLimitError                     .seconds
    └── BusyError                          .retry_after .closing  come again later
"""

from __future__ import annotations

from pathlib import Path


class LogitfuseError(Exception):
    """Base of all errors of this package."""


class ModelError(LogitfuseError):
    """A model file cannot be used.

    Attributes
    ----------
    path : Path
        The file.
    """

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message)
        self.path = path


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no such file."""


class ModelLoadError(ModelError, ValueError):
    """The file is not a GGUF model that can generate text."""


class MemberError(LogitfuseError):
    """A member failed in the middle of an answer; what was generated is kept.

    Attributes
    ----------
    member : str
        Name of the member.
    text : str
        The answer so far.
    """

    def __init__(self, message: str, *, member: str, text: str = "") -> None:
        super().__init__(message)
        self.member = member
        self.text = text


class DecodeError(MemberError, RuntimeError):
    """``llama_decode`` failed.

    Attributes
    ----------
    code : int
        Its return code.
    """

    def __init__(self, message: str, *, member: str, code: int, text: str = "") -> None:
        super().__init__(message, member=member, text=text)
        self.code = code


class ContextLengthError(LogitfuseError, ValueError):
    """A prompt does not fit a member's context.

    Attributes
    ----------
    member : str
        Name of the member.
    n_tokens : int
        Length of the prompt in that member's tokens.
    n_ctx : int
        That member's context length in tokens.
    """

    def __init__(self, *, member: str, n_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"member '{member}' has n_ctx={n_ctx} but the prompt is {n_tokens} tokens; "
            "raise -c/--ctx-size (n_ctx) or shorten the prompt"
        )
        self.member = member
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class PromptError(LogitfuseError, ValueError):
    """A prompt that no member can be given."""


class VocabError(LogitfuseError, ValueError):
    """A vocabulary that cannot be built, or a token it does not have."""


class UnsupportedTokenizerError(VocabError):
    """The tokenizer does not map text to bytes one to one (WordPiece lower-cases and drops spaces).

    Attributes
    ----------
    model_type : str
        The tokenizer's type.
    """

    def __init__(self, message: str, *, model_type: str) -> None:
        super().__init__(message)
        self.model_type = model_type


class FusionError(LogitfuseError, ValueError):
    """Rows, weights or parameters that cannot be fused.

    Attributes
    ----------
    member : int or None
        Index of the offending member, if it is one member's fault.
    """

    def __init__(self, message: str, *, member: int | None = None) -> None:
        super().__init__(message)
        self.member = member


class ConfigError(LogitfuseError, ValueError):
    """A configuration that cannot be used.

    Attributes
    ----------
    path : Path or None
        The file, if it came from one.
    key : str or None
        The offending key, dotted.
    """

    def __init__(self, message: str, *, path: Path | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.key = key


class TimeLimitError(LogitfuseError):
    """A prompt could not be read, or a text not be scored, within the time limit of its request.

    Attributes
    ----------
    seconds : float
        The limit.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the prompt could not be read within {seconds:g} seconds; give a shorter one, or "
            "raise the time limit"
        )
        self.seconds = seconds


class BusyError(LogitfuseError):
    """A request that cannot be taken now.

    Attributes
    ----------
    retry_after : float
        Seconds after which it may be tried again.
    closing : bool
        Nothing is accepted any more.
    """

    def __init__(self, message: str, *, retry_after: float, closing: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.closing = closing
