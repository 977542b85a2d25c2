"""Protocols and replicas: one module per study, each with ``run(quick, data, seed, progress) -> dict``."""
