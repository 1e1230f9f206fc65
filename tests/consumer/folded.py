"""A session's records, folded, and short looks at what came of them."""

from collections.abc import Iterable
from typing import Any

from consumer.session import SessionFold


def folded(records: Iterable[Any]) -> SessionFold:
    folding = SessionFold()
    for record in records:
        folding.add(record)
    return folding


def only_item(records: Iterable[Any]) -> dict[str, Any]:
    (item,) = folded(records).items()
    return item


def text_of(item: dict[str, Any]) -> str:
    return "".join(part["text"] for part in item["message"]["parts"])


def reloaded(folding: SessionFold) -> SessionFold:
    copy = SessionFold()
    for item in reversed(folding.items()):
        message_id: Any = item["id"]
        copy.load(folding.ordinal(message_id), message_id, folding.dump(message_id))
    return copy
