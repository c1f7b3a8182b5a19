"""The streaming engine: messages, topology, broker, store, jobs, worker, aggregator. Knows no astronomy."""
