"""From a request, with its defaults left open, to a session that fixes its output."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

from paceline.router.pairing import Registry, TargetInfo
from paceline.router.requests import MAX_CHOICES, SEED_BITS, Request, Resume
from paceline.runtime.config import RouterConfig
from paceline.runtime.text import TextCodec
from paceline.speculation.actions import SessionSpec
from paceline.speculation.errors import InvalidRequest, Unsupported
from paceline.speculation.messages import Finish, FinishReason
from paceline.speculation.params import SamplingParams

SESSION_ID_BITS = 96
MAX_SESSION_ID_CHARS = 128
MAX_PROMPT_LOGPROBS = 2**16  # numbers in one report: it is one message
MAX_LEASE_EPOCH = 2**62  # leaves room to open many more times below the wire's 2**64


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request, ready to run."""

    spec: SessionSpec
    model: TargetInfo
    drafter: str
    numerics_class: str  # of a resumed answer; empty for a new one
    finish: Finish | None  # a resumed answer that was whole already


def prompt_tokens(request: Request, codec: TextCodec | None) -> tuple[int, ...]:
    """The prompt as token ids. Slow for long text: it may run in a thread.

    Raises:
        InvalidRequest: not exactly one input is given, or it is empty.
        Unsupported: the model's tokenizer is not known here, or it has no chat template.
    """
    given = [name for name in ("text", "messages", "tokens") if getattr(request, name) is not None]
    if request.resume is not None and not given:
        return request.resume.prompt_tokens
    if len(given) != 1 or request.resume is not None:
        expected = (
            "the prompt's tokens of resume alone" if request.resume else "exactly one of text, messages and tokens"
        )
        raise InvalidRequest("input", expected=expected, got=", ".join(given) or "none")
    if request.tokens is not None:
        return request.tokens
    if codec is None:
        raise Unsupported(given[0], got="text", hint="this model's target offers no tokenizer; send token ids")
    if request.text is not None:
        return tuple(codec.encode(request.text))
    messages = [{"role": role, "content": content} for role, content in request.messages or ()]
    # The template writes special tokens itself; the tokenizer must not add them again.
    return tuple(codec.encode(codec.render_chat(messages), special=False))


def resolve(
    request: Request,
    prompt: tuple[int, ...],
    model: TargetInfo,
    codec: TextCodec | None,
    *,
    config: RouterConfig,
    registry: Registry,
    rng: random.Random,
) -> Resolved:
    """Fill in defaults and check everything that can be checked without a worker.

    Raises:
        InvalidRequest: naming the field, what was expected and what came.
        Unsupported: a field asks for something this version does not do.
    """
    resume = request.resume
    committed = resume.committed if resume else ()
    if resume is not None:
        _check_resume(resume)
    _check_tokens("prompt", prompt, model)
    _check_tokens("resume.committed_token_ids", committed, model)
    room = model.context_length - len(prompt)
    if not prompt or room <= 0:
        expected = f"1 to {model.context_length - 1} tokens (the model's context length is {model.context_length})"
        raise InvalidRequest("prompt", expected=expected, got=len(prompt), hint="" if prompt else "say something")
    sampling = _sampling(request, room, codec, config, rng)
    _check_tokens("logit_bias", [token for token, _ in sampling.logit_bias], model)
    _check_tokens("bad_words", [token for word in sampling.bad_words for token in word], model)
    _check_prompt_logprobs(sampling, len(prompt))
    drafter = request.speculation.drafter or config.default_drafter
    _check_drafter(request.speculation.drafter, model, registry)
    session_id = resume.session_id if resume else f"s-{rng.getrandbits(SESSION_ID_BITS):024x}"  # not to be guessed
    spec = SessionSpec(
        session_id=session_id,
        prompt=prompt,
        sampling=sampling,
        speculation=request.speculation,
        choice=_choice(request.choice),
        committed=committed,
        lease_epoch=resume.lease_epoch if resume else 0,
        request_id=request.request_id,
        tenant=request.tenant,
    )
    finish = _finished(committed, sampling, model, codec) if resume else None
    return Resolved(spec, model, drafter, resume.numerics_class if resume else "", finish)


