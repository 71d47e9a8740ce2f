"""Deltas of a whole model: `bundles.py` makes them from two bundles and applies them to one on the disk;
`live.py` applies them to a model that serves.

A server finds them in `<model>/<version>.deltas/`, beside the version: a bundle's own files never change.
An entry there is a delta file, or a directory of them that make one epoch together. docs/updates.md.
"""

from serving.updates.live import LiveUpdates, deltas_of

__all__ = ["LiveUpdates", "deltas_of"]
