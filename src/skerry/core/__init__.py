"""Ground floor: contracts, thresholds, findings, metrics, checks. Imports nothing else of Skerry."""
