"""Model names, the cache they are fetched into, and the tokenizer files that travel."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from paceline.engine import models, numerics
from paceline.engine.fake import fake_tokenizer_files
from paceline.engine.loading import EngineSpec, load_engine
from paceline.engine.quantised import scheme_of
from paceline.engine.tokenizer_files import tokenizer_files
from paceline.speculation.errors import InvalidRequest, Unavailable, Unsupported

from tests.congruence.engine_tiny import configs, tiny_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model as a folder."""
    path = tmp_path / "tiny-model"
    tiny_model(configs()["llama"], torch.bfloat16).save_pretrained(path)
    for name, content in fake_tokenizer_files().items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "base", "layers", "model_id"),
    [
        ("demo", "demo", None, "SmolLM2-135M-Instruct"),
        ("demo@layers=6", "demo", 6, "SmolLM2-135M-Instruct@layers=6"),
        ("Qwen/Qwen3-0.6B@layers=12", "Qwen/Qwen3-0.6B", 12, "Qwen/Qwen3-0.6B@layers=12"),
        ("/models/some-Q4.gguf", "/models/some-Q4.gguf", None, "some-Q4"),
    ],
)
def test_names_are_taken_apart(name: str, base: str, layers: int | None, model_id: str) -> None:
    parsed = models.parse(name)
    assert (parsed.base, parsed.layers, parsed.model_id) == (base, layers, model_id)


@pytest.mark.parametrize("name", ["demo@", "demo@layers=0", "demo@layers=x", "demo@revision=3", "@layers=3", "nothing"])
def test_names_that_cannot_be_models_are_refused(name: str, home: Path) -> None:
    with pytest.raises(InvalidRequest, match="model: expected"):
        models.fetch(name)


