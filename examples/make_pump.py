"""Make ``pump.csv``: two weeks of an invented pump, a row every ten minutes (seed 11), four stretches of it odd.

Flow follows the day, pressure follows flow, temperature follows both slowly. Odd are a leak (pressure falls while flow
does not), a sensor that is stuck, a burst of vibration in the flow, and a night in which the pump ran. Five rows are
missing, and so is a cell.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np

rng = np.random.default_rng(11)
N, START = 2016, dt.datetime(2026, 3, 1)
day = 2 * np.pi * np.arange(N) / 144
flow = 42 + 11 * np.sin(day - 1.9) + 3 * np.sin(2 * day) + rng.normal(0, 0.7, N)
flow[1300:1318] += 6 * rng.choice([-1, 1], 18)  # vibration
flow[1731:1755] += 9  # a night shift
pressure = 3.1 + 0.045 * flow + rng.normal(0, 0.04, N)
pressure[1010:1028] -= np.linspace(0.3, 1.1, 18)  # a leak
temperature = np.empty(N)
level = 51.0
for i in range(N):
    level += 0.04 * (22 + 0.55 * flow[i] + 1.5 * pressure[i] - level)
    temperature[i] = level + rng.normal(0, 0.12)
temperature[1500:1540] = temperature[1500]  # stuck

out = ["time,flow,pressure,temperature"]
for i in range(N):
    if not 700 <= i < 705:
        cells = [f"{flow[i]:.2f}", f"{pressure[i]:.3f}" if i != 320 else "", f"{temperature[i]:.2f}"]
        out.append(",".join([(START + dt.timedelta(minutes=10 * i)).strftime("%Y-%m-%dT%H:%MZ"), *cells]))
Path(__file__).with_name("pump.csv").write_text("\n".join(out) + "\n")
