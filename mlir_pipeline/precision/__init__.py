"""Lower precision of matrix products, by Flax module: chosen by rules, or searched for under bounds on the
ranking.

`rules.py` reads `PATTERN=FORMAT` and says which module gets which format; `cast.py` casts the products of a
flat jaxpr; `bounds.py` reads `--keep` and holds scores to it. The search (`search.py`) takes errors from an
emulation that runs every choice without compiling (`emulate.py`) and times from products compiled for this
machine (`timing.py`), and leaves a table, a plot and a JSON (`report.py`).
"""