def test_the_hub_out_of_reach_says_so(tmp_path: Path) -> None:
    script = (
        "from paceline.engine import models\nfrom paceline.speculation.errors import Unavailable\n"
        "try: models.fetch('nobody/no-such-model')\nexcept Unavailable as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "nobody/no-such-model is neither in the local Hugging Face cache nor reachable" in done.stdout


def test_the_module_is_light() -> None:
    script = "import sys, paceline.engine.models; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_building_happens_once_under_a_lock(tmp_path: Path) -> None:
    builds: list[Path] = []
    lines: list[str] = []

    def build(staging: Path) -> Path:
        builds.append(staging)
        time.sleep(0.3)
        (staging / "out").mkdir()
        (staging / "out" / "file").write_text("whole")
        return staging / "out"

    def run() -> None:
        models.built(tmp_path / "model", build, lines.append)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert (tmp_path / "model" / "file").read_text() == "whole"
    assert "waiting for another process that prepares the same model" in lines
    assert not builds[0].exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(staging: Path) -> Path:
        (staging / "half").write_text("")
        raise Unavailable("no network")

    with pytest.raises(Unavailable):
        models.built(tmp_path / "model", build, lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_a_broken_gguf_file_fails_with_the_converters_words(tmp_path: Path, home: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but not really")
    with pytest.raises(Unavailable, match=r"cannot convert .*broken\.gguf"):
        models.fetch(str(broken))
    assert [path.name for path in (home / "models").iterdir() if not path.name.endswith(".lock")] == []
    other = tmp_path / "model.bin"
    other.write_bytes(b"")
    with pytest.raises(InvalidRequest, match=r"a \.gguf file"):
        models.fetch(str(other))


def test_loading_a_folder(folder: Path, home: Path) -> None:
    lines: list[str] = []
    loaded = load_engine(EngineSpec(str(folder), dtype="float32", kv_tokens=512), lines.append)
    assert loaded.engine.info.model_id == "tiny-model"
    assert loaded.engine.info.eos_token_ids == (2, 257)  # config.json and generation_config.json
    assert loaded.engine.info.context_length == 1024
    assert loaded.engine.info.numerics["dtype"] == "float32"
    assert set(fake_tokenizer_files()) == set(loaded.tokenizer_files)
    rows = [count for count, _ in loaded.engine.cost_curve()]
    assert rows == sorted(rows)
    assert lines[-1].startswith("ready: numerics class")
    cut = load_engine(EngineSpec(f"{folder}@layers=1", dtype="float32", kv_tokens=512))
    assert cut.engine.info.model_id == "tiny-model@layers=1"
    assert cut.engine.info.fingerprint != loaded.engine.info.fingerprint
    assert cut.engine.info.numerics_class != loaded.engine.info.numerics_class
    with pytest.raises(InvalidRequest, match=r"at most @layers=2"):
        load_engine(EngineSpec(f"{folder}@layers=3"))
    with pytest.raises(InvalidRequest, match="dtype"):
        load_engine(EngineSpec(str(folder), dtype="int4"))


def test_a_quantised_model_is_another_one(folder: Path, home: Path) -> None:
    names = ("", "int8", "int4")
    infos = [load_engine(EngineSpec(str(folder), kv_tokens=512, weights=name)).engine.info for name in names]
    assert [info.model_id for info in infos] == ["tiny-model", "tiny-model@int8", "tiny-model@int4"]
    assert len({info.fingerprint for info in infos}) == len({info.numerics_class for info in infos}) == 3
    assert infos[0].numerics["quantisation"] == "none"
    assert infos[1].numerics["quantisation"] == "int8 with a scale per output"
    assert infos[2].numerics["quantisation"].endswith("per 32 inputs, head int8 with a scale per output")
    named = EngineSpec(f"{folder}@layers=1", kv_tokens=512, weights="int8", model_id="mine")
    assert load_engine(named).engine.info.model_id == "mine"
    fingerprints = {numerics.fingerprint(folder, layers, None) for layers in (None, 1)}
    fingerprints |= {numerics.fingerprint(folder, layers, scheme_of("int8")) for layers in (None, 1)}
    assert len(fingerprints) == 4


def test_unknown_weights_are_refused_by_name(folder: Path, home: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"weights: expected int8 or int4.*got 'int2'"):
        load_engine(EngineSpec(str(folder), weights="int2"))
    with pytest.raises(Unsupported, match="weights"):
        load_engine(EngineSpec("fake", weights="int8"))


def test_quantised_weights_and_other_models_are_refused(folder: Path, home: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(Unsupported, match="quantised"):
        load_engine(EngineSpec(str(folder)))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(Unsupported, match="vit"):
        load_engine(EngineSpec(str(folder)))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(InvalidRequest, match="safetensors"):
        load_engine(EngineSpec(str(folder)))


def test_missing_weights_are_not_made_up(folder: Path, home: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InvalidRequest, match=r"model: expected weights for every layer.*layers\.2\."):
        load_engine(EngineSpec(str(folder)))


def test_fingerprints_follow_content_not_place_or_library(folder: Path, tmp_path: Path, home: Path) -> None:
    first = numerics.fingerprint(folder)
    assert numerics.fingerprint(folder) == first  # kept
    assert len(list((home / "fingerprints").iterdir())) == 1
    config = json.loads((folder / "config.json").read_text())
    moved = folder.rename(tmp_path / "moved")
    (moved / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert numerics.fingerprint(moved) == first
    (moved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert numerics.fingerprint(moved) != first


def test_tokenizer_files_are_completed(tmp_path: Path) -> None:
    files = fake_tokenizer_files()
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    found = tokenizer_files(tmp_path)
    assert found["chat_template.jinja"] == b"yes"
    assert json.loads(found["generation_config.json"]) == {"eos_token_id": [7, 9]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "one"}))
    assert tokenizer_files(tmp_path)["chat_template.jinja"] == b"one"


def test_a_tokenizer_without_a_fast_form_is_converted(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    files = tokenizer_files(tmp_path)
    assert json.loads(files["tokenizer.json"])["model"]["vocab"] == vocabulary
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Unavailable, match="cannot read the tokenizer"):
        tokenizer_files(empty)
