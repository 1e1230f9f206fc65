"""One reader's model of the messages of every format."""

from typing import Any

import pytest

from consumer.fold import FORMATS, Fold, fold
from consumer.fold.projection import PROJECTIONS, ui_message
from consumer.plain import JSON
from tests.consumer.fold.chunks import vectors
from tests.consumer.fold.dictations import AI_SDK
from tests.consumer.fold.projected import ANTHROPIC, CHAT, CLIENT, RESPONSES, TANSTACK, parts
from tests.vectors import initial_of


def text(said: str, state: str = "done", **more: Any) -> Any:
    return {"type": "text", **more, "text": said, "state": state}


def reasoning(said: str, state: str = "done", **more: Any) -> Any:
    return {"type": "reasoning", **more, "text": said, "state": state}


def tool(state: str, call_id: str = "c", name: str = "search", **more: Any) -> Any:
    return {"type": "dynamic-tool", "toolName": name, "toolCallId": call_id, "state": state, **more}


# -- who it is ---------------------------------------------------------------------------------------------------------


def test_every_format_that_can_be_folded_can_be_projected() -> None:
    assert PROJECTIONS.keys() == FORMATS.keys()


def test_the_session_names_the_message_and_its_role() -> None:
    message = ui_message("text", fold("text", ["Hi"]), message_id="m", role="user")

    assert message == {"id": "m", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}


@pytest.mark.parametrize(
    ("format_name", "message", "expected"),
    [
        (AI_SDK, {"id": "m", "role": "assistant", "parts": []}, "m"),
        (ANTHROPIC, {"id": "msg_1", "content": []}, "msg_1"),
        (CLIENT, {"messages": [{"id": "u", "role": "user"}, {"id": "a", "role": "assistant"}, {"id": "t"}]}, "a"),
        (CHAT, {}, ""),
    ],
)
def test_without_a_session_the_message_names_itself(format_name: str, message: Any, expected: str) -> None:
    assert ui_message(format_name, message)["id"] == expected


@pytest.mark.parametrize(("role", "expected"), [("developer", "system"), ("tool", "assistant"), ("user", "user")])
def test_a_role_that_the_model_does_not_know_becomes_the_nearest(role: str, expected: str) -> None:
    assert ui_message(None, {"id": "m", "role": role, "content": "x"})["role"] == expected


@pytest.mark.parametrize("message", [None, 5, [], "text", {}])
@pytest.mark.parametrize("format_name", [*sorted(FORMATS), "of-tomorrow", None])
def test_what_is_no_message_has_no_parts(format_name: str | None, message: Any) -> None:
    assert ui_message(format_name, message, message_id="m") == {"id": "m", "role": "assistant", "parts": []}


# -- the AI SDK --------------------------------------------------------------------------------------------------------


def test_a_message_of_the_ai_sdk_is_given_as_it_is() -> None:
    for vector in vectors(AI_SDK):
        folding = Fold.start(AI_SDK, initial_of(vector))
        for chunk in vector["chunks"]:
            folding.add(chunk)
            message = folding.message
            if message.get("metadata", "") is not None:
                assert ui_message(AI_SDK, message) == message


def test_when_the_generation_has_ended_no_text_is_left_streaming() -> None:
    chunks: list[JSON] = [
        {"type": "reasoning-start", "id": "r"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "Hel"},
    ]
    message = fold(AI_SDK, chunks)

    assert [part["state"] for part in parts(AI_SDK, message)] == ["streaming", "streaming"]
    assert [part["state"] for part in parts(AI_SDK, message, ended=True)] == ["done", "done"]


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


def function(arguments: str, call_id: str = "c") -> Any:
    return {"id": call_id, "type": "function", "function": {"name": "search", "arguments": arguments}}


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


# -- AG-UI -------------------------------------------------------------------------------------------------------------


def test_an_ag_ui_run_of_two_steps_is_one_message() -> None:
    messages = [
        {"id": "u", "role": "user", "content": "old question"},
        {"id": "a", "role": "assistant", "content": "old answer"},
        {"id": "v", "role": "user", "content": "question"},
        {"id": "s", "role": "system", "content": "be brief"},
        {"id": "r", "role": "reasoning", "content": "so"},
        {"id": "b", "role": "assistant", "content": "Look: ", "toolCalls": [function('{"q":1}'), function("{}", "d")]},
        {"id": "t", "role": "tool", "toolCallId": "c", "content": '{"found":2}'},
        {"id": "o", "role": "tool", "toolCallId": "d", "content": "", "error": "no"},
        {"id": "p", "role": "activity", "activityType": "PLAN", "content": {"steps": 1}},
        {"id": "e", "role": "assistant", "content": "Two."},
    ]

    assert parts(CLIENT, {"messages": messages, "state": {}}) == [
        reasoning("so", id="r"),
        text("Look: "),
        tool("output-available", input={"q": 1}, output={"found": 2}),
        tool("output-error", "d", input={}, errorText="no"),
        {"type": "data-PLAN", "id": "p", "data": {"steps": 1}},
        {"type": "step-start"},
        text("Two.", "streaming"),
    ]


