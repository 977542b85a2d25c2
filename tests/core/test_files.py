import os
import sys

import pytest

from skerry.core.errors import DataError
from skerry.core.files import atomic_write


def test_the_file_appears_whole(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_or_an_interruption_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(DataError, match=r"a\.bin: cannot be written \(No space left on device\)"),
        atomic_write(tmp_path / "a.bin"),
    ):
        raise OSError(28, os.strerror(28))
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_told(tmp_path):
    with (
        pytest.raises(DataError, match=r"nowhere.a\.bin: cannot be written"),
        atomic_write(tmp_path / "nowhere" / "a.bin"),
    ):
        pass


def test_a_folder_as_target_is_told(tmp_path):
    with pytest.raises(DataError, match="is a folder"), atomic_write(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="devices and links of POSIX")
def test_a_device_is_never_replaced_and_a_link_stays_a_link(tmp_path):
    with pytest.raises(DataError, match="not a regular file"), atomic_write("/dev/null"):
        pass
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
