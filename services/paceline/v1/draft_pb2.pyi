from paceline.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DrafterDescription(_message.Message):
    __slots__ = ("name", "model", "needs_features", "projector", "feature_width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FEATURES_FIELD_NUMBER: _ClassVar[int]
    PROJECTOR_FIELD_NUMBER: _ClassVar[int]
    FEATURE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: _common_pb2.ModelDescription
    needs_features: bool
    projector: str
    feature_width: int
    def __init__(self, name: _Optional[str] = ..., model: _Optional[_Union[_common_pb2.ModelDescription, _Mapping]] = ..., needs_features: _Optional[bool] = ..., projector: _Optional[str] = ..., feature_width: _Optional[int] = ...) -> None: ...

class DraftDescription(_message.Message):
    __slots__ = ("protocol_version", "sampler_version", "incarnation", "limits", "drafters", "default_drafter")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_DRAFTER_FIELD_NUMBER: _ClassVar[int]
    protocol_version: str
    sampler_version: str
    incarnation: str
    limits: _common_pb2.WorkerLimits
    drafters: _containers.RepeatedCompositeFieldContainer[DrafterDescription]
    default_drafter: str
    def __init__(self, protocol_version: _Optional[str] = ..., sampler_version: _Optional[str] = ..., incarnation: _Optional[str] = ..., limits: _Optional[_Union[_common_pb2.WorkerLimits, _Mapping]] = ..., drafters: _Optional[_Iterable[_Union[DrafterDescription, _Mapping]]] = ..., default_drafter: _Optional[str] = ...) -> None: ...

class DraftTask(_message.Message):
    __slots__ = ("fence", "appended", "append_from", "max_draft_tokens", "trace", "deadline_us", "token_us", "row_us")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    APPENDED_FIELD_NUMBER: _ClassVar[int]
    APPEND_FROM_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    TOKEN_US_FIELD_NUMBER: _ClassVar[int]
    ROW_US_FIELD_NUMBER: _ClassVar[int]
    fence: _common_pb2.Fence
    appended: _containers.RepeatedScalarFieldContainer[int]
    append_from: int
    max_draft_tokens: int
    trace: _common_pb2.TraceContext
    deadline_us: int
    token_us: int
    row_us: int
    def __init__(self, fence: _Optional[_Union[_common_pb2.Fence, _Mapping]] = ..., appended: _Optional[_Iterable[int]] = ..., append_from: _Optional[int] = ..., max_draft_tokens: _Optional[int] = ..., trace: _Optional[_Union[_common_pb2.TraceContext, _Mapping]] = ..., deadline_us: _Optional[int] = ..., token_us: _Optional[int] = ..., row_us: _Optional[int] = ...) -> None: ...

class DraftBatch(_message.Message):
    __slots__ = ("router_id", "tasks")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    tasks: _containers.RepeatedCompositeFieldContainer[DraftTask]
    def __init__(self, router_id: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[DraftTask, _Mapping]]] = ...) -> None: ...

class DraftProposal(_message.Message):
    __slots__ = ("tokens", "drafter", "proposer_model_id", "confidence", "distributions")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    PROPOSER_MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    drafter: str
    proposer_model_id: str
    confidence: _containers.RepeatedScalarFieldContainer[float]
    distributions: _containers.RepeatedCompositeFieldContainer[_common_pb2.SparseDistribution]
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., drafter: _Optional[str] = ..., proposer_model_id: _Optional[str] = ..., confidence: _Optional[_Iterable[float]] = ..., distributions: _Optional[_Iterable[_Union[_common_pb2.SparseDistribution, _Mapping]]] = ...) -> None: ...

class DraftResult(_message.Message):
    __slots__ = ("fence", "proposal", "resync", "timing")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    RESYNC_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    fence: _common_pb2.Fence
    proposal: DraftProposal
    resync: _common_pb2.Resync
    timing: _common_pb2.Timing
    def __init__(self, fence: _Optional[_Union[_common_pb2.Fence, _Mapping]] = ..., proposal: _Optional[_Union[DraftProposal, _Mapping]] = ..., resync: _Optional[_Union[_common_pb2.Resync, _Mapping]] = ..., timing: _Optional[_Union[_common_pb2.Timing, _Mapping]] = ...) -> None: ...

class DraftBatchResult(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[DraftResult]
    def __init__(self, results: _Optional[_Iterable[_Union[DraftResult, _Mapping]]] = ...) -> None: ...

class FeatureChunk(_message.Message):
    __slots__ = ("session_id", "lease_epoch", "position", "count", "dtype", "data", "incarnation", "projector")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PROJECTOR_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease_epoch: int
    position: int
    count: int
    dtype: str
    data: bytes
    incarnation: str
    projector: str
    def __init__(self, session_id: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., position: _Optional[int] = ..., count: _Optional[int] = ..., dtype: _Optional[str] = ..., data: _Optional[bytes] = ..., incarnation: _Optional[str] = ..., projector: _Optional[str] = ...) -> None: ...

class FeatureWant(_message.Message):
    __slots__ = ("session_id", "lease_epoch", "position", "refused")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    lease_epoch: int
    position: int
    refused: bool
    def __init__(self, session_id: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., position: _Optional[int] = ..., refused: _Optional[bool] = ...) -> None: ...

class FeatureCredit(_message.Message):
    __slots__ = ("bytes", "wants")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    wants: _containers.RepeatedCompositeFieldContainer[FeatureWant]
    def __init__(self, bytes: _Optional[int] = ..., wants: _Optional[_Iterable[_Union[FeatureWant, _Mapping]]] = ...) -> None: ...
