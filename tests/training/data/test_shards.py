"""Shards: whole or absent, memory-mapped, and read back as written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.data import shards
from training.data.shards import PAIR_ROW, ShardInfo, read_all_info, read_shard, read_shards, write_shard

ROWS = np.array([(0, 2, 1), (3, 1, 2)], dtype=PAIR_ROW)
TOKENS = [np.array([5, 6, 2], np.uint16), np.array([65_535, 7, 2], np.uint16)]


def info(name: str = "a", sha256: str = "0") -> ShardInfo:
    return ShardInfo(
        name=name, source="s", licence="MIT", file="f", sha256=sha256, tokens=6, rows=2, documents=2, dropped=0
    )


def test_a_shard_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "train/summary/a", info(), TOKENS, ROWS)
    shard = read_shard(tmp_path / "train/summary/a")
    assert replace(shard.info, digests={}) == info()
    assert set(shard.info.digests) == {"tokens.npy", "rows.npy"}
    assert shard.tokens.tolist() == [5, 6, 2, 65_535, 7, 2]
    assert shard.tokens.dtype == np.uint16
    assert isinstance(shard.tokens, np.memmap)
    assert (shard.rows == ROWS).all()


def test_a_shard_of_nothing_can_be_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "train/text/a", replace(info(), tokens=0, rows=0), [], np.zeros(0, PAIR_ROW))
    shard = read_shard(tmp_path / "train/text/a")
    assert (len(shard.tokens), len(shard.rows)) == (0, 0)


@pytest.mark.parametrize("failing", ["save", "dumps"])
def test_an_interrupted_write_leaves_no_half_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shards.np if failing == "save" else shards.json, failing, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_shard(tmp_path / "train/qa/a", info(), TOKENS, ROWS)
    assert read_all_info(tmp_path) == []
    with pytest.raises(ValueError, match="no prepared 'qa' data"):
        read_shards(tmp_path, "qa")
    write_shard(tmp_path / "train/qa/a", info(), TOKENS, ROWS)
    assert [path.name for path in (tmp_path / "train/qa").iterdir()] == ["a"]


def test_an_interrupted_write_leaves_the_former_shard(tmp_path: Path) -> None:
    def tokens() -> object:
        yield TOKENS[0]
        raise KeyboardInterrupt

    write_shard(tmp_path / "train/qa/a", info(sha256="old"), TOKENS, ROWS)
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "train/qa/a", info(sha256="new"), tokens(), ROWS)
    (kept,) = read_shards(tmp_path, "qa")
    assert (kept.info.sha256, len(kept.tokens)) == ("old", 6)


def test_shards_come_by_name_whatever_their_kind(tmp_path: Path) -> None:
    for kind, name in (("text", "b"), ("text", "a"), ("qa", "c")):
        write_shard(tmp_path / "train" / kind / name, info(name), TOKENS, ROWS)
    assert [shard.info.name for shard in read_shards(tmp_path, "text")] == ["a", "b"]
    assert [each.name for each in read_all_info(tmp_path)] == ["c", "a", "b"]


def test_missing_data_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no prepared 'text' data.*trident data prepare"):
        read_shards(tmp_path, "text")


def cut(folder: Path) -> None:
    path = folder / "tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])


def flip(folder: Path) -> None:
    path = folder / "rows.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose(folder: Path) -> None:
    (folder / "tokens.npy").unlink()


def spoil(folder: Path) -> None:
    (folder / "shard.json").write_text('{"name": "a"')


def old_and_cut(folder: Path) -> None:
    """A shard made before digests were written."""
    content = json.loads((folder / "shard.json").read_text())
    del content["digests"]
    (folder / "shard.json").write_text(json.dumps(content))
    cut(folder)


def old_and_swapped(folder: Path) -> None:
    old_and_cut(folder)
    np.save(folder / "tokens.npy", np.zeros(3, np.uint16))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "tokens.npy is not the file that was written"),
        (flip, "rows.npy is not the file that was written"),
        (lose, "tokens.npy is missing"),
        (spoil, "shard.json is damaged"),
        (old_and_cut, "the arrays in .* do not load"),
        (old_and_swapped, "should hold 6 tokens in 2 rows, but holds 3 in 2"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    write_shard(tmp_path / "train/summary/a", info(), TOKENS, ROWS)
    damage(tmp_path / "train/summary/a")
    with pytest.raises(ValueError, match=message) as caught:
        read_shards(tmp_path, "summary")
    assert str(tmp_path / "train/summary/a") in str(caught.value)
    assert "run trident data prepare again" in str(caught.value)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from training.data.shards import PAIR_ROW, ShardInfo, write_shard
info = ShardInfo(name="a", source="s", licence="MIT", file="f", sha256="new", tokens=1, rows=0, documents=1, dropped=0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
write_shard(Path(sys.argv[1]), info, [np.zeros(1_000_000, np.uint16)], np.zeros(0, PAIR_ROW))
"""


def test_a_full_disk_leaves_the_former_shard_and_no_half_one(tmp_path: Path) -> None:
    """The system refuses to let the file grow, as it does when the disk is full."""
    write_shard(tmp_path / "train/text/a", info(sha256="old"), TOKENS, ROWS)
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "train/text/a")]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "OSError" in answer.stderr
    assert [path.name for path in (tmp_path / "train/text").iterdir()] == ["a"]
    assert read_shards(tmp_path, "text")[0].info.sha256 == "old"
