#pragma once

#include <nanobind/nanobind.h>

// Adds `NativeTable` and what writing tables needs to the module.
void bind_tables(nanobind::module_& m);
