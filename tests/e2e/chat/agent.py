"""A program that answers whoever asks: each message of a user gets the recorded answer, token by token.

    agent.py URL SESSION PACE_S

It is all that a chat's own backend has to be: it reads the session, and it writes into it. No page knows of it.
"""

import json
import sys
from pathlib import Path

import anyio

from consumer import SessionView
from producer import Fenced, Producer

RECORDING = Path(__file__).with_name("answer.jsonl")


async def main() -> None:
    """Answer for ever; see the module."""
    url, session_id, pace_s = sys.argv[1:]
    chunks = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    async with Producer(url) as producer:
        await producer.create_session(session_id)
        async with SessionView(url, session_id) as view:
            print("ready", flush=True)
            asked = view.messages
            changes = view.follow()
            while True:
                for message in asked:
                    answer_id = f"{message['id']}-answer"
                    if message["role"] == "user" and view.message(answer_id) is None:
                        await answer(producer, session_id, answer_id, chunks, float(pace_s))
                asked = (await anext(changes)).messages


async def answer(producer: Producer, session_id: str, answer_id: str, chunks: list[object], pace_s: float) -> None:
    """Write one answer, unless somebody stops it."""
    try:
        async with producer.generation(session_id, answer_id, resume=True) as generation:
            for chunk in chunks:
                await generation.write(chunk)
                await anyio.sleep(pace_s)
    except Fenced as stopped:
        print(f"{answer_id}: {stopped.reason}", flush=True)


if __name__ == "__main__":
    anyio.run(main)
