from paceline.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FetchTokenizerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TargetDescription(_message.Message):
    __slots__ = ("protocol_version", "sampler_version", "incarnation", "limits", "model", "cost_curve", "projectors")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COST_CURVE_FIELD_NUMBER: _ClassVar[int]
    PROJECTORS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: str
    sampler_version: str
    incarnation: str
    limits: _common_pb2.WorkerLimits
    model: _common_pb2.ModelDescription
    cost_curve: _containers.RepeatedCompositeFieldContainer[_common_pb2.CostPoint]
    projectors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol_version: _Optional[str] = ..., sampler_version: _Optional[str] = ..., incarnation: _Optional[str] = ..., limits: _Optional[_Union[_common_pb2.WorkerLimits, _Mapping]] = ..., model: _Optional[_Union[_common_pb2.ModelDescription, _Mapping]] = ..., cost_curve: _Optional[_Iterable[_Union[_common_pb2.CostPoint, _Mapping]]] = ..., projectors: _Optional[_Iterable[str]] = ...) -> None: ...

class FeatureFeed(_message.Message):
    __slots__ = ("address", "incarnation", "lease_epoch", "projector")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LEASE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROJECTOR_FIELD_NUMBER: _ClassVar[int]
    address: str
    incarnation: str
    lease_epoch: int
    projector: str
    def __init__(self, address: _Optional[str] = ..., incarnation: _Optional[str] = ..., lease_epoch: _Optional[int] = ..., projector: _Optional[str] = ...) -> None: ...

class VerifyTask(_message.Message):
    __slots__ = ("fence", "draft_tokens", "drafter", "proposer_model_id", "trace", "distributions", "feed", "features_later")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    PROPOSER_MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    FEED_FIELD_NUMBER: _ClassVar[int]
    FEATURES_LATER_FIELD_NUMBER: _ClassVar[int]
    fence: _common_pb2.Fence
    draft_tokens: _containers.RepeatedScalarFieldContainer[int]
    drafter: str
    proposer_model_id: str
    trace: _common_pb2.TraceContext
    distributions: _containers.RepeatedCompositeFieldContainer[_common_pb2.SparseDistribution]
    feed: FeatureFeed
    features_later: bool
    def __init__(self, fence: _Optional[_Union[_common_pb2.Fence, _Mapping]] = ..., draft_tokens: _Optional[_Iterable[int]] = ..., drafter: _Optional[str] = ..., proposer_model_id: _Optional[str] = ..., trace: _Optional[_Union[_common_pb2.TraceContext, _Mapping]] = ..., distributions: _Optional[_Iterable[_Union[_common_pb2.SparseDistribution, _Mapping]]] = ..., feed: _Optional[_Union[FeatureFeed, _Mapping]] = ..., features_later: _Optional[bool] = ...) -> None: ...

class VerifyBatch(_message.Message):
    __slots__ = ("router_id", "tasks")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    tasks: _containers.RepeatedCompositeFieldContainer[VerifyTask]
    def __init__(self, router_id: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[VerifyTask, _Mapping]]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("tokens", "sources", "verify_len", "accepted", "text", "finish", "verifier_model_id", "logprobs", "prompt_logprobs", "lossy", "drafter")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    VERIFY_LEN_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOSSY_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    sources: _containers.RepeatedScalarFieldContainer[_common_pb2.TokenSource]
    verify_len: int
    accepted: int
    text: str
    finish: _common_pb2.Finish
    verifier_model_id: str
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    lossy: bool
    drafter: str
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., sources: _Optional[_Iterable[_Union[_common_pb2.TokenSource, str]]] = ..., verify_len: _Optional[int] = ..., accepted: _Optional[int] = ..., text: _Optional[str] = ..., finish: _Optional[_Union[_common_pb2.Finish, _Mapping]] = ..., verifier_model_id: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., lossy: _Optional[bool] = ..., drafter: _Optional[str] = ...) -> None: ...

class VerifyResult(_message.Message):
    __slots__ = ("fence", "verdict", "resync", "timing")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RESYNC_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    fence: _common_pb2.Fence
    verdict: Verdict
    resync: _common_pb2.Resync
    timing: _common_pb2.Timing
    def __init__(self, fence: _Optional[_Union[_common_pb2.Fence, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., resync: _Optional[_Union[_common_pb2.Resync, _Mapping]] = ..., timing: _Optional[_Union[_common_pb2.Timing, _Mapping]] = ...) -> None: ...

class StepReport(_message.Message):
    __slots__ = ("step_id", "sessions", "tokens", "duration_us")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DURATION_US_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    sessions: int
    tokens: int
    duration_us: int
    def __init__(self, step_id: _Optional[int] = ..., sessions: _Optional[int] = ..., tokens: _Optional[int] = ..., duration_us: _Optional[int] = ...) -> None: ...

class VerifyBatchResult(_message.Message):
    __slots__ = ("results", "step")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[VerifyResult]
    step: StepReport
    def __init__(self, results: _Optional[_Iterable[_Union[VerifyResult, _Mapping]]] = ..., step: _Optional[_Union[StepReport, _Mapping]] = ...) -> None: ...
