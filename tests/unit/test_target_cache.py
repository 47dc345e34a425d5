"""The target cache: what is written is read, by our reader and by one that knows the format's page only."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.cache.target import CacheSpec, CorruptSample, TargetCache, TargetCacheWriter, seal
from paceline.cache.target.verify import verify
from paceline.speculation.errors import InvalidRequest, Unavailable, Unsupported

from tests.unit.target_cache_kit import HIDDEN, LAYERS, SPEC, deepspec_read, same, sample


def write(folder: Path, lengths: list[int], **options: object) -> None:
    with TargetCacheWriter(folder, SPEC, **options) as writer:  # type: ignore[arg-type]
        for key, length in enumerate(lengths):
            writer.write(sample(key, length))
    seal(folder)


@st.composite
def caches(draw: st.DrawFn) -> tuple[CacheSpec, list[int], int, dict[str, Any]]:
    """A spec, the lengths of samples, how many writers there are, and their options."""
    layers = tuple(sorted(draw(st.sets(st.integers(-1, 6), min_size=1, max_size=4))))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    options = {"shard_bytes": draw(st.integers(1, 2000)), "roots": ["root0", "root1"][: draw(st.integers(0, 2))]}
    return CacheSpec(layers, draw(st.integers(1, 5)), "tiny/target"), lengths, draw(st.integers(1, 3)), options


@settings(max_examples=40, deadline=None)
@given(caches())
def test_what_writers_write_both_readers_read(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[CacheSpec, list[int], int, dict[str, Any]]
) -> None:
    spec, lengths, writers, options = drawn
    base = tmp_path_factory.mktemp("cache")
    options = {**options, "roots": [base / name for name in options["roots"]]}
    wanted = [sample(key, length, spec=spec) for key, length in enumerate(lengths)]
    opened = [TargetCacheWriter(base / "main", spec, writer=i, **options) for i in range(writers)]
    for each in wanted:
        opened[each.key % writers].write(each)
    for writer in opened:
        writer.close()
    assert seal(base / "main").samples == len(wanted)
    cache = TargetCache.open(base / "main")
    assert [each.sample_id for each in cache] == list(range(len(wanted)))
    assert all(same(*pair) for pair in zip(cache, wanted, strict=True))
    assert verify(cache).sound
    for parts, each in zip(deepspec_read(base / "main"), wanted, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(parts, each.parts, strict=True))


def test_the_manifest_carries_where_a_cache_came_from(tmp_path: Path) -> None:
    write(tmp_path / "cache", [3])
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    wanted = {
        "target_model_name_or_path": "tiny/target", "source_jsonl_paths": ["prompts.jsonl"], "chat_template": "tiny",
        "max_length": 0, "min_loss_tokens": 0, "project_name": None, "exp_name": None, "git_sha": "",
        "target_layer_ids": list(LAYERS), "hidden_size": HIDDEN,
    }  # fmt: skip
    assert {key: manifest[key] for key in wanted} == wanted
    cache = TargetCache.open(tmp_path / "cache")
    assert cache.manifest.target_model == "tiny/target"
    assert cache.manifest.target_layer_ids == LAYERS


def test_a_cache_of_deepspec_has_no_checksums_and_is_read_all_the_same(tmp_path: Path) -> None:
    write(tmp_path / "cache", [3, 1])
    for ours in (tmp_path / "cache").iterdir():
        if ours.name not in ("manifest.json", "samples.idx") and not ours.name.startswith("shard-"):
            ours.unlink()
    cache = TargetCache.open(tmp_path / "cache")
    assert not cache.has_checksums
    assert all(same(*pair) for pair in zip(cache, [sample(0, 3), sample(1, 1)], strict=True))


def test_shards_are_found_where_they_moved_to(tmp_path: Path) -> None:
    write(tmp_path / "cache", [3, 3, 3], shard_bytes=1, roots=[tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b").rename(tmp_path / "moved")
    cache = TargetCache.open(tmp_path / "cache")
    with pytest.raises(CorruptSample, match=r"sample 1 in shard-00001.bin: shard: cannot be read"):
        cache[1]
    assert same(cache[2], sample(2))
    assert [fault.name for fault in verify(cache).shards] == ["shard-00001.bin"]
    assert same(TargetCache.open(tmp_path / "cache", tmp_path / "moved")[1], sample(1))


@pytest.mark.parametrize("part", range(5))
def test_a_planted_error_is_named_and_only_its_sample_lost(tmp_path: Path, part: int) -> None:
    write(tmp_path, [4, 5, 6])
    offset = int.from_bytes((tmp_path / "samples.idx").read_bytes()[56 + 16 + 8 * part :][:8], "little")
    with (tmp_path / "shard-00000.bin").open("r+b") as shard:
        shard.seek(offset)
        byte = shard.read(1)[0]
        shard.seek(offset)
        shard.write(bytes([byte ^ 4]))
    cache = TargetCache.open(tmp_path)
    lost: list[CorruptSample] = []
    assert [each.key for each in cache.sound(lost.append)] == [0, 2]
    name = ("input_ids", "attention_mask", "loss_mask", "target_hidden_states", "target_last_hidden_states")[part]
    report = verify(TargetCache.open(tmp_path))
    for found in (*lost, *report.corrupt):
        assert (found.sample_id, found.shard, found.part) == (1, "shard-00000.bin", name)
    assert len(lost) == len(report.corrupt) == 1
    assert len(list(TargetCache.open(tmp_path, check=False))) == 3, "without checks nobody would know"


def test_an_error_in_the_index_is_named(tmp_path: Path) -> None:
    write(tmp_path, [4, 5, 6])
    index = bytearray((tmp_path / "samples.idx").read_bytes())
    index[56 + 16] ^= 2  # the second sample's input_ids
    (tmp_path / "samples.idx").write_bytes(index)
    lost: list[CorruptSample] = []
    assert [each.key for each in TargetCache.open(tmp_path).sound(lost.append)] == [0, 2]
    assert [(each.sample_id, each.part) for each in lost] == [(1, "index")]


def test_a_truncated_shard_loses_the_samples_beyond_its_end(tmp_path: Path) -> None:
    write(tmp_path, [4, 5, 6])
    shard = tmp_path / "shard-00000.bin"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    for check in (True, False):
        report = verify(TargetCache.open(tmp_path, check=check))
        assert [(each.sample_id, each.part) for each in report.corrupt] == [(2, "target_last_hidden_states")]
        assert [fault.name for fault in report.shards] == ["shard-00000.bin"]
        assert not report.sound


def test_a_reader_can_be_sent_to_another_process(tmp_path: Path) -> None:
    write(tmp_path, [2, 3])
    cache = TargetCache.open(tmp_path)
    assert same(pickle.loads(pickle.dumps(cache))[1], cache[-1])
    with pytest.raises(IndexError):
        cache[2]


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"a folder with manifest.json"):
        TargetCache.open(tmp_path)
    write(tmp_path / "cache", [2, 3])
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    for change, error, field in (
        ({"version": 3}, Unsupported, "version"),
        ({"hidden_dtype": "float8_e4m3fn"}, Unsupported, "hidden_dtype"),
        ({"num_shards": 2}, InvalidRequest, "num_shards"),
        ({"num_samples": 3}, InvalidRequest, "samples.idx"),
        ({"target_layer_ids": [3, 1]}, InvalidRequest, "target_layer_ids"),
        ({"shards": [{"shard_id": 1, "file_name": "x"}]}, InvalidRequest, "shards"),
        ({"shards": [{"shard_id": 0}]}, InvalidRequest, "manifest.json"),
    ):
        (tmp_path / "cache/manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(error, match=field):
            TargetCache.open(tmp_path / "cache")
    del manifest["hidden_size"]
    (tmp_path / "cache/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidRequest, match="hidden_size: expected it present"):
        TargetCache.open(tmp_path / "cache")


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album/holiday.jpg").touch()
    for options in ({"folder": tmp_path / "album"}, {"folder": tmp_path / "cache", "roots": [tmp_path / "album"]}):
        with pytest.raises(InvalidRequest, match=r"folder: expected an empty folder.*holiday.jpg"):
            TargetCacheWriter(spec=SPEC, **options)
    write(tmp_path / "one", [1], roots=[tmp_path / "root"])
    with pytest.raises(InvalidRequest, match=r"root: expected a folder of .*two"):
        TargetCacheWriter(tmp_path / "two", SPEC, roots=[tmp_path / "root"])
    with pytest.raises(InvalidRequest, match=r"hidden_size: expected 4, got 5"):
        TargetCacheWriter(tmp_path / "one", CacheSpec(LAYERS, 5, "tiny/target", ("prompts.jsonl",), "tiny"))


def test_one_number_is_one_writer(tmp_path: Path) -> None:
    with TargetCacheWriter(tmp_path, SPEC):
        with pytest.raises(Unavailable, match=r"writer 0 of .* is at work"):
            TargetCacheWriter(tmp_path, SPEC)
        TargetCacheWriter(tmp_path, SPEC, writer=1).close()
    TargetCacheWriter(tmp_path, SPEC).close()


def test_samples_that_are_not_as_the_cache_has_them_are_refused(tmp_path: Path) -> None:
    with TargetCacheWriter(tmp_path, SPEC) as writer:
        writer.write(sample(0))
        other = CacheSpec(LAYERS, HIDDEN + 1, "tiny/target")
        for wrong, field in (
            (sample(0), "key"),
            (sample(1, 0), "input_ids"),
            (sample(1, spec=other), "target_hidden_states"),
        ):
            with pytest.raises(InvalidRequest, match=field):
                writer.write(wrong)
        assert len(writer) == 1


def test_keys_that_are_not_dense_keep_their_order(tmp_path: Path) -> None:
    with TargetCacheWriter(tmp_path, SPEC) as one, TargetCacheWriter(tmp_path, SPEC, writer=1) as two:
        for key in (40, 7):
            one.write(sample(key))
        for key in (12, 7):
            two.write(sample(key))
        sealed = seal(tmp_path)  # while both are at work
    assert (sealed.samples, sealed.repeated, sealed.tokens, sealed.shards) == (3, 1, 9, 2)
    assert [(each.sample_id, each.key) for each in TargetCache.open(tmp_path)] == [(0, 7), (1, 12), (2, 40)]


def test_nothing_to_seal_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"paceline-cache.json"):
        seal(tmp_path)
    TargetCacheWriter(tmp_path / "cache", SPEC).close()
    with pytest.raises(InvalidRequest, match="at least one sample"):
        seal(tmp_path / "cache")
