"""Embedding tables that live outside of a server's memory: in RocksDB on this machine, or in a Redis Cluster.

`config.py` says which table is where; `placement.py` opens them for a model's lookups as `tiered_table.py`,
which keeps rows that are asked for often in DRAM (`hot_rows.py`) and asks `rocksdb.py` and
`redis_cluster.py` for the rest within a request's `budget.py`. `transfer.py` moves tables there and back.
The libraries of a store are imported when a config names it. docs/tiers.md is the page.
"""
