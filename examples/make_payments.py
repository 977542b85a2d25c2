"""Make ``payments.csv``: two thousand synthetic card payments, thirty of them odd in five known ways.

The table is invented (seed 7); its columns are of the kinds that a real one has: free ids, dates, categories,
booleans, missing values, skewed amounts.
"""

from __future__ import annotations

import csv
import datetime as dt
from pathlib import Path

import numpy as np

rng = np.random.default_rng(7)
N, START = 2000, dt.datetime(2026, 3, 1)
SHOPS = {"groceries": 32.0, "fuel": 55.0, "restaurant": 41.0, "online": 63.0, "travel": 380.0}
names = list(SHOPS)
odd = set(rng.choice(N, 30, replace=False).tolist())

rows = []
for i in range(N):
    kind = names[rng.choice(5, p=[0.38, 0.17, 0.2, 0.2, 0.05])]
    amount = SHOPS[kind] * rng.lognormal(0.0, 0.45)
    items = max(1, int(rng.poisson(amount / 14 if kind == "groceries" else 2)))
    hour = int(np.clip(rng.normal(14, 3.5), 6, 23))
    country, abroad, age = "NL", False, int(np.clip(rng.normal(44, 14), 18, 90))
    if rng.random() < 0.06:
        country, abroad = str(rng.choice(["DE", "BE", "FR"])), True
    if i in odd:
        way = i % 5
        if way == 0:
            amount *= 45
        elif way == 1:
            hour, amount = int(rng.integers(2, 5)), amount * 6
        elif way == 2:
            country, abroad, amount = "KY", True, amount * 9
        elif way == 3:
            items, amount = items + int(rng.integers(70, 160)), amount * 3
        else:
            age, hour, amount = 18, 3, amount * 12
    stamp = START + dt.timedelta(days=int(rng.integers(0, 90)), hours=hour, minutes=int(rng.integers(0, 60)))
    rows.append(
        {
            "payment_id": f"P{i:06d}-{rng.integers(16**6):06x}",
            "time": stamp.isoformat(timespec="minutes"),
            "amount": f"{amount:.2f}",
            "kind": kind,
            "items": items if rng.random() > 0.03 else "",
            "country": country,
            "abroad": str(abroad).lower(),
            "cardholder_age": age if rng.random() > 0.01 else "",
            "currency": "EUR",
            "fraud": int(i in odd),
        }
    )
with (Path(__file__).parent / "payments.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
