"""The chunks of the AI SDK's UI message stream, as its transport lets them through (FOLDS sections 2.1 and 3).

A table, in the form of one class for each type: required fields, and optional ones that may be UNSET but not null.
Unknown fields are welcome everywhere. The fold is less exact; this is the gate in front of it for what comes by wire.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from consumer.plain import JSON, JSONObject

ProviderMetadata: TypeAlias = dict[str, dict[str, Any]] | UnsetType
ToolMetadata: TypeAlias = dict[str, Any] | UnsetType
_Text: TypeAlias = str | UnsetType
_Flag: TypeAlias = bool | UnsetType
_Position: TypeAlias = Annotated[float, Meta(ge=0, le=2**53 - 1, multiple_of=1)] | UnsetType


class NotAChunk(ValueError):
    """JSON, but no chunk of a UI message stream."""


def checked(value: JSON) -> JSONObject:
    """The chunk as the reference's transport passes it on: a citation in it loses unknown fields, the rest stays.

    Raises NotAChunk.
    """
    if not isinstance(value, dict):
        raise NotAChunk("a chunk is an object")
    kind = value.get("type")
    shape = _Data if isinstance(kind, str) and kind.startswith("data-") else _UNION
    try:
        chunk = msgspec.convert(value, shape)
    except (msgspec.ValidationError, UnicodeError) as error:  # it cannot quote half a surrogate pair
        raise NotAChunk(str(error)) from error
    if isinstance(chunk, _TextEnd) and isinstance(chunk.citations, list):
        return {**value, "citations": _own_fields_of_citations(value["citations"])}
    return value


def _own_fields_of_citations(citations: JSON) -> JSON:
    if not isinstance(citations, list):
        return citations
    return [_own_fields(citation, _Citation) for citation in citations]


def _own_fields(value: JSON, shape: type[Struct]) -> JSON:
    if not isinstance(value, dict):
        return value
    names = {field.encode_name for field in msgspec.structs.fields(shape)} | {shape.__struct_config__.tag_field}
    own: JSONObject = {name: child for name, child in value.items() if name in names}
    if "source" in own:
        source = own["source"]
        is_url = isinstance(source, dict) and source.get("sourceType") == "url"
        own["source"] = _own_fields(source, _CitedURL if is_url else _CitedDocument)
    return own


class _Chunk(Struct, rename="camel", tag_field="type", kw_only=True):
    """Written by its tag: the `type` of the chunk."""


class _TextStart(_Chunk, tag="text-start"):
    id: str
    provider_metadata: ProviderMetadata = UNSET


class _TextDelta(_Chunk, tag="text-delta"):
    id: str
    delta: str
    provider_metadata: ProviderMetadata = UNSET


class _TextEnd(_Chunk, tag="text-end"):
    id: str
    citations: list[_Citation] | UnsetType = UNSET
    provider_metadata: ProviderMetadata = UNSET


class _Citation(Struct, rename="camel", kw_only=True):
    source: _CitedURL | _CitedDocument
    start_index: _Position = UNSET
    end_index: _Position = UNSET
    cited_text: _Text = UNSET


class _CitedURL(Struct, rename="camel", tag_field="sourceType", tag="url", kw_only=True):
    type: Literal["source"]
    id: str
    url: str
    title: _Text = UNSET
    provider_metadata: ProviderMetadata = UNSET


class _CitedDocument(Struct, rename="camel", tag_field="sourceType", tag="document", kw_only=True):
    type: Literal["source"]
    id: str
    media_type: str
    title: str
    filename: _Text = UNSET
    provider_metadata: ProviderMetadata = UNSET


class _ReasoningStart(_Chunk, tag="reasoning-start"):
    id: str
    provider_metadata: ProviderMetadata = UNSET


class _ReasoningDelta(_Chunk, tag="reasoning-delta"):
    id: str
    delta: str
    provider_metadata: ProviderMetadata = UNSET


class _ReasoningEnd(_Chunk, tag="reasoning-end"):
    id: str
    provider_metadata: ProviderMetadata = UNSET


class _ToolInputStart(_Chunk, tag="tool-input-start"):
    tool_call_id: str
    tool_name: str
    input_encoding: Literal["json", "text"] | UnsetType = UNSET
    provider_executed: _Flag = UNSET
    provider_metadata: ProviderMetadata = UNSET
    tool_metadata: ToolMetadata = UNSET
    dynamic: _Flag = UNSET
    title: _Text = UNSET


class _ToolInputDelta(_Chunk, tag="tool-input-delta"):
    tool_call_id: str
    input_text_delta: str


class _ToolInput(_Chunk):
    tool_call_id: str
    tool_name: str
    input: Any
    provider_executed: _Flag = UNSET
    provider_metadata: ProviderMetadata = UNSET
    tool_metadata: ToolMetadata = UNSET
    dynamic: _Flag = UNSET
    title: _Text = UNSET


class _ToolInputAvailable(_ToolInput, tag="tool-input-available"):
    pass


class _ToolInputError(_ToolInput, tag="tool-input-error", kw_only=True):
    error_text: str


class _ToolApprovalRequest(_Chunk, tag="tool-approval-request"):
    approval_id: str
    tool_call_id: str
    reason: _Text = UNSET
    is_automatic: _Flag = UNSET
    signature: _Text = UNSET


class _ToolApprovalResponse(_Chunk, tag="tool-approval-response"):
    approval_id: str
    approved: bool
    reason: _Text = UNSET
    provider_executed: _Flag = UNSET
    provider_metadata: ProviderMetadata = UNSET


class _ToolOutput(_Chunk):
    tool_call_id: str
    provider_executed: _Flag = UNSET
    provider_metadata: ProviderMetadata = UNSET
    tool_metadata: ToolMetadata = UNSET
    dynamic: _Flag = UNSET


class _ToolOutputAvailable(_ToolOutput, tag="tool-output-available", kw_only=True):
    output: Any
    preliminary: _Flag = UNSET


class _ToolOutputError(_ToolOutput, tag="tool-output-error", kw_only=True):
    error_text: str


class _ToolOutputDenied(_Chunk, tag="tool-output-denied"):
    tool_call_id: str


class _Custom(_Chunk, tag="custom"):
    kind: str
    provider_metadata: ProviderMetadata = UNSET


class _SourceURL(_Chunk, tag="source-url"):
    source_id: str
    url: str
    title: _Text = UNSET
    provider_metadata: ProviderMetadata = UNSET


class _SourceDocument(_Chunk, tag="source-document"):
    source_id: str
    media_type: str
    title: str
    filename: _Text = UNSET
    provider_metadata: ProviderMetadata = UNSET


class _File(_Chunk, tag="file"):
    url: str
    media_type: str
    provider_metadata: ProviderMetadata = UNSET


class _ReasoningFile(_Chunk, tag="reasoning-file"):
    url: str
    media_type: str
    provider_metadata: ProviderMetadata = UNSET


class _SteeringMessage(_Chunk, tag="steering-message"):
    id: str
    parts: list[_SteeringText | _SteeringFile]


class _SteeringText(_Chunk, tag="text"):
    text: str
    provider_metadata: ProviderMetadata = UNSET


class _SteeringFile(_Chunk, tag="file"):
    media_type: str
    url: str
    filename: _Text = UNSET
    provider_reference: dict[str, str] | UnsetType = UNSET
    provider_metadata: ProviderMetadata = UNSET


class _Data(Struct, kw_only=True):
    """Its type begins with `data-`, so no tag can name it."""

    data: Any
    id: _Text = UNSET
    transient: _Flag = UNSET


class _StartStep(_Chunk, tag="start-step"):
    pass


class _FinishStep(_Chunk, tag="finish-step"):
    pass


class _ResetStep(_Chunk, tag="reset-step"):
    pass


class _Start(_Chunk, tag="start"):
    message_id: _Text = UNSET


class _Finish(_Chunk, tag="finish"):
    finish_reason: (
        Literal["stop", "length", "content-filter", "tool-calls", "error", "interrupted", "other"] | UnsetType
    ) = UNSET


class _MessageMetadata(_Chunk, tag="message-metadata"):
    message_metadata: Any


class _Error(_Chunk, tag="error"):
    error_text: str


class _Abort(_Chunk, tag="abort"):
    reason: _Text = UNSET


_UNION: Final[Any] = (
    _TextStart
    | _TextDelta
    | _TextEnd
    | _ReasoningStart
    | _ReasoningDelta
    | _ReasoningEnd
    | _ToolInputStart
    | _ToolInputDelta
    | _ToolInputAvailable
    | _ToolInputError
    | _ToolApprovalRequest
    | _ToolApprovalResponse
    | _ToolOutputAvailable
    | _ToolOutputError
    | _ToolOutputDenied
    | _Custom
    | _SourceURL
    | _SourceDocument
    | _File
    | _ReasoningFile
    | _SteeringMessage
    | _StartStep
    | _FinishStep
    | _ResetStep
    | _Start
    | _Finish
    | _MessageMetadata
    | _Error
    | _Abort
)
