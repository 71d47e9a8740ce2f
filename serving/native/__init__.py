"""The native core: string hashing and lookups in C++20, with a nanobind module `_core`."""
