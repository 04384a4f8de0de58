"""rpc-kit against its peers, in one run, as ratios to raw pyzmq. Run ``python -m benchmarks``."""
