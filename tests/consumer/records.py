"""The records of a session, as a broker writes them to its log."""

from typing import Any


def opened(
    generation_id: str, message_id: str, *, chunk_format: str = "text", role: str = "assistant", **facts: Any
) -> Any:
    return _generation(generation_id, message_id, "insert", chunk_format, role, **{"status": "streaming", **facts})


def ended(
    generation_id: str,
    message_id: str,
    status: str = "complete",
    *,
    chunk_format: str = "text",
    role: str = "assistant",
    **facts: Any,
) -> Any:
    facts = {**facts, "endedAt": "2026-01-01T00:00:09.000Z"}
    return _generation(generation_id, message_id, "update", chunk_format, role, status=status, **facts)


def chunk(generation_id: str, number: int, message_id: str, content: Any) -> Any:
    return {
        "type": "chunk",
        "key": f"{generation_id}:{number}",
        "value": {"messageId": message_id, "chunk": content},
        "headers": {"operation": "insert"},
    }


def whole(message_id: str, operation: str = "insert", *, role: str = "user", **content: Any) -> Any:
    value = {"id": message_id, "role": role, **content}
    return {"type": "message", "key": message_id, "value": value, "headers": {"operation": operation}}


def stop(generation_id: str, message_id: str) -> Any:
    value = {"messageId": message_id, "requestedBy": "ann", "createdAt": "2026-01-01T00:00:05.000Z"}
    return {"type": "stop", "key": generation_id, "value": value, "headers": {"operation": "insert"}}


def answer(generation_id: str, message_id: str, *texts: str, status: str = "complete") -> list[Any]:
    """All records of one generation of text."""
    chunks = [chunk(generation_id, number, message_id, text) for number, text in enumerate(texts)]
    return [opened(generation_id, message_id), *chunks, ended(generation_id, message_id, status)]


def _generation(generation_id: str, message_id: str, operation: str, chunk_format: str, role: str, **facts: Any) -> Any:
    value = {
        "messageId": message_id,
        "lane": "main",
        "fence": 1,
        "role": role,
        "format": chunk_format,
        "createdAt": "2026-01-01T00:00:00.000Z",
        **facts,
    }
    return {"type": "generation", "key": generation_id, "value": value, "headers": {"operation": operation}}
