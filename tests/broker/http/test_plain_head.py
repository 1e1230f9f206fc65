"""Plain heads: read as the parser reads them, or not at all."""

from typing import Any

import httptools
import pytest
from hypothesis import example, given, strategies as st

from broker import limits
from broker.http.plain_head import read_plain_head

HEAD = b"POST /v1/stream/a HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\nProducer-Seq: 17"
WHOLE = HEAD + b"\r\n\r\n"


class Parsed:
    """What uvicorn's parser makes of a request."""

    def __init__(self, data: bytes) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.ends = 0
        parser: Any = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        assert (parser.get_method(), parser.get_http_version()) == (b"POST", "1.1")
        assert parser.should_keep_alive()
        assert not parser.should_upgrade()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ends += 1


pieces = st.one_of(
    st.sampled_from(
        [
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b":",
            b": ",
            b"\0",
            b"%41",
            b"#",
            b"?",
            b",",
            b"\x80",
            b"0",
            b"+4",
            b"chunked",
        ]
    ),
    st.binary(max_size=3),
)
lines = st.sampled_from(
    [
        b"Content-Length: 4",
        b"Content-Length: 5",
        b"content-length: 04",
        b"Transfer-Encoding: chunked",
        b"Connection: keep-alive",
        b"Connection: close",
        b"Connection: upgrade",
        b"Upgrade: websocket",
        b"Expect: 100-continue",
        b"Host: there",
        b" folded",
        b"X: a b  c",
    ]
)


@given(
    st.lists(lines, max_size=3),
    st.lists(st.tuples(st.integers(0, len(HEAD)), pieces), max_size=2),
    st.binary(max_size=6),
)
@example([], [], b"body")
@example([b"Connection: keep-alive"], [], b"body")
def test_what_is_read_the_parser_reads_alike(added: list[bytes], changes: list[tuple[int, bytes]], body: bytes) -> None:
    head = b"\r\n".join([HEAD, *added])
    for at, piece in changes:
        head = head[:at] + piece + head[at:]
    data = head + b"\r\n\r\n" + body
    plain = read_plain_head(data)
    if plain is None:
        return
    parsed = Parsed(data)
    assert (plain.target, plain.headers) == (parsed.target, dict(parsed.headers))
    assert len(parsed.headers) == len(plain.headers)
    assert parsed.body == data[len(data) - plain.body_bytes :]
    assert parsed.ends == 1


@pytest.mark.parametrize("head", [WHOLE, WHOLE.replace(b"17\r\n", b"17\r\nConnection: Keep-Alive\r\n"), WHOLE.lower()])
def test_plain_request_is_read(head: bytes) -> None:
    """Or the test above would say nothing. Names are what may differ in case."""
    head = head.replace(b"post", b"POST").replace(b"http/1.1", b"HTTP/1.1")
    plain = read_plain_head(head + b"body")
    assert plain is not None
    assert (plain.target, plain.headers[b"producer-seq"], plain.body_bytes) == (b"/v1/stream/a", b"17", 4)


@pytest.mark.parametrize(
    "data",
    [
        WHOLE + b"bod",
        WHOLE + b"body" + WHOLE,
        WHOLE[:-1],
        b"GET" + WHOLE[4:] + b"body",
        WHOLE.replace(b"1.1", b"1.0") + b"body",
        WHOLE.replace(b": 4", b": 4, 4") + b"body",
        WHOLE.replace(b": here", b": here\r\nhost: there") + b"body",
        WHOLE.replace(b": here", b":here") + b"body",
        WHOLE.replace(b": here", b": \x80") + b"body",
        WHOLE.replace(b"here", b"h" * limits.PLAIN_HEAD_BYTES_MAX) + b"body",
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert read_plain_head(data) is None
