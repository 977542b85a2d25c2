"""The name of the processor, where Linux tells it and where nobody does."""

import platform

from skerry.core.machine import processor


def test_it_is_what_the_system_says(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n")
    assert processor(info) == "Some CPU @ 2 GHz"
    info.write_text("processor\t: 0\n")  # as on ARM
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert processor(info) == platform.machine() != ""
    assert processor(tmp_path / "absent") == platform.machine()
