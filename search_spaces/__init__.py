"""Shipped search spaces: YAML files, read by `bench.space`."""
