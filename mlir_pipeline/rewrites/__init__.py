"""Algebra on flat jaxprs, one rewrite a file. Each states its rule, its condition and its effect on FLOPs."""
