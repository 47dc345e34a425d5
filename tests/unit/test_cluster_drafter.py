"""One option serves a hidden-state drafter: targets keep its features, draft workers draft with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paceline.draft.assembly import assemble
from paceline.runtime.cluster_spec import ClusterSpec, Configurations
from paceline.runtime.config import DraftConfig, HiddenConfig, TargetConfig
from paceline.speculation.errors import InvalidRequest
from paceline.target.assembly import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tiny"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"speculators_model_type": "dflash"}))
    return made


def silent(line: str) -> None:
    del line


def test_both_sides_are_told_and_no_draft_model_is_loaded_unless_named(folder: Path) -> None:
    told = Configurations(ClusterSpec(drafter_checkpoint=folder))
    target, draft = told.of("target", {}), told.of("draft", {})
    assert isinstance(target, TargetConfig)
    assert isinstance(draft, DraftConfig)
    assert target.projectors == (str(folder),)
    assert (draft.engine, draft.drafters, draft.default_drafter) == (None, ("ngram", "dflash", "auto"), "auto")
    assert (draft.hidden.checkpoint, draft.hidden.target) == (str(folder), "demo")
    assert draft.hidden.threads == target.engine.threads
    named = Configurations(ClusterSpec(drafter_checkpoint=folder, draft_model="demo@layers=6")).of("draft", {})
    assert isinstance(named, DraftConfig)
    assert named.engine is not None
    assert named.drafters == ("ngram", "model", "dflash", "auto")


def test_what_is_wrong_with_a_folder_is_told_by_setting(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="drafter_checkpoint: expected a drafter's folder"):
        Configurations(ClusterSpec(drafter_checkpoint=tmp_path / "nothing")).check()
    with pytest.raises(InvalidRequest, match="projectors: expected folders of hidden-state drafters"):
        load(TargetConfig(projectors=(str(folder),)), silent)
    only = {"engine": None, "default_drafter": "dspark", "drafters": ("dspark",)}
    with pytest.raises(InvalidRequest, match=r"hidden\.checkpoint: expected a folder for the drafter `dspark`"):
        assemble(DraftConfig.model_validate(only), silent)
    with pytest.raises(InvalidRequest, match="transformer_layer_config"):
        assemble(DraftConfig.model_validate(only | {"hidden": HiddenConfig(checkpoint=str(folder))}), silent)
