"""Where a registry keeps its entries: in memory, in a SQLite file, in etcd."""
