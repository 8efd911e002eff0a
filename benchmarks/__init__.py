"""What the toolkit costs, measured: `make bench`, or `python -m benchmarks.bench_NAME --help` for one of them."""
