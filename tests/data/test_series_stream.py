"""Bytes in, rows out, whatever the cuts."""

import numpy as np
import pytest

from skerry.core.errors import DataError
from skerry.data.series_stream import SeriesStream

CSV = "ts,a,b\n" + "".join(f'2024-01-01 00:{m:02d},{m}.5,"{m}"\n' for m in range(12))


def test_a_cut_at_every_byte_gives_the_same_rows():
    data = CSV.encode()
    whole = SeriesStream(head_rows=3).feed(data)
    for cut in range(len(data)):
        stream = SeriesStream(head_rows=3)
        parts = [stream.feed(data[:cut])]
        state = stream.state()
        parts.append(SeriesStream(head_rows=3, state=state, again=False).feed(data[cut:]))
        parts = [p for p in parts if p is not None]
        np.testing.assert_array_equal(np.concatenate([p.values for p in parts]), whole.values)
        np.testing.assert_array_equal(np.concatenate([p.time for p in parts]), whole.time)


def test_rows_sent_again_are_passed_over():
    data = CSV.encode()
    stream = SeriesStream(head_rows=3)
    stream.feed(data[:180])
    seen = stream.n_rows
    resumed = SeriesStream(head_rows=3, state=stream.state())
    assert len(resumed.feed(data).values) == 12 - seen


def test_bad_lines_are_counted_and_told():
    stream = SeriesStream(head_rows=3)
    rows = stream.feed(CSV.encode() + b"1,2\n2024-01-01 00:13,x,1\n")
    assert len(rows.values) == 13
    assert np.isnan(rows.values[-1, 0])
    assert stream.n_unreadable == 1
    with pytest.raises(DataError, match="binary"):
        SeriesStream().feed(b"\x00\x01\n")


def test_json_lines_with_keys_that_come_and_go():
    lines = [f'{{"t": {1_700_000_000 + i}, "a": {i}}}' for i in range(5)]
    stream = SeriesStream(head_rows=3)
    rows = stream.feed(("\n".join([*lines, '{"t": 1700000006, "new": 1}']) + "\n").encode())
    assert stream.channels == ["a"]
    assert np.isnan(rows.values[-1, 0])
    assert any("new" in note for note in stream.notes)
