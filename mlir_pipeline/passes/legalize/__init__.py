"""Lowers dynamic StableHLO to `tensor` and `linalg`.

Entry point: `legalize_dynamism.legalize_dynamism`, whose `RULES` names the rule of each op. A rule takes the
`Lowering` of `lowering.py` and an op, and returns the value that replaces it. `sizes.py` says how large every
tensor is, as a polynomial of the number of candidates.
"""
