// The Python module `_core`: everything native in the server.

#include "bindings.h"
#include "tables/bind_tables.h"

NB_MODULE(_core, m) {
  m.doc() = "The native core: string hashes, embedding tables, host programs and messages. Strings are bytes objects.";
  jaxrank::bind_hashes(m);
  jaxrank::bind_host(m);
  jaxrank::bind_wire(m);
  bind_tables(m);
}
