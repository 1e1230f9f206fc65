"""Where streams and sessions are."""

import pytest

from consumer.address import broker_url, messages_target, source_path, stream_url, with_query

BROKER = broker_url("http://127.0.0.1:4437")


@pytest.mark.parametrize(
    ("stream", "url"),
    [
        ("sessions/s:1~", "http://127.0.0.1:4437/v1/stream/sessions/s:1~"),
        ("a b/%2F?c#\N{LATIN SMALL LETTER E WITH ACUTE}", "http://127.0.0.1:4437/v1/stream/a%20b/%252F%3Fc%23%C3%A9"),
        ("http://127.0.0.1:4437/elsewhere/s", "http://127.0.0.1:4437/elsewhere/s"),
    ],
)
def test_a_stream_is_named_by_its_path_or_its_url(stream: str, url: str) -> None:
    assert str(stream_url(BROKER, stream)) == url


@pytest.mark.parametrize(
    "stream", ["", "/", "a//b", "a/", "a/../b", "./a", "https://127.0.0.1:4437/s", "http://elsewhere/s", "ftp://x/s"]
)
def test_what_is_no_stream_of_this_broker_is_refused(stream: str) -> None:
    with pytest.raises(ValueError, match=r"not|must"):
        stream_url(BROKER, stream)


@pytest.mark.parametrize("url", ["", "127.0.0.1:4437", "ftp://h", "http://", "http://h:port"])
def test_what_is_no_url_of_a_broker_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        broker_url(url)


def test_a_broker_may_live_under_a_path() -> None:
    broker = broker_url("https://example.org/chat/")

    assert str(stream_url(broker, "s")) == "https://example.org/chat/v1/stream/s"
    assert source_path(broker, "a b") == "/v1/stream/a%20b"


@pytest.mark.parametrize("session_id", ["", ".", ".."])
def test_what_is_no_session_id_is_refused(session_id: str) -> None:
    with pytest.raises(ValueError, match="session_id"):
        messages_target(session_id)


def test_the_query_is_ordered_and_escaped() -> None:
    url = with_query(str(stream_url(BROKER, "s")), {"offset": "a+/&b", "live": "sse", "cursor": None})

    assert url == "http://127.0.0.1:4437/v1/stream/s?live=sse&offset=a%2B%2F%26b"
