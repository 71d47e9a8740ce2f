"""What a request costs in page faults and heap allocations, under several allocators side by side.

Entry point: `measure.costs`, or `python -m bench.allocations BUNDLE REQUESTS.npz`. `measure.py` starts
`subject.py` once for each allocator and round, with `counter.cc` (built by `counter.py`) and the allocator
preloaded; the subject answers requests and reports its `serving.memory` snapshots.
"""
