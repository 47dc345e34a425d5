"""Which worker a session is given to, and whom a round may wait for."""

from __future__ import annotations

from itertools import pairwise

import pytest
from paceline.router.breaker import Breaker, BreakerState
from paceline.router.pairing import DrafterInfo, DraftInfo, Registry, TargetInfo
from paceline.speculation.errors import NotFound
from paceline.speculation.leases import Side


def target(model: str = "m", numerics: str = "a", **fields: object) -> TargetInfo:
    known = {"fingerprint": "f", "vocab_size": 100, "context_length": 64, "tokenizer_fingerprint": "tok"}
    return TargetInfo("i", model, numerics_class=numerics, **(known | fields))  # type: ignore[arg-type]


def draft(*names: str, tokenizer: str = "tok", **fields: object) -> DraftInfo:
    return DraftInfo("i", tuple(DrafterInfo(name, tokenizer) for name in names), names[0], **fields)  # type: ignore[arg-type]


def registry() -> Registry:
    return Registry(draft_deadline_s=0.1, breaker_max_s=2.0)


def test_a_session_goes_to_the_least_loaded_verifier_of_its_class() -> None:
    known = registry()
    for address, numerics in (("t0", "a"), ("t1", "a"), ("t2", "b")):
        known.target_up(address, target(numerics=numerics), "r")
    known.targets["t0"].sessions |= {"x", "y"}
    known.targets["t1"].sessions |= {"z"}
    placed = known.place_target("m", "a", ())
    assert placed is not None
    assert placed.address == "t1"


def test_another_class_is_used_only_when_none_of_its_own_is_left() -> None:
    known = registry()
    known.target_up("t0", target(numerics="a", max_sessions=1), "r")
    known.target_up("t1", target(numerics="b"), "r")
    known.targets["t0"].sessions.add("x")
    assert known.place_target("m", "a", ()) is None  # full, but there
    known.down(Side.TARGET, "t0", 0.0)
    placed = known.place_target("m", "a", ())
    assert placed is not None
    assert placed.info.numerics_class == "b"
    assert known.place_target("other", "a", ()) is None


def test_a_verifier_that_just_refused_is_avoided() -> None:
    known = registry()
    known.target_up("t0", target(), "r")
    assert known.place_target("m", "a", (), avoid={"t0"}) is None


@pytest.mark.parametrize(
    ("info", "wanted", "expected"),
    [
        (draft("ngram", "model"), "", "ngram"),
        (draft("ngram", "model"), "model", "model"),
        (draft("ngram"), "model", None),
        (draft("model", tokenizer="other"), "", None),
        (draft("ngram", tokenizer=""), "", "ngram"),  # copies ids, whatever they mean
        (draft("model", sampler_version="2"), "", None),
    ],
)
def test_a_draft_worker_must_offer_the_drafter_for_the_tokenizer(
    info: DraftInfo, wanted: str, expected: str | None
) -> None:
    found = info.drafter_for(wanted, target(sampler_version="1"))
    assert (found.name if found else None) == expected


@pytest.mark.parametrize(
    ("wanted", "projectors", "expected"),
    [
        ("", ("p",), "dspark"),
        ("", (), "ngram"),  # the target doesn't keep what it reads: the first that needs nothing
        ("", ("other",), "ngram"),
        ("dspark", (), "ngram"),
        ("ngram", (), "ngram"),
        ("model", ("p",), None),
    ],
)
def test_a_drafter_that_needs_features_needs_a_target_that_keeps_them(
    wanted: str, projectors: tuple[str, ...], expected: str | None
) -> None:
    info = DraftInfo("i", (DrafterInfo("dspark", "tok", True, "p"), DrafterInfo("ngram")), "dspark")
    found = info.drafter_for(wanted, target(projectors=projectors))
    assert (found.name if found else None) == expected
    known = registry()
    known.target_up("t0", target(projectors=projectors), "r")
    known.draft_up("d0", info, "r")
    assert known.drafters(target(projectors=projectors)) == (("dspark", "ngram") if "p" in projectors else ("ngram",))


def test_a_draft_worker_in_trouble_is_chosen_last() -> None:
    known = registry()
    known.draft_up("d0", draft("ngram"), "r")
    known.draft_up("d1", draft("ngram"), "r")
    known.drafts["d1"].sessions |= {"x", "y"}
    known.drafts["d0"].breaker.fail(0.0)
    found = known.place_draft(target(), "", 0.0)
    assert found is not None
    assert found[0].address == "d1"
    assert known.better_draft_exists("d0", target(), "")
    assert not known.better_draft_exists("d1", target(), "")
    known.down(Side.DRAFT, "d1", 0.0)
    assert known.place_draft(target(), "", 0.0) is not None


def test_a_breaker_survives_the_workers_reconnect() -> None:
    known = registry()
    known.draft_up("d0", draft("ngram"), "r.1")
    known.down(Side.DRAFT, "d0", 0.0)
    assert not known.draft_up("d0", draft("ngram"), "r.2").breaker.closed


def test_models_are_named_and_unknown_ones_refused_with_a_list() -> None:
    known = registry()
    with pytest.raises(NotFound, match="none yet"):
        known.resolve("")
    known.target_up("t0", target("big"), "r")
    assert known.resolve("").model_id == "big"
    known.target_up("t1", target("small"), "r")
    with pytest.raises(NotFound, match="big, small"):
        known.resolve("")
    known.draft_up("d0", draft("ngram", "model"), "r")
    known.down(Side.TARGET, "t1", 0.0)
    assert [(model.model_id, model.targets, model.drafts) for model in known.models()] == [
        ("big", 1, 1),
        ("small", 0, 1),
    ]


# Breaker ----------------------------------------------------------------------------------------------------------


def breaker() -> Breaker:
    return Breaker(patience_s=0.1, first_pause_s=0.2, max_pause_s=1.0)


def test_a_worker_silent_for_a_whole_deadline_is_not_asked_again_until_the_pause_is_over() -> None:
    one = breaker()
    assert one.missed(asked=1.0, now=1.1)
    assert not one.allows("s", 1.2)
    assert one.allows("s", 1.3)
    assert one.state is BreakerState.HALF_OPEN
    assert not one.allows("other", 1.31)  # one probe at a time
    one.answered()
    assert one.closed


def test_a_worker_that_answers_others_gets_three_chances() -> None:
    one = breaker()
    one.heard(5.0)
    assert [one.missed(asked=1.0, now=5.0) for _ in range(3)] == [False, False, True]
    one.answered()
    one.heard(6.0)
    assert not one.missed(asked=5.5, now=6.0)


def test_probes_in_vain_double_the_pause_up_to_a_bound() -> None:
    one = breaker()
    one.missed(asked=0.0, now=0.1)
    now, probes = 0.1, []
    while now < 8:
        now += 0.01
        if one.allows("s", now):
            probes.append(now)
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    assert all(later > earlier - 0.02 for earlier, later in pairwise(gaps))
    assert gaps[-1] == pytest.approx(1.0 + 0.1, abs=0.05)


def test_a_probing_session_that_leaves_makes_room_for_another() -> None:
    one = breaker()
    one.fail(0.0)
    assert one.allows("s", 0.3)
    one.forget_probe("s")
    assert one.allows("other", 0.31)


def test_late_misses_of_an_open_breaker_change_nothing() -> None:
    one = breaker()
    one.fail(0.0)
    assert not one.missed(asked=0.0, now=0.05)
    assert one.opened == 1
