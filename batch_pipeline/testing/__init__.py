"""Makers and stand-ins that tests, the demo and the benchmarks share."""
