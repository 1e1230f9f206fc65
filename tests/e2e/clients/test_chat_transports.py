"""The transports that carry a chat of the AI SDK and of TanStack AI over a stream."""

from tests.e2e.clients.node import program
from tests.live import Broker

HALF = "The one, "
WHOLE = "The one, or the other."


async def test_an_ai_sdk_chat_is_joined_in_the_middle_of_an_answer_and_loaded_again(broker: Broker) -> None:
    async with program("aisdk.mjs", f"{broker.url}/v1/stream/chats/c") as chat:
        middle = await chat.heard("middle")
        told = await chat.heard("result")
        await chat.ended()

    streaming = {"status": "streaming", "error": None, "answer": HALF}
    assert middle == {"asking": streaming, "joining": streaming}
    ready = {"status": "ready", "error": None, "answer": WHOLE}
    assert told == {"asking": ready, "joining": ready, "reloaded": ready}


async def test_a_tanstack_chat_is_joined_in_the_middle_of_an_answer_and_loaded_again(broker: Broker) -> None:
    async with program("tanstack.mjs", f"{broker.url}/v1/stream/chats/c") as chat:
        middle = await chat.heard("middle")
        told = await chat.heard("result")
        await chat.ended()

    question = {"role": "user", "text": "Which?"}
    half = [question, {"role": "assistant", "text": HALF}]
    whole = [question, {"role": "assistant", "text": WHOLE}]
    assert middle == {"asking": half, "joining": half}
    assert told == {"asking": whole, "joining": whole, "reloaded": whole, "rendered": whole, "error": None}
