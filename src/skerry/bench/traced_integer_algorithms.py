"""Schoolbook arithmetic on traced integers, written so that its trace reads like work on paper.

Sums and products of two digits are known by heart: they are computed, not traced.
"""

from __future__ import annotations

from skerry.bench.traced_integer_core import ALGORITHMS, TInt, traced

__all__ = ["add", "div", "gcd", "median", "mixed", "mod", "mul", "sort", "sub"]


@traced
def add(x, y):
    """Return the sum, digit by digit from the right."""
    res = TInt()
    carry = TInt(0)
    while len(x) or len(y):
        digx = x[0]
        digy = y[0]
        x = x >> 1
        y = y >> 1
        ds = TInt(int(digx) + int(digy))
        ds = TInt(int(ds) + int(carry))
        res = ds[0] | res
        carry = ds >> 1
    if carry > 0:
        res = carry | res
    return res


@traced
def sub(x, y):
    """Return x - y for x >= y."""
    res = TInt()
    borrow = TInt(0)
    while len(x):
        digx = x[0]
        digy = y[0]
        x = x >> 1
        y = y >> 1
        digy = TInt(int(digy) + int(borrow))
        borrow = TInt(0)
        if digx < digy:
            digx = TInt(1) | digx
            borrow = TInt(1)
        dd = TInt(max(0, int(digx) - int(digy)))
        res = dd[0] | res
    return TInt(int(res))


@traced
def mul(x, y):
    """Return the product: one row for each digit of the shorter number."""
    if len(x) < len(y):
        x, y = y, x
    out_res = TInt()
    mag = 0
    while len(y):
        fac = y[0]
        y = y >> 1
        in_res = TInt()
        carry = TInt(0)
        for i in range(len(x)):
            term = x[i]
            dm = TInt(int(fac) * int(term))
            dm = TInt(int(dm) + int(carry))
            in_res = dm[0] | in_res
            carry = dm >> 1
        if carry > 0:
            in_res = carry | in_res
        in_res = in_res << mag
        out_res = out_res + in_res
        mag = mag + 1
    return TInt(int(out_res))


@traced(name="div")
def _long_division(x, y):
    """Return quotient and remainder; each digit is found by repeated addition."""
    quotient = TInt()
    rest = x
    mag = max(0, len(x) - len(y))
    while mag >= 0:
        part = y << mag
        digit = TInt(0)
        total = TInt(0)
        candidate = part
        while candidate <= rest:
            digit = TInt(int(digit) + 1)
            total = candidate
            candidate = candidate + part
        rest = rest - total
        quotient = quotient | digit
        mag = mag - 1
    return TInt(int(quotient)), rest


def div(x, y):
    """Return x // y."""
    return _long_division(x, y)[0]


def mod(x, y):
    """Return x % y."""
    return _long_division(x, y)[1]


@traced
def sort(items):
    """Return a sorted list: the smallest item left, again and again."""
    items = list(items)
    ordered = []
    while len(items) > 0:
        min_item = items[0]
        min_index = 0
        for index in range(1, len(items)):
            candidate = items[index]
            if candidate < min_item:
                min_item = candidate
                min_index = index
        ordered.append(min_item)
        items.pop(min_index)
    return ordered


@traced
def median(items):
    """Return the middle of a list, or half the sum of both middles, rounded down."""
    ordered = sort(items)
    middle = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return ordered[middle]
    total = ordered[middle - 1] + ordered[middle]
    return total // 2


@traced
def gcd(x, y):
    """Return the greatest common divisor, by Euclid."""
    while y > 0:
        x, y = y, x % y
    return x


@traced
def mixed(items):
    """Return ((a + b) * c + d) * ... for a list."""
    total = items[0]
    for i in range(1, len(items)):
        item = items[i]
        if i % 2 == 1:
            total = total + item
        else:
            total = total * item
    return total


ALGORITHMS |= {f.__name__: f for f in (add, sub, mul, div, mod)}
