"""How does a ``with`` block become a decorator for every kind of function?"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Around:
    """Something for a ``with`` block that can stand as a decorator too: of functions, coroutine functions, generators
    and async generators. A generator is inside from its first step to its end, what its consumer does included."""

    __slots__ = ()

    def __enter__(self) -> Around:
        raise NotImplementedError

    def __exit__(self, *exc_info: Any) -> None:
        raise NotImplementedError

    def _again(self) -> Around:
        """One for a call of its own: calls overlap."""
        raise NotImplementedError

    def __call__(self, function: F) -> F:
        """Decorate ``function``."""
        import inspect

        again = self._again
        wrapper: Callable[..., Any]
        called = vars(type(function)).get("__call__")  # of an object that is called like a function
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):

            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                with again():
                    return await function(*args, **kwargs)

            wrapper = coroutine
        elif inspect.isasyncgenfunction(function):

            async def async_generator(*args: Any, **kwargs: Any) -> Any:
                with again():
                    source = function(*args, **kwargs)
                    try:
                        value = await anext(source)
                        while True:
                            try:
                                sent = yield value
                            except GeneratorExit:
                                raise
                            except BaseException as error:  # noqa: BLE001 - the generator's own to handle
                                value = await source.athrow(error)
                            else:
                                value = await source.asend(sent)
                    except StopAsyncIteration:
                        return
                    finally:
                        await source.aclose()

            wrapper = async_generator
        elif inspect.isgeneratorfunction(function):

            def generator(*args: Any, **kwargs: Any) -> Any:
                with again():
                    return (yield from function(*args, **kwargs))

            wrapper = generator
        else:

            def plain(*args: Any, **kwargs: Any) -> Any:
                with again():
                    return function(*args, **kwargs)

            wrapper = plain
        return wraps(function)(wrapper)  # type: ignore[return-value]
