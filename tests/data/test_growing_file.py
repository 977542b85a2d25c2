"""What is appended is read once, whatever happens to the file."""

import os

import pytest

from skerry.core.errors import DataError
from skerry.data.growing_file import GrowingFile


def drain(growing):
    parts = []
    while data := growing.read(5):
        parts.append(data)
    return b"".join(parts)


def test_appended_bytes_come_once(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(b"0123456789")
    growing = GrowingFile(path)
    assert drain(growing) == b"0123456789"
    assert drain(growing) == b""
    with path.open("ab") as file:
        file.write(b"ab")
    assert drain(growing) == b"ab"
    assert growing.notes == []


def test_a_file_that_was_cut_is_read_from_its_start(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(b"0123456789")
    growing = GrowingFile(path)
    drain(growing)
    path.write_bytes(b"new")  # the same file, shorter
    assert growing.read() == b"new"
    assert growing.anew
    assert "was cut" in growing.notes[0]
    assert growing.read() == b""
    assert not growing.anew


def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(b"old ")
    growing = GrowingFile(path)
    assert growing.read() == b"old "
    with path.open("ab") as file:
        file.write(b"late")
    path.rename(tmp_path / "s.csv.1")
    assert growing.read() == b"late"
    assert growing.read() == b""
    assert growing.read() == b""
    assert [("gone" in note) for note in growing.notes] == [True]
    path.write_bytes(b"new")
    assert growing.read() == b"new"
    assert growing.anew
    assert "replaced" in growing.notes[-1]


def test_it_goes_on_where_it_was_in_the_same_file_alone(tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(b"0123456789")
    growing = GrowingFile(path)
    growing.read(4)
    state = growing.state()
    again = GrowingFile(path, state)
    assert again.resumed
    assert again.read() == b"456789"
    path.write_bytes(b"abcdefghij")  # the same file with other bytes
    assert not GrowingFile(path, state).resumed
    os.replace(path, tmp_path / "s.csv.1")
    path.write_bytes(b"0123456789")
    other = GrowingFile(path, state | {"inode": -1})
    assert not other.resumed
    assert other.read() == b"0123456789"
    with pytest.raises(DataError, match="cannot be read"):
        GrowingFile(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read"):
        GrowingFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR)
    with pytest.raises(DataError, match="standard input"):
        GrowingFile(tmp_path / "pipe")
    os.close(reader)
