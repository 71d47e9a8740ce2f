"""Measurements on a machine with a GPU and no network: carry compiled bundles there, not the compiler."""
