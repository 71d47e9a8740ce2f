"""Arrays in pieces, for rewrites that keep apart what a concatenation put together.

`grid.py` says what a `Grid` of `Piece`s is; `operations.py` computes an equation of a jaxpr on grids
(`on_pieces`), with matrix products in `dots.py`. A rewrite starts grids where it finds something to keep
apart, and reads `Grid.whole` where an equation cannot.
"""
