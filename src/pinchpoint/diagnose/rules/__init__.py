"""One cause per module, found by listing this package: `RULE` (header), `evaluate` and a sibling `.cases.toml`."""
