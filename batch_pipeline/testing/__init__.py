"""Makers of test data and replacement servers that tests, the demo and the benchmarks share."""
