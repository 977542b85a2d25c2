"""``skerry detect - --kind series --follow``: events of a stream, told as they happen."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time as clock
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

__all__ = ["follow"]

CHUNK = 1 << 20  # bytes taken at once
SAVE_EVERY = 5.0  # seconds between two states


def follow(
    detector: str,
    threshold: str,
    as_json: bool,
    seed: int,
    time: str | None,
    label: str | None,
    alarm: dict[str, int],
    state: Path | None,
    warmup: int,
) -> None:
    """Read standard input to its end, or until interrupted; print each event at once."""
    from skerry.core.errors import DataError, ParameterError
    from skerry.core.events import AlarmRule
    from skerry.data.series_stream import SeriesStream
    from skerry.detect.series import LiveDetector, LiveEvent

    if detector == "ensemble":
        detector = "forecast"
        _tell("the default looks at whole series; this stream is followed by the detector forecast")
    options: dict[str, Any] = {
        "detector": detector, "threshold": threshold, "seed": seed, "time": time, "label": label, "warmup": warmup,
        **alarm,
    }  # fmt: skip
    try:
        live = LiveDetector(detector, threshold, alarm=AlarmRule(**alarm), warmup=warmup, random_state=seed)
    except ParameterError as error:
        raise typer.BadParameter(str(error)) from None
    known, untold = None, []
    if state is not None and state.exists():
        live = LiveDetector.load(state)
        kept = live.reading_
        if kept.get("options") != options:
            differ = [k for k in options if kept.get("options", {}).get(k) != options[k]]
            raise DataError(f"{state}: was made with other options ({', '.join(differ)}); give another --state")
        known, untold = kept["stream"], [LiveEvent(**e) for e in kept["untold"]]
    stream = SeriesStream(
        False if time == "" else time, (label,) if label else (), min(100, warmup), "standard input", known
    )

    def save(left: list[LiveEvent]) -> None:
        if state is not None:
            told = [asdict(e) | {"reasons": list(e.reasons)} for e in left]
            live.reading_ = {"options": options, "stream": stream.state(), "untold": told}
            live.save(state)

    def tell(events: list[LiveEvent]) -> None:
        for i, event in enumerate(events):
            try:
                sys.stdout.write(_line(event, as_json) + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                save(events[i:])  # they are told when the stream is resumed
                raise

    wake, wakened = os.pipe()
    os.set_blocking(wakened, False)
    signal.set_wakeup_fd(wakened)
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    tell(untold)
    saved = clock.monotonic()
    while not stopped:
        ready, _, _ = select.select([0, wake], [], [])
        if 0 not in ready:
            continue
        data = os.read(0, CHUNK)
        if not data:
            break
        rows = stream.feed(data)
        events = []
        if rows is not None:
            live.channels, live.time_zone = list(stream.channels), stream.time_zone
            events = live.feed(rows.values, rows.time)
        for note in [*stream.notes, *live.notes_]:
            _tell(note)
        stream.notes, live.notes_ = [], []
        tell(events)
        if events or clock.monotonic() - saved > SAVE_EVERY:
            save([])
            saved = clock.monotonic()
    save([])
    if not live.warm:
        _tell(f"only {stream.n_rows} of the {warmup} rows of the warm-up came: nothing was scored; see --warmup")
    if stream.carry:
        _tell("the last line has no line break and was not read: it may be unfinished")
    tell(live.leave())
    if stopped:
        raise typer.Exit(130)


def _tell(note: str) -> None:
    print(f"skerry: {note}", file=sys.stderr, flush=True)


def _line(event: Any, as_json: bool) -> str:
    if as_json:
        return json.dumps(asdict(event))
    if event.kind == "alarm":
        why = f": {'; '.join(event.reasons)}" if event.reasons else ""
        return f"{event.last}  alarm {event.number}  score {event.score:.4g} over {event.threshold:.4g}{why}"
    word = "end of" if event.kind == "end" else "still open"
    stretch = f"{event.steps} steps from {event.start}, peak {event.score:.4g} at {event.peak}"
    return f"{event.last}  {word} {event.number}  {stretch}"