def test_a_call_that_an_interrupt_names_waits_for_approval() -> None:
    told = {
        "messages": [{"id": "a", "role": "assistant", "toolCalls": [function("{}")]}],
        "pendingInterrupts": [{"id": "i", "toolCallId": "c"}, {"id": "j"}],
    }

    assert parts(CLIENT, told) == [tool("approval-requested", input={}, approval={"id": "i"})]


def test_tanstack_parts_become_parts() -> None:
    call = {"type": "tool-call", "id": "c", "name": "search", "arguments": '{"q":1}', "state": "complete"}
    told = [
        {"type": "thinking", "content": "so", "stepId": "s"},
        {"type": "text", "content": "Look: "},
        {**call, "input": {"q": 1}, "output": {"found": 2}},
        {"type": "tool-result", "toolCallId": "c", "content": '{"found":2}', "state": "complete"},
        {"type": "structured-output", "status": "complete", "raw": "{}", "data": {}},
        {"type": "image", "source": {"type": "url", "value": "https://a.example/i"}},
        {"type": "text", "content": "Two."},
    ]
    messages = [{"id": "u", "role": "user", "parts": []}, {"id": "a", "role": "assistant", "parts": told}]

    assert parts(TANSTACK, {"messages": messages}) == [
        reasoning("so", id="s"),
        text("Look: "),
        tool("output-available", input={"q": 1}, output={"found": 2}),
        {"type": "step-start"},
        {"type": "data-structured-output", "data": {"status": "complete", "raw": "{}", "data": {}}},
        {"type": "file", "mediaType": "image/*", "url": "https://a.example/i"},
        text("Two.", "streaming"),
    ]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"state": "awaiting-input", "arguments": ""}, tool("input-streaming", rawInput="")),
        ({"state": "input-streaming", "arguments": '{"q'}, tool("input-streaming", input={}, rawInput='{"q')),
        ({"state": "input-complete", "arguments": "{}", "input": {}}, tool("input-available", input={})),
        (
            {"state": "approval-requested", "arguments": "{}", "approval": {"id": "p", "needsApproval": True}},
            tool("approval-requested", input={}, approval={"id": "p"}),
        ),
        (
            {"state": "approval-responded", "arguments": "{}", "approval": {"id": "p", "approved": True}},
            tool("approval-responded", input={}, approval={"id": "p", "approved": True}),
        ),
        (
            {"state": "error", "arguments": "{}", "output": {"error": "no"}},
            tool("output-error", input={}, errorText="no"),
        ),
    ],
)
def test_a_tanstack_call_is_as_far_as_its_state_says(told: Any, expected: Any) -> None:
    call = {"type": "tool-call", "id": "c", "name": "search", **told}

    assert parts(TANSTACK, {"messages": [{"id": "a", "role": "assistant", "parts": [call]}]}) == [expected]


# -- posted whole ------------------------------------------------------------------------------------------------------

HELLO = text("Hello")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "Hello"}, [HELLO]),
        ({"text": "Hello"}, [HELLO]),
        ({"parts": [{"type": "text", "text": "Hello"}]}, [{"type": "text", "text": "Hello"}]),
        ({"parts": [{"type": "text", "content": "Hello"}]}, [HELLO]),
        ({"content": [{"type": "input_text", "text": "Hello"}, {"type": "text", "text": "Hello"}]}, [HELLO, HELLO]),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "https://a.example/i"}}]},
            [{"type": "file", "mediaType": "image/*", "url": "https://a.example/i"}],
        ),
        (
            {"content": [{"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0"}}]},
            [{"type": "file", "mediaType": "image/gif", "url": "data:image/gif;base64,R0"}],
        ),
        (
            {"content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": "data:a/pdf;base64,A"}}]},
            [
                {
                    "type": "file",
                    "mediaType": "application/octet-stream",
                    "filename": "a.pdf",
                    "url": "data:a/pdf;base64,A",
                }
            ],
        ),
        (
            {"role": "tool", "tool_call_id": "c", "name": "search", "content": "[1]"},
            [tool("output-available", input=None, output=[1])],
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [function("{}")]},
            [tool("input-available", input={})],
        ),
        ({"title": "no shape that is known"}, []),
    ],
)
def test_a_message_that_was_posted_whole_is_read_by_its_shape(message: Any, expected: Any) -> None:
    assert parts(None, {"id": "m", "role": "user", **message}) == expected
