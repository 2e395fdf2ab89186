"""Results that take long, kept for those who ask again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Kept(Generic[_Value]):
    """The results that were asked for last, by key; any thread may ask.

    Parameters
    ----------
    most : int
        So many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._made: OrderedDict[bytes, Future[_Value]] = OrderedDict()

    def get(self, key: bytes, make: Callable[[], _Value]) -> _Value:
        """What is kept, else what `make` makes; who asks meanwhile waits for it.

        Raises
        ------
        Exception
            What `make` has raised; it is called again by the next who asks.
        """
        with self._lock:
            known = self._made.get(key)
            result = known or Future()
            self._made[key] = result
            self._made.move_to_end(key)
            if len(self._made) > self._most:
                self._made.popitem(last=False)
        if known is None:
            self._fill(key, result, make)
        return result.result()

    def _fill(self, key: bytes, result: Future[_Value], make: Callable[[], _Value]) -> None:
        try:
            result.set_result(make())
        except BaseException as error:
            with self._lock:
                if self._made.get(key) is result:
                    del self._made[key]
            result.set_exception(error)
