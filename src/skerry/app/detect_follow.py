"""``skerry detect ... --kind series --follow``: events of a stream or of a growing file, told as they happen."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time as clock
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from skerry.data.growing_file import GrowingFile
    from skerry.data.series_stream import SeriesStream
    from skerry.detect.series import LiveDetector, LiveEvent

__all__ = ["follow"]

CHUNK = 1 << 20  # bytes taken at once
SAVE_EVERY = 5.0  # seconds between two states
LOOK_EVERY = 0.2  # seconds between two looks at a file that did not grow


def follow(
    path: str,
    detector: str | None,
    threshold: str,
    as_json: bool,
    seed: int,
    time: str | None,
    label: str | None,
    alarm: dict[str, int],
    state: Path | None,
    warmup: int,
) -> None:
    """Read standard input to its end, or a file as it grows, until stopped; print each event at once."""
    from skerry.core.errors import ParameterError
    from skerry.core.events import AlarmRule
    from skerry.detect.series import LiveDetector

    if detector is None:
        detector = "forecast"
        _tell(
            "followed by the detector forecast: the default of whole series, ensemble, needs a longer past than a "
            "warm-up and met fewer labelled events after one; --detector ensemble takes it all the same"
        )
    options: dict[str, Any] = {
        "detector": detector, "threshold": threshold, "seed": seed, "time": time, "label": label, "warmup": warmup,
        **alarm,
    }  # fmt: skip
    try:
        live = LiveDetector(detector, threshold, alarm=AlarmRule(**alarm), warmup=warmup, random_state=seed)
    except ParameterError as error:
        raise typer.BadParameter(str(error)) from None
    followed = _Followed(path, live, options, state, as_json)
    try:
        followed.tell(followed.untold)
        stopped = followed.run()
        followed.end(stopped)
    except BrokenPipeError:
        followed.nobody_reads()
        return
    if stopped:
        raise typer.Exit(128 + stopped)


class _Followed:
    """The parts of one run: bytes from ``file`` or standard input, through ``stream`` and ``live``, to events."""

    def __init__(
        self, path: str, live: LiveDetector, options: dict[str, Any], state: Path | None, as_json: bool
    ) -> None:
        from skerry.core.errors import DataError
        from skerry.data.growing_file import GrowingFile
        from skerry.data.series_stream import SeriesStream
        from skerry.detect.series import LiveDetector, LiveEvent

        self.live, self.options, self.state, self.as_json = live, options, state, as_json
        self.untold: list[LiveEvent] = []
        kept: dict[str, Any] = {}
        if state is not None and state.exists():
            self.live = LiveDetector.load(state)
            kept = self.live.reading_
            if kept.get("options") != options:
                differ = [k for k in options if kept.get("options", {}).get(k) != options[k]]
                raise DataError(f"{state}: was made with other options ({', '.join(differ)}); give another --state")
            self.untold = [LiveEvent(**e) for e in kept["untold"]]
        self.file: GrowingFile | None = None if path == "-" else GrowingFile(path, kept.get("file"))
        self.stream: SeriesStream = SeriesStream(
            False if options["time"] == "" else options["time"],
            (options["label"],) if options["label"] else (),
            min(100, options["warmup"]),
            "standard input" if path == "-" else path,
            kept.get("stream"),
            again=self.file is None or not self.file.resumed,
        )
        self.wake, wakened = os.pipe()
        os.set_blocking(wakened, False)
        signal.set_wakeup_fd(wakened)
        self.stopped: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self.stopped.append(number)

    def run(self) -> int:
        """Follow to the end of standard input or until stopped; return the signal, 0 at the end."""
        saved = clock.monotonic()
        while not self.stopped:
            data = self._read()
            if data is None:
                continue
            if not data and self.file is None:
                break
            events = self._feed(data) if data else []
            if (events or data) and (events or clock.monotonic() - saved > SAVE_EVERY):
                self.save()
                saved = clock.monotonic()
        return self.stopped[0] if self.stopped else 0

    def _read(self) -> bytes | None:
        """Return bytes; b"" at the end of standard input; None where there are none yet."""
        if self.file is None:
            return os.read(0, CHUNK) if 0 in self._wait([0], None) else None
        data = self.file.read(CHUNK)
        for note in self.file.notes:
            _tell(note)
        self.file.notes = []
        if self.file.anew:
            self.stream.restart()
        if not data:
            self._wait([], LOOK_EVERY)
            return None
        return data

    def _wait(self, sources: list[int], seconds: float | None) -> list[int]:
        """Sleep until a source has bytes, a signal comes or the time is over; return what is ready."""
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # tells when nobody reads any more
        for source in (*sources, self.wake):
            poll.register(source, select.POLLIN)
        ready = dict(poll.poll(None if seconds is None else 1000 * seconds))
        if ready.get(sys.stdout.fileno(), 0) & select.POLLERR:
            raise BrokenPipeError
        return [source for source in sources if source in ready]

    def _feed(self, data: bytes) -> list[LiveEvent]:
        rows = self.stream.feed(data)
        events: list[LiveEvent] = []
        if rows is not None:
            self.live.channels, self.live.time_zone = list(self.stream.channels), self.stream.time_zone
            events = self.live.feed(rows.values, rows.time)
        for note in [*self.stream.notes, *self.live.notes_]:
            _tell(note)
        self.stream.notes, self.live.notes_ = [], []
        self.tell(events)
        return events

    def tell(self, events: list[LiveEvent]) -> None:
        """Print events; what nobody takes is told when the stream is resumed."""
        self.untold = list(events)
        while self.untold:
            sys.stdout.write(_line(self.untold[0], self.as_json) + "\n")
            sys.stdout.flush()
            del self.untold[0]

    def save(self) -> None:
        """Keep the state, if a file was named for it."""
        if self.state is None:
            return
        told = [asdict(e) | {"reasons": list(e.reasons)} for e in self.untold]
        file = None if self.file is None else self.file.state()
        self.live.reading_ = {"options": self.options, "stream": self.stream.state(), "untold": told, "file": file}
        self.live.save(self.state)

    def end(self, stopped: int) -> None:
        """Save, and tell what is left to tell."""
        self.save()
        if not self.live.warm:
            n, warmup = self.stream.n_rows, self.options["warmup"]
            _tell(f"only {n} of the {warmup} rows of the warm-up came: nothing was scored; see --warmup")
        if self.stream.carry:
            _tell("the last line has no line break and was not read: it may be unfinished")
        self.tell(self.live.leave())
        if stopped:
            kept = "" if self.state is None else f"; the state is in {self.state}"
            _tell(f"stopped by {signal.Signals(stopped).name}{kept}; exit code {128 + stopped}")

    def nobody_reads(self) -> None:
        """Stop where standard output was closed: a normal end, as of ``| head``."""
        self.save()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        kept = "" if self.state is None else f"; what was not told is in {self.state}"
        _tell(f"standard output was closed: stopped{kept}")


def _tell(note: str) -> None:
    try:
        print(f"skerry: {note}", file=sys.stderr, flush=True)
    except BrokenPipeError:  # nobody listens there: that stops nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _line(event: LiveEvent, as_json: bool) -> str:
    if as_json:
        return json.dumps(asdict(event))
    if event.kind == "alarm":
        why = f": {'; '.join(event.reasons)}" if event.reasons else ""
        return f"{event.last}  alarm {event.number}  score {event.score:.4g} over {event.threshold:.4g}{why}"
    word = "end of" if event.kind == "end" else "still open"
    stretch = f"{event.steps} steps from {event.start}, peak {event.score:.4g} at {event.peak}"
    return f"{event.last}  {word} {event.number}  {stretch}"
