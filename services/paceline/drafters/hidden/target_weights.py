"""Single tensors out of a model folder: a drafter borrows the target's embedding and head, nothing else of it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from paceline.speculation.errors import InvalidRequest

_EMBEDDING = "embed_tokens.weight"
_HEAD = "lm_head.weight"


class TargetWeights:
    """The named tensors of a folder with safetensors weights."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidRequest if there are none."""
        self.folder = folder
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))
        if not self._files:
            raise InvalidRequest("target", expected="a folder with *.safetensors weights", got=str(folder))

    def config(self) -> dict[str, object]:
        """The folder's ``config.json``; of a model of text and images, its text part."""
        data: dict[str, object] = json.loads((self.folder / "config.json").read_text())
        text = data.get("text_config")
        return text if isinstance(text, dict) else data

    def named(self, ending: str) -> Tensor | None:
        """The one tensor whose name ends like this; None if there is none."""
        names = [name for name in self._files if name == ending or name.endswith("." + ending)]
        if not names:
            return None
        if len(names) > 1:
            raise InvalidRequest("target", expected=f"one tensor named {ending}", got=sorted(names))
        with safe_open(self._files[names[0]], framework="pt") as file:
            tensor: Tensor = file.get_tensor(names[0])
        return tensor

    def embedding(self) -> Tensor:
        """[V, H] in the folder's own dtype. Raises InvalidRequest if it has none."""
        found = self.named(_EMBEDDING)
        if found is None:
            raise InvalidRequest("target", expected=f"a tensor named {_EMBEDDING}", got=str(self.folder))
        return found

    def head(self) -> Tensor:
        """The LM head, [V, H]; the embedding where the two are tied."""
        found = self.named(_HEAD)
        return self.embedding() if found is None else found
