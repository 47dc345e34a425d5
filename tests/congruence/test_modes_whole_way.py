"""Rejection mode and relaxed acceptance from both clients to the tokens: drafter, wire, router, target and back."""

from __future__ import annotations

from paceline_client import Speculation

from tests.congruence.small_cluster import small_cluster

TARGET, DRAFT = "fake:seed=7,eos=0", "fake:seed=7,eos=0,quality=0.6"
PROMPT = [72, 101, 108, 108, 111]
DRAFTING = Speculation(mode="fixed", max_draft_tokens=4, drafter="model")
OFF = Speculation(mode="off")
BODY = {"prompt": PROMPT, "max_tokens": 48, "seed": 5, "speculation": {"mode": "fixed", "max_draft_tokens": 4}}


async def test_rejection_mode_accepts_drafts_and_repeats_itself() -> None:
    async with small_cluster(TARGET, DRAFT) as (http, client):
        first = await client.generate(
            PROMPT, seed=5, max_tokens=48, verification_mode="rejection", speculation=DRAFTING
        )
        # What is committed depends on what was drafted, and on a busy machine a round may go without.
        answers = [
            await http.post("/v1/completions", json={**BODY, "verification_mode": "rejection"}) for _ in range(3)
        ]
        plain = await client.generate(PROMPT, seed=5, max_tokens=48, verification_mode="rejection", speculation=OFF)
        agreement = await client.generate(PROMPT, seed=5, max_tokens=48, speculation=DRAFTING)
    assert first.speculation.accepted_tokens > 0
    assert first.speculation.accepted_tokens < first.speculation.verified_tokens
    assert not first.lossy
    assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
    assert first.text in [answer.json()["choices"][0]["text"] for answer in answers]
    assert plain.token_ids == agreement.token_ids  # without drafts, the target's own samples


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
