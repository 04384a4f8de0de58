"""Real components for the tests: hosts on a network, a systemd manager, an etcd cluster."""
