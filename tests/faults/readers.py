"""Readers that drop and resume at random, over every way to read, and write down all they see."""

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum, auto

from tests.faults.client import Page
from tests.faults.history import Place, View, place_of
from tests.faults.storm import Storm

START = "-1"
STAY_S_MAX = 1.5


class Way(Enum):
    """How a reader reads until it drops."""

    CATCH_UP = auto()
    LONG_POLL = auto()
    SSE = auto()
    SSE_LIKE_A_BROWSER = auto()  # the address stays that of the beginning, `Last-Event-ID` tells where to resume


@dataclass(eq=False)
class Reader:
    """Follows one path from its start, life after life, and resumes at its offset however it was interrupted.

    `may_vanish`: the path is deleted now and then; for any other one a 404 or 410 is a violation once it was there.
    """

    storm: Storm
    name: str
    path: str
    is_json: bool
    may_vanish: bool = False
    offset: str = START
    view: View | None = None
    seen_once: bool = False

    def __post_init__(self) -> None:
        self.chance = self.storm.chance(f"{self.path}/reader {self.name}")

    async def run(self) -> None:
        """Read until cancelled, or until the end of a stream that does not come back."""
        while self.may_vanish or self.view is None or self.view.ended is None:
            way = self.chance.choice(list(Way))
            try:
                async with asyncio.timeout(self._stay_s()):
                    await self._read(way)
            except TimeoutError:
                continue

    async def reached(self, place: Place) -> bool:
        """Whether it has seen everything up to there."""
        return place_of(self.offset) == place or (place.position == 0 and self.view is None)

    def _stay_s(self) -> float:
        """Often just long enough for a request to be cut in two."""
        return STAY_S_MAX * self.chance.random() ** 3 + 0.01

    async def _read(self, way: Way) -> None:
        match way:
            case Way.CATCH_UP:
                await self._poll(None)
            case Way.LONG_POLL:
                await self._poll("long-poll")
            case Way.SSE:
                await self._follow(self.offset, None)
            case Way.SSE_LIKE_A_BROWSER:
                await self._follow(START, None if self.offset == START else self.offset)

    async def _poll(self, live: str | None) -> None:
        while True:
            page = await self.storm.client.page(self.path, self.offset, live=live)
            if page is None or not self._take(page):
                await self.storm.pause(self.chance)
                return
            if page.closed and not self.may_vanish:
                return
            if live is None and page.up_to_date:
                await self.storm.pause(self.chance)

    async def _follow(self, offset: str, last_event_id: str | None) -> None:
        events = self.storm.client.events(self.path, offset, is_json=self.is_json, last_event_id=last_event_id)
        async with aclosing(events):
            async for page in events:
                if not self._take(page):
                    break
        await self.storm.pause(self.chance)

    def _take(self, page: Page) -> bool:
        """Write down a page; False when there was none because the stream is not there."""
        if page.status not in (200, 204):
            self._lose(page.status)
            return False
        self.seen_once = True
        place = place_of(page.next_offset)
        if place.incarnation:
            self._add(page, place)
        elif page.content:
            self.storm.history.complain(f"{self.name} was given content of {self.path} with no offset behind it")
        return True

    def _add(self, page: Page, place: Place) -> None:
        view = self.view
        if view is None or view.incarnation != place.incarnation:
            if self.offset != START:
                self._complain(f"slid from {self.offset} to {page.next_offset}")
            view = self.view = View(self.name, self.path, place.incarnation)
            self.storm.history.views.append(view)
        if place.position != view.position + len(page.content):
            self._complain(f"at {view.position} was given {len(page.content)} and told it is at {page.next_offset}")
        if view.ended is not None and page.content:
            self._complain(f"was given more at {view.position} after the end at {view.ended}")
        view.content += page.content
        self.offset = page.next_offset
        if page.closed:
            view.ended = view.position

    def _lose(self, status: int) -> None:
        if status not in (404, 410) or (self.seen_once and not self.may_vanish):
            self._complain(f"at {self.offset} was answered {status}")
        self.offset, self.view = START, None

    def _complain(self, what: str) -> None:
        self.storm.history.complain(f"{self.name} of {self.path} {what}")


def starting_points(chance: random.Random, offsets: list[str], count: int) -> list[str]:
    """Some of the offsets that writers were told: any of them is a place to begin to read."""
    return chance.sample(offsets, min(count, len(offsets)))
