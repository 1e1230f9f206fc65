"""One reader's model of what providers of models say: Anthropic, OpenAI chat, OpenAI responses."""

from typing import Any

import pytest

from tests.consumer.fold.projected import (
    ANTHROPIC,
    CHAT,
    RESPONSES,
    function,
    parts,
    reasoning,
    text,
    tool,
)

# -- Anthropic ---------------------------------------------------------------------------------------------------------


def anthropic(*content: Any, **fields: Any) -> Any:
    return {"id": "msg_1", "role": "assistant", "content": list(content), "stop_reason": None, **fields}


def test_anthropic_blocks_become_parts_and_the_last_one_goes_on() -> None:
    blocks: list[Any] = [
        {"type": "thinking", "thinking": "so", "signature": "sig"},
        {"type": "redacted_thinking", "data": "ENC"},
        {"type": "text", "text": "Look: "},
        {"type": "tool_use", "id": "c", "name": "search", "input": {"q": 1}},
    ]
    said = [
        reasoning("so", providerMetadata={"anthropic": {"signature": "sig"}}),
        reasoning("", providerMetadata={"anthropic": {"redactedData": "ENC"}}),
        text("Look: "),
    ]

    assert parts(ANTHROPIC, anthropic(*blocks)) == [*said, tool("input-streaming", input={"q": 1})]
    assert parts(ANTHROPIC, anthropic(*blocks, stop_reason="tool_use")) == [
        *said,
        tool("input-available", input={"q": 1}),
    ]
    assert parts(ANTHROPIC, anthropic(*blocks), ended=True)[-1]["state"] == "input-available"


def test_an_anthropic_input_that_is_wrong_fails_the_call_once_nothing_more_can_come() -> None:
    block = {"type": "tool_use", "id": "c", "name": "search"}

    assert parts(ANTHROPIC, anthropic(block)) == [tool("input-streaming")]
    (failed,) = parts(ANTHROPIC, anthropic(block), ended=True)
    assert (failed["state"], "input" in failed) == ("output-error", False)


def test_tools_that_anthropic_runs_have_their_results() -> None:
    call = {"type": "server_tool_use", "id": "c", "name": "web_search", "input": {"query": "x"}}
    found = [{"type": "web_search_result", "url": "https://a.example", "title": "A"}]
    result = {"type": "web_search_tool_result", "tool_use_id": "c", "content": found}
    failure = {**result, "content": {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}}
    told: Any = {"name": "web_search", "providerExecuted": True, "input": {"query": "x"}}

    assert parts(ANTHROPIC, anthropic(call, result)) == [tool("output-available", output=found, **told)]
    assert parts(ANTHROPIC, anthropic(call, failure)) == [
        tool("output-error", errorText="max_uses_exceeded", **told)
    ]  # fmt: skip
    assert parts(ANTHROPIC, anthropic(result)) == [
        tool("output-available", name="web_search", input=None, output=found)
    ]


def test_an_mcp_tool_that_failed_says_why() -> None:
    call = {"type": "mcp_tool_use", "id": "c", "name": "search", "input": {}}
    result = {
        "type": "mcp_tool_result", "tool_use_id": "c", "is_error": True, "content": [{"type": "text", "text": "no"}]
    }  # fmt: skip

    assert parts(ANTHROPIC, anthropic(call, result)) == [
        tool("output-error", providerExecuted=True, input={}, errorText="no")
    ]


def test_anthropic_citations_are_sources_behind_the_text_which_goes_on() -> None:
    page = {"type": "web_search_result_location", "url": "https://a.example", "title": "A"}
    place = {"type": "page_location", "document_index": 0, "document_title": "Report"}
    block = {"type": "text", "text": "It is so", "citations": [page, page, place]}

    assert parts(ANTHROPIC, anthropic(block)) == [
        text("It is so", "streaming"),
        {"type": "source-url", "sourceId": "https://a.example", "url": "https://a.example", "title": "A"},
        {"type": "source-document", "sourceId": "document-0", "mediaType": "application/pdf", "title": "Report"},
    ]


