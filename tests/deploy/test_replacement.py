"""Files and folders take others' places whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.replacement import staging_beside, write_text


def test_an_old_file_outlives_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "result.json"
    write_text(path, "old")

    def fill_the_disk(unfinished: Path, text: str, **_: object) -> None:
        unfinished.write_bytes(text[:1].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in path.parent.iterdir()] == ["result.json"]


def test_a_device_is_written_to_and_not_replaced() -> None:
    before = Path(os.devnull).stat().st_ino
    write_text(Path(os.devnull), "nothing")
    assert Path(os.devnull).stat().st_ino == before


def test_what_a_killed_writer_left_is_no_part_of_what_the_next_one_writes(tmp_path: Path) -> None:
    (tmp_path / ".r.staging").mkdir()
    (tmp_path / ".r.staging" / "half").touch()
    with staging_beside(tmp_path / "r") as staging:
        assert list(staging.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
