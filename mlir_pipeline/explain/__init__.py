"""Where a bundle's work and time go.

Entry point: `explanation.explain`. `cost.py` counts FLOPs and bytes of a jaxpr, `rewriting.py` counts them
before and after each rewrite, `dispatches.py` says which Flax modules IREE put into which dispatch,
`profile.py` runs the compiled towers under IREE's profiler, `explanation.py` makes one record of it all, and
`plot.py` draws that.
"""
