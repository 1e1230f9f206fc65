"""What `consumer` offers, and what asking for it costs."""

import subprocess
import sys

import pytest

import consumer


@pytest.mark.parametrize("name", consumer.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(consumer, name).__name__ == name


def test_a_name_that_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="Writer"):
        _ = consumer.Writer


def test_what_the_broker_shares_loads_no_http_client() -> None:
    program = "import sys, consumer.wire, consumer.session; sys.exit('aiohttp' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 0