def _sampling(
    request: Request, room: int, codec: TextCodec | None, config: RouterConfig, rng: random.Random
) -> SamplingParams:
    asked = request.sampling
    limit = config.max_tokens_limit
    if asked.max_tokens is not None and asked.max_tokens > limit:
        raise InvalidRequest("max_tokens", expected=f"at most {limit}", got=asked.max_tokens, hint="the server's limit")
    given = {field.name: value for field in fields(asked) if (value := getattr(asked, field.name)) is not None}
    del given["bad_texts"]
    resolved = {
        "bad_words": (*asked.bad_words, *_sequences(asked.bad_texts, codec)),
        "seed": _seed(asked.seed, request.resume, rng),
        "max_tokens": _clip(asked.max_tokens, min(limit, room)),
    }
    return SamplingParams(**(given | resolved))


def _sequences(words: Sequence[str], codec: TextCodec | None) -> list[tuple[int, ...]]:
    """The token sequences of bad words, each with and without a space before it, as far as these differ."""
    if not words:
        return []
    if codec is None:
        raise Unsupported("bad_words", got="words", hint="this model's target offers no tokenizer; send token ids")
    forms = [form for word in words for form in (word.lstrip(), " " + word.lstrip())]
    return list(dict.fromkeys(tuple(codec.encode(form, special=False)) for form in forms))


def _choice(asked: int) -> int:
    if not 0 <= asked < MAX_CHOICES:
        raise InvalidRequest("choice", expected=f"a whole number from 0 to {MAX_CHOICES - 1}", got=asked)
    return asked


def _clip(asked: int | None, most: int) -> int:
    """``max_tokens`` as asked, cut to the room there is. What is below 1 is left for SamplingParams to refuse."""
    return most if asked is None else min(asked, most)


def _seed(asked: int | None, resume: Resume | None, rng: random.Random) -> int:
    if resume is None:
        return rng.getrandbits(SEED_BITS) if asked is None else asked
    if asked is not None and asked != resume.seed:
        raise InvalidRequest("sampling.seed", expected=f"the resumed answer's, {resume.seed}, or none", got=asked)
    return resume.seed


def _check_resume(resume: Resume) -> None:
    if not 0 < len(resume.session_id) <= MAX_SESSION_ID_CHARS:
        expected = f"the lost answer's, of 1 to {MAX_SESSION_ID_CHARS} characters"
        raise InvalidRequest("resume.session_id", expected=expected, got=resume.session_id)
    if not 0 <= resume.lease_epoch < MAX_LEASE_EPOCH:
        expected = f"the last one seen, below {MAX_LEASE_EPOCH}"
        raise InvalidRequest("resume.lease_epoch", expected=expected, got=resume.lease_epoch)


def _check_tokens(field: str, tokens: Sequence[int], model: TargetInfo) -> None:
    worst = max(tokens, default=0)
    if worst >= model.vocab_size or min(tokens, default=0) < 0:
        raise InvalidRequest(field, expected=f"token ids from 0 to {model.vocab_size - 1}", got=worst)


def _check_prompt_logprobs(sampling: SamplingParams, prompt_len: int) -> None:
    if sampling.prompt_logprobs is not None and prompt_len * (sampling.prompt_logprobs + 1) > MAX_PROMPT_LOGPROBS:
        most = MAX_PROMPT_LOGPROBS // prompt_len - 1
        expected = f"at most {most} for a prompt of {prompt_len} tokens" if most >= 0 else "a shorter prompt beside it"
        raise InvalidRequest("prompt_logprobs", expected=expected, got=sampling.prompt_logprobs)


def _check_drafter(wanted: str, model: TargetInfo, registry: Registry) -> None:
    """A drafter named by the request must be one that somebody offers; while nobody is known, it may yet come."""
    offered = registry.drafters(model)
    if wanted and offered and wanted not in offered:
        raise InvalidRequest("speculation.drafter", expected=f"one of {', '.join(offered)}", got=wanted)


def _finished(
    committed: Sequence[int], sampling: SamplingParams, model: TargetInfo, codec: TextCodec | None
) -> Finish | None:
    """Whether a resumed answer had been complete when its stream was lost, and by what."""
    last = committed[-1] if committed else None
    if last is not None:
        if last in sampling.ends(model.eos_token_ids):
            return Finish(FinishReason.STOP, stop_token_id=last)
        if sampling.stop and codec is not None:
            text = codec.decode(committed)
            for stop in sampling.stop:
                if stop in text:
                    return Finish(FinishReason.STOP, stop_string=stop)
    if len(committed) >= sampling.max_tokens:
        return Finish(FinishReason.LENGTH)
    return None
