// What each subsystem of the native core adds to the Python module `_core`.
#pragma once

#include <nanobind/nanobind.h>

namespace jaxrank {

void bind_hashes(nanobind::module_& m);  // hashes.cc
void bind_host(nanobind::module_& m);    // host/bind.cc
void bind_wire(nanobind::module_& m);    // wire.cc

}  // namespace jaxrank
