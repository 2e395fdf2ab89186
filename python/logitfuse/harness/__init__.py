"""A model of lm-evaluation-harness: ``lm_eval --model logitfuse --model_args model=a.gguf+b.gguf``.

The harness finds the model by the entry point that this package declares, from the release after
0.4.13 on.  Up to 0.4.13 it looks for none: ``python -m logitfuse.harness`` then is the harness's
own command line with the model registered, and takes the same arguments.  In Python importing this
package registers the model, for any version::

    import lm_eval, logitfuse.harness
    lm_eval.simple_evaluate(model="logitfuse", model_args={"model": ["a.gguf", "b.gguf"]}, ...)

See `LogitfuseLM` for the arguments and for what is done differently here.
"""

from logitfuse.errors import ConfigError

try:
    import lm_eval  # noqa: F401
except ModuleNotFoundError as error:
    raise ConfigError(
        "lm-evaluation-harness is not installed; run: pip install 'logitfuse[lm-eval]'"
    ) from error

from logitfuse.harness.model import LogitfuseLM

__all__ = ["LogitfuseLM"]
