"""The counter-based generator and the noise laid over it."""

from __future__ import annotations

import pytest
import torch
from paceline.speculation.noise import BLOCK, Noise, philox
from torch import Tensor


def _words(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


ONES = 0xFFFFFFFF
# Random123's kat_vectors, philox 4x32 10.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    assert philox(_words(*counter), _words(*key)).tolist() == list(answer)


def test_philox_of_many_counters_is_philox_of_each() -> None:
    counters = torch.randint(0, 2**32, (4, 3, 5), generator=torch.Generator().manual_seed(1))
    keys = torch.randint(0, 2**32, (2, 3, 5), generator=torch.Generator().manual_seed(2))
    together = philox(counters, keys)
    for i in range(3):
        for j in range(5):
            assert torch.equal(together[:, i, j], philox(counters[:, i, j], keys[:, i, j]))


def test_a_token_has_one_noise_however_it_is_asked_for() -> None:
    noise = Noise([5, 2**64 - 1], [0, 3], [0, 1_000_000])
    rows = torch.tensor([0, 1, 1])
    blocks = torch.tensor([0, 0, 7])
    minima, offsets = noise.block_minima(rows, blocks)
    whole = noise.exponentials(rows, blocks, minima, offsets)
    for i in range(3):
        tokens = blocks[i] * BLOCK + torch.arange(BLOCK)
        assert torch.equal(whole[i], noise.at(rows[i].expand(BLOCK), tokens))


def test_the_least_of_a_block_is_where_level_zero_says() -> None:
    noise = Noise([9] * 50, [0] * 50, list(range(50)))
    rows = torch.arange(50)
    minima, offsets = noise.block_minima(rows, rows)
    whole = noise.exponentials(rows, rows, minima, offsets)
    assert torch.equal(whole.argmin(dim=1), offsets)
    assert torch.equal(whole.amin(dim=1), minima)
    assert bool((minima > 0).all())


@pytest.mark.parametrize("changed", ["seed", "choice", "position", "stream"])
def test_every_coordinate_changes_the_noise(changed: str) -> None:
    base = {"seed": 1, "choice": 0, "position": 2, "stream": 0}
    other = base | {changed: base[changed] + 1}

    def draw(place: dict[str, int]) -> Tensor:
        noise = Noise([place["seed"]], [place["choice"]], [place["position"]], stream=place["stream"])
        return noise.at(torch.zeros(300, dtype=torch.int64), torch.arange(300))

    assert not bool((draw(base) == draw(other)).any())
