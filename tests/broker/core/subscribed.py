"""A subscription on a replica: the streams that it is to, and the wake that it has."""

from __future__ import annotations

from broker.core.entry import Place
from broker.core.state import Wake
from tests.broker.core.entries import SUBSCRIPTION
from tests.broker.core.replica import Replica

A, B = "a/1", "a/2"
LIFE = 0xA1


def at(position: int, path: str = A, life: int = LIFE) -> Place:
    return (path, life, position)


def wake(replica: Replica) -> Wake:
    held = replica.subscription(SUBSCRIPTION).wake
    assert held is not None
    return held
