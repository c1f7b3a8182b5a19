"""Benchmarks: ours beside the oracle's in one run, as ratios."""
