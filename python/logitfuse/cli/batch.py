"""``logitfuse batch``: answer a file of requests, as OpenAI's batches do."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from logitfuse.cli import output
from logitfuse.cli.options import Flag, ModelOptions
from logitfuse.config import FuseConfig
from logitfuse.errors import ConfigError

if TYPE_CHECKING:
    from logitfuse.api.batch import BatchRequest, Result, Results

#: Stands for a pipe.
_PIPE = Path("-")
_File = Annotated[Path, Parameter(allow_leading_hyphen=True)]


def batch(
    requests: _File,
    results: _File,
    /,
    *,
    parallel: Annotated[int, Parameter(name=["--parallel", "-np"], validator=Number(gte=1))] = 4,
    alias: Annotated[str | None, Parameter(name=["--alias", "-a"])] = None,
    retry: Flag = False,
    skip_bad: Flag = False,
    json: Flag = False,
    models: ModelOptions | None = None,
) -> None:
    """Answer a file of requests in OpenAI's batch format, many at once.

    Every line is {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions" or
    "/v1/completions", "body": {...}}; bodies are as for logitfuse serve.  Results come as they are
    ready, a line each, and are kept from that moment: if the command ends early, the same command
    goes on.  A request that was changed since is asked again.  The exit status is 1 if one failed.

    Examples:

        logitfuse batch requests.jsonl results.jsonl -m a.gguf -m b.gguf

        logitfuse batch requests.jsonl results.jsonl -e pair.toml -np 8 --alias gpt-4o-mini

        cat requests.jsonl | logitfuse batch - - -e pair.toml > results.jsonl

    Parameters
    ----------
    requests
        File of requests; -: a pipe.
    results
        File that results are added to; -: stdout, which keeps nothing for another time.
    parallel
        Requests that are answered at once.
    alias
        Name of the model, instead of the ensemble's own.
    retry
        Ask again what failed in an earlier run; of results of one request the last one counts.
    skip_bad
        Leave lines out that are no requests, and count them.
    json
        Print JSON when all is done.
    """
    from logitfuse.api.batch import Results, read_requests

    for path in (requests, results):
        if str(path).startswith("-") and path != _PIPE:
            raise ConfigError(f"there is no option '{path}'; a file of that name is './{path}'")
    piped = results == _PIPE
    if piped and json:
        raise ConfigError("--json prints where the results go; give them a file")
    asked, skipped = read_requests(_read(requests), requests, skip_bad=skip_bad)
    if skipped:
        lines = [str(bad.line) for bad in skipped]
        some = output.some(len(lines), "line")
        output.note(f"{some} cannot be used: {output.listed(lines)}")
    run = Run(asked, (models or ModelOptions()).configs(alias), parallel)
    if piped:
        run.answer(asked, lambda result: output.say(result.line))
    else:
        with Results(results) as kept:
            run.resume(kept, retry=retry)
    if json:
        output.dump({**run.as_dict(), "skipped": len(skipped)})
    else:
        output.note(run.summary)
    if run.failures:
        output.note(
            f"{len(run.failures)} of {len(asked)} failed, the first: {': '.join(run.failures[0])} "
            "(correct them, or --retry asks them again)"
        )
        sys.exit(1)


def _read(path: Path) -> bytes:
    try:
        return output.piped() if path == _PIPE else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the requests: {error}", path=path) from None


@dataclass
class Run:
    """Requests on their way to results.

    Attributes
    ----------
    requests : sequence of BatchRequest
    configs : sequence of FuseConfig
        Of the ensembles that are asked.
    slots : int
    answered : int
        New results.
    failures : list of (str, str)
        Which requests failed, now or in an earlier run, and why.
    tokens : Counter of str
        Of prompts and of completions, as usage counts them.
    seconds : float
        From the moment when the models were loaded.
    """

    requests: Sequence[BatchRequest]
    configs: Sequence[FuseConfig]
    slots: int
    answered: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def resume(self, results: Results, *, retry: bool) -> None:
        """Answer what has no result yet; says what is kept when that is cut short."""
        from logitfuse.api.batch import StoppedError

        todo = []
        for request in self.requests:
            wrong = results.failure(request) if request in results else None
            if request not in results or (retry and wrong is not None):
                todo.append(request)
            elif wrong is not None:
                self.failures.append((request.custom_id, wrong))

        self._note_others(results, {request.id for request in todo})

        def keep(result: Result) -> None:
            try:
                results.append(result)
            except OSError as error:
                raise ConfigError(
                    f"{error.strerror or error}: {self._kept(results.path)}", path=results.path
                ) from error

        try:
            self.answer(todo, keep)
        except (KeyboardInterrupt, StoppedError):
            output.note(self._kept(results.path))
            raise

    def _note_others(self, results: Results, todo: Container[str]) -> None:
        """Say how many results that stay are not of these ensembles."""
        from logitfuse.api.service import fingerprint

        own = {None, *map(fingerprint, self.configs)}
        n = sum(
            request.id not in todo
            and not request.body.get("logitfuse")  # that may make it another one
            and results.fingerprint(request) not in own
            for request in self.requests
        )
        if n:
            output.note(
                f"{output.some(n, 'result')} from before came from another ensemble "
                "(system_fingerprint); give another file of results to ask all again"
            )

    def _kept(self, path: Path) -> str:
        new = output.some(self.answered, "new result")
        return f"{new} kept in '{path}'; the same command goes on"

    def answer(self, todo: Sequence[BatchRequest], keep: Callable[[Result], object]) -> None:
        """Answer requests, and show how far that is."""
        from logitfuse.api.batch import answer
        from logitfuse.api.limits import Limits
        from logitfuse.api.service import Api
        from logitfuse.batching import Batcher

        if not todo:
            return
        with output.working("loading the models"):
            batcher = Batcher(self.configs, slots=self.slots, queue=sys.maxsize)
        with closing(batcher), output.progress() as bar:
            n = len(self.requests)
            line = bar.add_task("", total=n, completed=n - len(todo))
            started = time.perf_counter()

            def take(result: Result) -> None:
                keep(result)
                self._count(result)
                self.seconds = time.perf_counter() - started
                bar.advance(line)

            answer(Api(batcher, Limits(prompt=sys.maxsize)), todo, take)

    def _count(self, result: Result) -> None:
        self.answered += 1
        if result.failure is None:
            usage = result.body["usage"]
            self.tokens.update({key: usage[key] for key in ("prompt_tokens", "completion_tokens")})
        else:
            self.failures.append((result.request.custom_id, result.failure))

    @property
    def summary(self) -> str:
        """What was done."""
        known = len(self.requests) - self.answered
        before = f", {known} known from before" if known else ""
        return (
            f"{output.some(len(self.requests), 'request')}: "
            f"{output.some(self.answered, 'new result')}{before}; "
            f"{self.tokens['prompt_tokens']} tokens read and {self.tokens['completion_tokens']} "
            f"written in {self.seconds:.1f} s"
        )

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "requests": len(self.requests),
            "known": len(self.requests) - self.answered,
            "answered": self.answered,
            "failed": len(self.failures),
            "prompt_tokens": self.tokens["prompt_tokens"],
            "completion_tokens": self.tokens["completion_tokens"],
            "seconds": self.seconds,
        }
