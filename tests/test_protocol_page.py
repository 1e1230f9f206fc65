"""docs/protocol.md says what the code does: its tables of codes, limits and routes are compared with it."""

import re
from pathlib import Path

import pytest

from broker import limits
from broker.core.producer import RECEIPTS_MAX
from broker.http.problems import standing_of
from broker.http.session_routes import ROUTES
from consumer.wire import Code
from tests.broker.http.asgi import broker

PAGE = Path(__file__).parent.parent.joinpath("docs", "protocol.md").read_text()


def rows(title: str) -> list[list[str]]:
    """The cells of the first table below a heading, without backticks."""
    section = PAGE.partition(f"\n## {title}\n")[2]
    table = re.search(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
    assert table is not None
    lines = table[0].replace("`", "").splitlines()[2:]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def as_written(name: str, value: float) -> str:
    """A limit as the page has it."""
    if name.endswith(("_BYTES_MAX", "_BYTES_MIN", "_BYTES")):
        for unit, size in (("MiB", limits.MIB), ("KiB", limits.KIB)):
            if value % size == 0:
                return f"{value // size} {unit}"
        return f"{value:,} bytes"
    if "_MS" in name:
        name, value = f"{name}_S", value / 1000
    days = value / (24 * 3600)
    if name.endswith("_S") or "_S_" in name:
        return f"{days:,.0f} days" if days >= 1 and days == int(days) else f"{value:,g} s"
    return f"{value:,}"


def test_every_code_has_its_status_and_whether_to_try_again_on_the_page() -> None:
    written = {code: (status, again) for code, status, again in rows("Errors")}
    assert len(written) == len(rows("Errors"))
    assert written == {
        code.value: (str(standing.status), "yes" if standing.retryable else "")
        for code, standing in standing_of.items()
    }
    assert set(written) == {code.value for code in Code}


def test_every_limit_on_the_page_is_the_brokers() -> None:
    written = {name: bound for _, bound, name in rows("Limits")}
    assert len(written) > 20
    assert written == {name: as_written(name, getattr(limits, name)) for name in written}
    assert f"newest {RECEIPTS_MAX} batches" in PAGE
    assert f"1 to {limits.ID_CHARS_MAX} of" in PAGE


@pytest.mark.parametrize("route", [route for route, _ in rows("Sessions")])
async def test_every_route_on_the_page_is_there(route: str) -> None:
    method, _, target = route.partition(" ")
    async with broker() as client:
        answer = await client.send(
            method, target.format(sid="s", gid="g", mid="m", txid="t"), headers={"producer-seq": "0"}
        )
        assert answer.status != 405
        assert answer.status < 500
        assert b'"NOT_FOUND"' not in answer.body


def test_every_route_of_sessions_is_on_the_page() -> None:
    written = [route for route, _ in rows("Sessions")]
    assert sorted(written) == sorted(f"{route.method} {route.template}" for route in ROUTES)
