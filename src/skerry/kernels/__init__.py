"""Compiled loops (numba, parallel, cached). Plain functions on arrays; every kernel has a naive twin in the tests."""
