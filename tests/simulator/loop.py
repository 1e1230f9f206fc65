"""An event loop whose clock is virtual: it never sleeps, runs no thread, and does the same again from the same seed.

Everything that runs in it belongs to a `Process`, or to the world around them. A process can be killed (nothing of it
ever runs again, no `finally` either: as after SIGKILL) and frozen (as by SIGSTOP: what became due runs at the thaw).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
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
        self.held: list[_Handle | _Timer] = []
        self.context = copy_context()
        self.context.run(_current.set, self)

    def holds_up(self, handle: _Handle | _Timer) -> bool:
        """Whether this must not run now. It is kept: for the thaw, or for `Loop.bury`."""
        stands_still = self.frozen or not self.alive
        if stands_still:
            self.held.append(handle)
        return stands_still


class _Handle(asyncio.Handle):
    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], loop: Loop, context: Context) -> None:
        super().__init__(callback, args, loop, context)
        self.process = context.get(_current)


class _Timer(asyncio.TimerHandle):
    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], loop: Loop, context: Context
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self.process = context.get(_current)


class Loop(asyncio.AbstractEventLoop):
    """See the module. What this simulation needs of an event loop, and no more."""

    def __init__(self, steps_max: int = 5_000_000) -> None:
        self._now = 0.0
        self._ready: deque[_Handle | _Timer] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = 0
        self._steps_left = steps_max
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
            while not task.done():
                self._step()
            return task.result()
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001 -- as above

    def _step(self) -> None:
        if not self._ready:
            if not self._timers:
                raise Stuck("nothing is left to happen")
            when, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled():
                self._now = max(self._now, when)
                self._ready.append(timer)
            return
        handle = self._ready.popleft()
        self._steps_left -= 1
        if self._steps_left < 0:
            raise Stuck("it goes on for ever")
        if not handle.cancelled() and (handle.process is None or not handle.process.holds_up(handle)):
            handle._run()  # noqa: SLF001 -- a loop runs handles; asyncio has no public name for that

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
        handle = _Handle(callback, args, self, copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]  # as above
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # as above
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._order += 1
        timer = _Timer(when, callback, args, self, copy_context() if context is None else context)
        heapq.heappush(self._timers, (when, self._order, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is dropped when its time comes."""

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
