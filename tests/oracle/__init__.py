"""Running the oracle (romancal's pipeline) on the same files and references, for tests and benchmarks alone."""
