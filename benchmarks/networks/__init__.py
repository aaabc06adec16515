"""Networks that differ in kind, with calibration and evaluation samples, for the benchmarks."""
