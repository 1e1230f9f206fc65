"""A session on which entries were applied, and short forms of what they did."""

import json
from typing import Any

from broker.core.entry import Entry
from broker.core.outcome import Outcome, Result
from consumer.wire import Code
from tests.broker.core.entries import SESSION, create_session
from tests.broker.core.replica import Replica

NOW = "2023-11-14T22:13:20.000Z"  # BEGIN_MS


def replica(*entries: Entry) -> Replica:
    """A session on which these were applied, all with success."""
    made = Replica()
    for entry in (create_session(), *entries):
        outcome = made.do(entry)
        assert outcome.changed, outcome
    return made


def said(outcome: Outcome) -> Result | Code:
    """The outcome in one word."""
    return outcome.code or outcome.result


def shapes(made: Replica) -> list[str]:
    """The records of the session, each as `type key operation status`."""
    found = []
    for record in made.records(SESSION):
        event = json.loads(record)
        status = event["value"].get("status", "")
        found.append(" ".join([event["type"], event["key"], event["headers"]["operation"], status]).strip())
    return found


def statuses(made: Replica) -> list[str]:
    """The generation records, each as `id operation status`."""
    events: list[Any] = [json.loads(each) for each in made.records(SESSION)]
    return [
        f"{event['key']} {event['headers']['operation']} {event['value']['status']}"
        for event in events
        if event["type"] == "generation"
    ]


def last_value(made: Replica) -> Any:
    """The value of the newest record."""
    return json.loads(made.records(SESSION)[-1])["value"]