def test_an_anthropic_block_that_is_not_known_is_data() -> None:
    block = {"type": "hologram", "a": 1}

    assert parts(ANTHROPIC, anthropic(block)) == [{"type": "data-hologram", "data": block}]


# -- OpenAI chat -------------------------------------------------------------------------------------------------------


def completion(message: Any, finish_reason: str | None = None) -> Any:
    return {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


def test_the_arguments_of_a_chat_call_are_shown_as_they_arrive() -> None:
    message = {"role": "assistant", "content": "Hm", "tool_calls": [function('{"q":"a')]}

    assert parts(CHAT, completion(message)) == [
        text("Hm"),
        tool("input-streaming", input={"q": "a"}, rawInput='{"q":"a'),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"q":"a"}', tool("input-available", input={"q": "a"})),
        ("", tool("input-available", input={})),
        ('{"q":', tool("output-error", input='{"q":', errorText="The input of the tool call is not JSON.")),
    ],
)
def test_a_chat_call_is_available_when_the_chat_has_finished(arguments: str, expected: Any) -> None:
    message = {"tool_calls": [function(arguments)]}

    assert parts(CHAT, completion(message, "tool_calls")) == [expected]
    assert parts(CHAT, completion(message), ended=True) == [expected]


def test_a_call_that_another_follows_is_available_once_it_is_whole() -> None:
    calls = [function('{"q":1}', "a"), function('{"q":', "b"), function("{}", "d")]
    states = [part["state"] for part in parts(CHAT, completion({"tool_calls": calls}))]

    assert states == ["input-available", "input-streaming", "input-streaming"]


def test_what_else_a_chat_message_holds() -> None:
    message = {
        "content": "",
        "refusal": "No.",
        "reasoning_content": "piece",
        "audio": {"id": "a", "data": "UklG", "transcript": "Heard.", "expires_at": 5},
        "annotations": [{"type": "url_citation", "url_citation": {"url": "https://a.example", "title": "A"}}],
        "function_call": {"name": "old", "arguments": "{}"},
        "tool_calls": [None, {"id": "c", "type": "custom", "custom": {"name": "search", "input": "free"}}],
    }

    assert parts(CHAT, completion(message, "stop")) == [
        text("No.", providerMetadata={"openai": {"refusal": True}}),
        text("Heard."),
        {"type": "source-url", "sourceId": "https://a.example", "url": "https://a.example", "title": "A"},
        {"type": "data-audio", "data": {"id": "a", "data": "UklG", "expires_at": 5}},
        tool("input-available", "function_call", "old", input={}),
        tool("input-available", input="free"),
    ]


def test_only_the_first_choice_is_shown() -> None:
    choices = [None, {"index": 1, "message": {"content": "b"}}, {"index": 2, "message": {"content": "c"}}]

    assert parts(CHAT, {"choices": choices}, ended=True) == [text("b")]


# -- OpenAI responses --------------------------------------------------------------------------------------------------


def response(*output: Any, status: str = "in_progress") -> Any:
    return {"id": "resp_1", "status": status, "output": list(output)}


OF_ITEM: Any = {"providerMetadata": {"openai": {"itemId": "i"}}}


