"""Load consumers/server on this machine: throughput, latency, and what it does with more than it can take."""
