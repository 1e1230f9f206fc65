"""An event loop whose clock is virtual: it never sleeps, runs no thread, and does the same again from the same seed.

Everything that runs in it belongs to a `Process`, or to the world around them. A process can be killed (nothing of it
ever runs again, no `finally` either: as after SIGKILL) and frozen (as by SIGSTOP: what became due runs at the thaw).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")
_current: ContextVar[Process | None] = ContextVar("process", default=None)


class Stuck(AssertionError):
    """Nothing is left to happen, or it goes on for ever, and the schedule is not over."""


class Process:
    """What can be killed and frozen together: `context` is what its tasks are made in."""

    def __init__(self) -> None:
        self.alive = True
        self.frozen = False
        self.held: list[_Timer] = []
        self.context = copy_context()
        self.context.run(_current.set, self)


class _Timer(asyncio.TimerHandle):
    """What is to be called, soon or later: `asyncio`'s own takes as long again for what helps to debug."""

    __slots__ = ("call", "context", "process", "with_args")

    def __init__(self, call: Callable[..., object], with_args: tuple[Any, ...], context: Context | None) -> None:
        # Not that of the base class: it is one in name only, for those who say what they hold.
        self.call: Callable[..., object] | None = call
        self.with_args = with_args
        self.context = copy_context() if context is None else context
        self.process = self.context.get(_current)

    def cancel(self) -> None:
        self.call = None
        self.with_args = ()

    def cancelled(self) -> bool:
        return self.call is None


class _Sleep:
    """What a task waits for that lets time pass: for `asyncio` a future, whose timer is the task's next step."""

    __slots__ = ("_asyncio_future_blocking", "_delay_s", "_is_cancelled", "_loop", "_timer", "_wake")

    def __init__(self, loop: Loop, delay_s: float) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._asyncio_future_blocking = False
        self._is_cancelled = False

    def __await__(self) -> Generator[_Sleep | None, None, None]:
        if self._delay_s <= 0:
            yield None
            return
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> Loop:
        return self._loop

    def add_done_callback(self, wake: Callable[[_Sleep], object], *, context: Context) -> None:
        self._wake = wake
        self._timer = self._loop.call_later(self._delay_s, wake, self, context=context)

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 -- as that of a future
        if self._timer.cancelled():
            return False
        self._is_cancelled = True
        timer = self._timer
        timer.cancel()
        self._loop.call_soon(self._wake, self, context=timer.context)
        return True

    def result(self) -> None:
        if self._is_cancelled:
            raise asyncio.CancelledError


class Loop(asyncio.AbstractEventLoop):
    """See the module. What this simulation needs of an event loop, and no more."""

    def __init__(self, steps_max: int = 5_000_000) -> None:
        self._now = 0.0
        self._ready: deque[_Timer] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = 0
        self._steps_max = steps_max
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()  # those that are not done
        self.errors: list[str] = []
        """What nobody caught."""

    # -- driving -----------------------------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until `main` is over. Raises Stuck."""
        asyncio._set_running_loop(self)  # noqa: SLF001 -- documented, for those who write loops
        try:
            task = self.create_task(main)
            self._run(task.done)
            return task.result()
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001 -- as above

    def _run(self, is_over: Callable[[], bool]) -> None:
        """Do what is ready; when nothing is, let time pass until something is. One function, for it is called most."""
        ready, timers = self._ready, self._timers
        for _ in range(self._steps_max):
            if is_over():
                return
            if ready:
                timer = ready.popleft()
            elif timers:
                when, _, timer = heapq.heappop(timers)
                if timer.call is not None and when > self._now:
                    self._now = when
            else:
                raise Stuck("nothing is left to happen")
            call, process = timer.call, timer.process
            if call is None:
                continue
            if process is not None and (process.frozen or not process.alive):
                process.held.append(timer)  # for the thaw, or for `bury`
                continue
            try:
                timer.context.run(call, *timer.with_args)
            except Exception as error:  # noqa: BLE001 -- nobody waits for it; the schedule tells it
                self.errors.append(f"in {call}: {error!r}")
        raise Stuck("it goes on for ever")

    def thaw(self, process: Process) -> None:
        """Let a frozen process go on."""
        process.frozen = False
        held, process.held = process.held, []
        self._ready.extend(held)

    def bury(self, processes: list[Process]) -> None:
        """Let what was killed end in peace, once nobody looks any more: no task is left pending."""
        for process in processes:
            process.alive = True
            self.thaw(process)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()

        async def rest() -> None:
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(rest())

    def sleep(self, delay_s: float, _: None = None) -> Awaitable[None]:
        """As `asyncio.sleep`, which it stands for while a schedule runs: it costs half as much."""
        return _Sleep(self, delay_s)

    # -- what asyncio asks of a loop -----------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True

    def call_soon(  # type: ignore[override]  # the base class binds the arguments' types with a TypeVarTuple
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        timer = _Timer(callback, args, context)
        self._ready.append(timer)
        return timer

    def call_later(  # type: ignore[override]  # as above
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Timer:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # as above
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Timer:
        self._order += 1
        timer = _Timer(callback, args, context)
        heapq.heappush(self._timers, (when, self._order, timer))
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]  # eager tasks of later versions are not used
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.add(task)  # a killed process holds its own no more, and the collector would find them pending
        task.add_done_callback(self._tasks.discard)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # noqa: ARG002 -- as above; threads there are none
        """At once, in this thread."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 -- whatever it is, whoever waits is told
            done.set_exception(error)
        return done

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")
