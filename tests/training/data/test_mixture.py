"""The mixture: weights that move from early to late, and draws that follow them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from training.data.mixture import Mixture, group_of
from training.data.shards import PAIR_ROW, Shard, ShardInfo


def shard(name: str, source: str, rows: int) -> Shard:
    info = ShardInfo(
        name=name, source=source, licence="", file="", sha256="", tokens=0, rows=rows, documents=0, dropped=0
    )
    table = np.zeros(rows, PAIR_ROW)
    table["offset"] = np.arange(rows)
    return Shard(info=info, tokens=np.zeros(0, np.uint16), rows=table)


SHARDS = [
    shard("cloze_wiki_00", "wikipedia_en", 3),
    shard("cloze_wiki_01", "wikipedia_en", 5),
    shard("squad_a", "squad", 4),
    shard("empty", "drcd", 0),
]


def mixture(early: dict[str, float], late: dict[str, float]) -> Mixture:
    return Mixture(SHARDS, early, late, (10, 20))


def draws(mixed: Mixture, step: int, count: int) -> Counter[tuple[str, int]]:
    chance = np.random.default_rng(3)
    found = (mixed.draw(step, chance) for _ in range(count))
    return Counter((each.info.name, int(row["offset"])) for each, row in found)


def test_weights_move_in_a_line_from_early_to_late() -> None:
    mixed = mixture({"cloze": 3.0, "squad": 1.0}, {"squad": 5.0})
    assert mixed.names == ["cloze", "squad"]
    assert mixed.weights(0) == pytest.approx([0.75, 0.25])
    assert mixed.weights(10) == pytest.approx([0.75, 0.25])
    assert mixed.weights(15) == pytest.approx([0.375, 0.625])
    assert mixed.weights(20) == pytest.approx([0.0, 1.0])
    assert mixed.weights(1_000) == pytest.approx([0.0, 1.0])


def test_draws_follow_the_weights_and_take_every_row_of_a_group_evenly() -> None:
    found = draws(mixture({"cloze": 1.0, "squad": 1.0}, {"squad": 1.0}), 0, 8_000)
    assert len(found) == 12
    groups = Counter[str]()
    for (name, _), count in found.items():
        groups[name.split("_")[0]] += count
    assert groups["cloze"] == pytest.approx(4_000, rel=0.06)
    cloze = [count for (name, _), count in found.items() if name.startswith("cloze")]
    assert all(count == pytest.approx(500, rel=0.2) for count in cloze)


def test_a_group_of_no_weight_is_never_drawn() -> None:
    mixed = mixture({"cloze": 1.0}, {"squad": 1.0})
    assert {name for name, _ in draws(mixed, 0, 300)} == {"cloze_wiki_00", "cloze_wiki_01"}
    assert {name for name, _ in draws(mixed, 20, 300)} == {"squad_a"}


@pytest.mark.parametrize("name", ["squat", "wikipedia_en", "drcd"])
def test_a_source_that_was_not_prepared_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"the mixture weights '{name}', but prepared are cloze, squad"):
        mixture({"cloze": 1.0}, {name: 1.0})


def test_mined_shards_are_groups_of_their_own() -> None:
    names = ("cloze_wiki", "lead_wiki", "wiki")
    assert [group_of(shard(name, "wikipedia_en", 1)) for name in names] == ["cloze", "lead", "wikipedia_en"]
