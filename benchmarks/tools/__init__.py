"""What the benchmarks share: databases and batches, measured processes, results."""
