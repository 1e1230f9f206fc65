"""Settings that cannot work are refused where they are made."""

from typing import Any

import pytest

from broker.settings import Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine": "files"},
        {"engine": "kafka"},
        {"kafka_partitions": 0},
        {"port": -1},
        {"port": 65_536},
        {"body_bytes_max": 0},
        {"long_poll_s": 0},
        {"sse_life_s": -1.0},
        {"live_readers_max": 0},
        {"drain_s": 0},
        {"unused_session_s": -1.0},
    ],
)
def test_value_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)
