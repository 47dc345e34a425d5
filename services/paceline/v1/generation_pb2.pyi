from paceline.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SpeculationMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPECULATION_MODE_UNSPECIFIED: _ClassVar[SpeculationMode]
    SPECULATION_MODE_AUTO: _ClassVar[SpeculationMode]
    SPECULATION_MODE_OFF: _ClassVar[SpeculationMode]
    SPECULATION_MODE_FIXED: _ClassVar[SpeculationMode]
SPECULATION_MODE_UNSPECIFIED: SpeculationMode
SPECULATION_MODE_AUTO: SpeculationMode
SPECULATION_MODE_OFF: SpeculationMode
SPECULATION_MODE_FIXED: SpeculationMode

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SpeculationOptions(_message.Message):
    __slots__ = ("mode", "max_draft_tokens", "drafter")
    MODE_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    mode: SpeculationMode
    max_draft_tokens: int
    drafter: str
    def __init__(self, mode: _Optional[_Union[SpeculationMode, str]] = ..., max_draft_tokens: _Optional[int] = ..., drafter: _Optional[str] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("prompt_token_ids", "seed", "numerics_class", "lease_epoch", "session_id", "committed_token_ids")
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_CLASS_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    numerics_class: str
    lease_epoch: int
    session_id: str
    committed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, prompt_token_ids: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ..., numerics_class: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., session_id: _Optional[str] = ..., committed_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "text", "chat", "tokens", "sampling", "speculation", "request_id", "resume", "choice")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    chat: Chat
    tokens: TokenIds
    sampling: _common_pb2.SamplingOptions
    speculation: SpeculationOptions
    request_id: str
    resume: Resume
    choice: int
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingOptions, _Mapping]] = ..., speculation: _Optional[_Union[SpeculationOptions, _Mapping]] = ..., request_id: _Optional[str] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., choice: _Optional[int] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request_id", "session_id", "model", "numerics_class", "prompt_token_ids", "seed", "lease_epoch", "fingerprint", "class_changed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_CLASS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CLASS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    session_id: str
    model: str
    numerics_class: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    lease_epoch: int
    fingerprint: str
    class_changed: bool
    def __init__(self, request_id: _Optional[str] = ..., session_id: _Optional[str] = ..., model: _Optional[str] = ..., numerics_class: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ..., lease_epoch: _Optional[int] = ..., fingerprint: _Optional[str] = ..., class_changed: _Optional[bool] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("index", "token_ids", "sources", "proposer_model_id", "verifier_model_id", "text", "round_id", "drafter", "drafted", "verified", "accepted", "lease_epoch", "logprobs", "prompt_logprobs", "lossy", "confidence")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    PROPOSER_MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ROUND_ID_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOSSY_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    sources: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenSource]
    proposer_model_id: str
    verifier_model_id: str
    text: str
    round_id: int
    drafter: str
    drafted: int
    verified: int
    accepted: int
    lease_epoch: int
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    lossy: bool
    confidence: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., sources: _Optional[_Iterable[_Union[_common_pb2.TokenSource, str]]] = ..., proposer_model_id: _Optional[str] = ..., verifier_model_id: _Optional[str] = ..., text: _Optional[str] = ..., round_id: _Optional[int] = ..., drafter: _Optional[str] = ..., drafted: _Optional[int] = ..., verified: _Optional[int] = ..., accepted: _Optional[int] = ..., lease_epoch: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., lossy: _Optional[bool] = ..., confidence: _Optional[_Iterable[float]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class SpeculationMetrics(_message.Message):
    __slots__ = ("rounds", "verify_rounds", "drafted_tokens", "verified_tokens", "accepted_tokens", "corrected_tokens", "bonus_tokens", "target_only_tokens", "per_round_verified", "per_round_accepted", "missed_drafts", "draft_wait_us", "verify_wait_us", "router_us", "network_us")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BONUS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_ONLY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PER_ROUND_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    PER_ROUND_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    MISSED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    VERIFY_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    ROUTER_US_FIELD_NUMBER: _ClassVar[int]
    NETWORK_US_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    verify_rounds: int
    drafted_tokens: int
    verified_tokens: int
    accepted_tokens: int
    corrected_tokens: int
    bonus_tokens: int
    target_only_tokens: int
    per_round_verified: _containers.RepeatedScalarFieldContainer[int]
    per_round_accepted: _containers.RepeatedScalarFieldContainer[int]
    missed_drafts: int
    draft_wait_us: int
    verify_wait_us: int
    router_us: int
    network_us: int
    def __init__(self, rounds: _Optional[int] = ..., verify_rounds: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., verified_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., corrected_tokens: _Optional[int] = ..., bonus_tokens: _Optional[int] = ..., target_only_tokens: _Optional[int] = ..., per_round_verified: _Optional[_Iterable[int]] = ..., per_round_accepted: _Optional[_Iterable[int]] = ..., missed_drafts: _Optional[int] = ..., draft_wait_us: _Optional[int] = ..., verify_wait_us: _Optional[int] = ..., router_us: _Optional[int] = ..., network_us: _Optional[int] = ...) -> None: ...

class Completed(_message.Message):
    __slots__ = ("finish", "usage", "speculation", "lossy")
    FINISH_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    LOSSY_FIELD_NUMBER: _ClassVar[int]
    finish: _common_pb2.Finish
    usage: Usage
    speculation: SpeculationMetrics
    lossy: bool
    def __init__(self, finish: _Optional[_Union[_common_pb2.Finish, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., speculation: _Optional[_Union[SpeculationMetrics, _Mapping]] = ..., lossy: _Optional[bool] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "tokens", "completed")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    started: Started
    tokens: Tokens
    completed: Completed
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., completed: _Optional[_Union[Completed, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("id", "fingerprint", "numerics_class", "context_length", "drafters", "targets", "drafts", "cost_curve")
    ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_CLASS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    COST_CURVE_FIELD_NUMBER: _ClassVar[int]
    id: str
    fingerprint: str
    numerics_class: str
    context_length: int
    drafters: _containers.RepeatedScalarFieldContainer[str]
    targets: int
    drafts: int
    cost_curve: _containers.RepeatedCompositeFieldContainer[_common_pb2.CostPoint]
    def __init__(self, id: _Optional[str] = ..., fingerprint: _Optional[str] = ..., numerics_class: _Optional[str] = ..., context_length: _Optional[int] = ..., drafters: _Optional[_Iterable[str]] = ..., targets: _Optional[int] = ..., drafts: _Optional[int] = ..., cost_curve: _Optional[_Iterable[_Union[_common_pb2.CostPoint, _Mapping]]] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ...) -> None: ...
