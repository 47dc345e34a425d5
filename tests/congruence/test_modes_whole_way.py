"""Rejection mode and relaxed acceptance from both clients to the tokens: drafter, wire, router, target and back."""

from __future__ import annotations

from paceline_client import Generation, Speculation

from tests.congruence.small_cluster import small_cluster

TARGET, DRAFT = "fake:seed=7,eos=0", "fake:seed=7,eos=0,quality=0.6"
PROMPT = [72, 101, 108, 108, 111]
DRAFTING = Speculation(mode="fixed", max_draft_tokens=4, drafter="model")
OFF = Speculation(mode="off")
MOST_ASKED = 12  # times, each way
BODY = {"prompt": PROMPT, "max_tokens": 48, "seed": 5, "speculation": {"mode": "fixed", "max_draft_tokens": 4}}


async def test_rejection_mode_accepts_drafts_and_repeats_itself() -> None:
    """Drafts decide what is committed here, so what repeats is an answer whose drafts came in the same rounds.

    A draft worker may open a session later than its verifier does: how many rounds that takes is the machine's affair.
    """
    over_grpc: list[Generation] = []
    over_http: list[str] = []
    async with small_cluster(TARGET, DRAFT) as (http, client):
        while len(over_http) < MOST_ASKED and not _repeated([each.text for each in over_grpc], over_http):
            got = await client.generate(
                PROMPT, seed=5, max_tokens=48, verification_mode="rejection", speculation=DRAFTING
            )
            over_grpc.append(got)
            answer = await http.post("/v1/completions", json={**BODY, "verification_mode": "rejection"})
            assert answer.status_code == 200, answer.text
            over_http.append(answer.json()["choices"][0]["text"])
        plain = await client.generate(PROMPT, seed=5, max_tokens=48, verification_mode="rejection", speculation=OFF)
        agreement = await client.generate(PROMPT, seed=5, max_tokens=48, speculation=DRAFTING)
    assert _repeated([each.text for each in over_grpc], over_http), (over_grpc, over_http)
    for each in over_grpc:
        assert 0 < each.speculation.accepted_tokens < each.speculation.verified_tokens
        assert not each.lossy
    assert plain.token_ids == agreement.token_ids  # without drafts, the target's own samples


def _repeated(over_grpc: list[str], over_http: list[str]) -> bool:
    """Whether both ways in gave one text, and one of them twice, which chance does not do."""
    common = set(over_grpc) & set(over_http)
    return any(over_grpc.count(text) + over_http.count(text) > 2 for text in common)


async def test_relaxed_acceptance_says_that_it_was_lossy() -> None:
    async with small_cluster(TARGET, DRAFT) as (http, client):
        strict = await client.generate(PROMPT, seed=5, max_tokens=48, speculation=DRAFTING)
        relaxed = await client.generate(PROMPT, seed=5, max_tokens=48, speculation=DRAFTING, relaxed_acceptance=0.05)
        unchanged = await client.generate(PROMPT, seed=5, max_tokens=48, speculation=OFF, relaxed_acceptance=0.05)
        answer = await http.post("/v1/completions", json={**BODY, "relaxed_acceptance": 0.05})
    assert (strict.lossy, relaxed.lossy, unchanged.lossy) == (False, True, False)
    assert unchanged.token_ids == strict.token_ids != relaxed.token_ids
    assert answer.json()["paceline"]["lossy"] is True
    rate = {name: each.speculation.accepted_tokens for name, each in (("strict", strict), ("relaxed", relaxed))}
    assert rate["relaxed"] > rate["strict"]


async def test_relaxed_rejection_is_refused_by_name() -> None:
    async with small_cluster(TARGET, DRAFT) as (http, _):
        answer = await http.post(
            "/v1/completions", json={**BODY, "verification_mode": "rejection", "relaxed_acceptance": 0.5}
        )
    assert answer.status_code == 400
    assert "relaxed_acceptance" in answer.text