def test_the_items_of_a_response_become_parts() -> None:
    thought = {
        "type": "reasoning",
        "id": "i",
        "summary": [{"type": "summary_text", "text": "so"}],
        "content": [{"type": "reasoning_text", "text": "because"}],
    }
    annotations = [
        {"type": "url_citation", "url": "https://a.example"},
        {"type": "file_citation", "file_id": "f", "filename": "r.txt"},
    ]
    content = [
        {"type": "output_text", "text": "Hel", "annotations": annotations},
        {"type": "refusal", "refusal": "No."},
    ]
    message = {"type": "message", "id": "i", "content": content}

    assert parts(RESPONSES, response(thought, message)) == [
        reasoning("so", id="i:0", **OF_ITEM),
        reasoning("because", id="i:1", **OF_ITEM),
        text("Hel", **OF_ITEM),
        {"type": "source-url", "sourceId": "https://a.example", "url": "https://a.example"},
        {"type": "source-document", "sourceId": "f", "mediaType": "text/plain", "title": "r.txt", "filename": "r.txt"},
        text("No.", "streaming", providerMetadata={"openai": {"refusal": True}}),
    ]


@pytest.mark.parametrize(
    ("item_status", "status", "state"),
    [
        ("in_progress", "in_progress", "streaming"),
        ("completed", "in_progress", "done"),
        ("in_progress", "incomplete", "done"),
        ("in_progress", None, "streaming"),
    ],
)
def test_a_text_is_done_when_its_item_or_the_response_is(item_status: str, status: Any, state: str) -> None:
    item = {"type": "message", "status": item_status, "content": [{"type": "output_text", "text": "x"}]}

    assert parts(RESPONSES, response(item, status=status)) == [text("x", state)]


def test_the_calls_of_a_response_are_available_when_their_items_are_completed() -> None:
    call = {"type": "function_call", "id": "i", "call_id": "c", "name": "search", "arguments": '{"q":1}'}
    custom = {"type": "custom_tool_call", "call_id": "d", "name": "sql", "input": "SELECT"}

    assert parts(RESPONSES, response({**call, "status": "in_progress"})) == [
        tool("input-streaming", input={"q": 1}, rawInput='{"q":1}')
    ]
    assert parts(RESPONSES, response({**call, "status": "completed"}, custom)) == [
        tool("input-available", input={"q": 1}),
        tool("input-streaming", "d", "sql", input="SELECT", rawInput="SELECT", inputEncoding="text"),
    ]


def test_tools_that_openai_runs_have_their_results() -> None:
    search = {"type": "web_search_call", "id": "c", "status": "completed", "action": {"query": "x"}}
    code = {"type": "code_interpreter_call", "id": "d", "status": "interpreting", "code": "1", "outputs": None}
    picture = {"type": "image_generation_call", "id": "e", "status": "completed", "result": "AAAA"}
    remote = {"type": "mcp_call", "id": "f", "name": "ask", "arguments": "{}", "error": "no", "status": "failed"}
    by_provider: Any = {"providerExecuted": True}

    assert parts(RESPONSES, response(search, code, picture, remote)) == [
        tool("output-available", name="web_search", input={"action": {"query": "x"}}, output={}, **by_provider),
        tool("input-available", "d", "code_interpreter", input={"code": "1"}, **by_provider),
        tool("output-available", "e", "image_generation", input={}, output={}, **by_provider),
        {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AAAA"},
        tool("output-error", "f", "ask", input={}, errorText="no", **by_provider),
    ]


def test_tools_that_the_client_runs_are_answered_by_it() -> None:
    call = {"type": "shell_call", "id": "i", "call_id": "c", "status": "completed", "action": {"commands": ["ls"]}}
    output = {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "a"}]}
    asked = {"type": "mcp_approval_request", "id": "r", "name": "ask", "arguments": "{}"}
    told: Any = {"name": "shell", "input": {"action": {"commands": ["ls"]}}}

    assert parts(RESPONSES, response(call)) == [tool("input-available", **told)]
    assert parts(RESPONSES, response(call, output, asked)) == [
        tool("output-available", output=[{"stdout": "a"}], **told),
        tool("approval-requested", "r", "ask", input={}, approval={"id": "r"}),
    ]


def test_an_item_that_is_not_known_is_data() -> None:
    item = {"type": "compaction", "id": "i"}

    assert parts(RESPONSES, response(item)) == [{"type": "data-compaction", "data": item}]
