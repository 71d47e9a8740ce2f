// The lookups of a request in many tables, as one piece of work for a pool of threads.
#pragma once

#include <cstddef>
#include <span>

#include "../threads/worker_pool.h"
#include "table.h"

namespace jaxrank::tables {

// One lookup: of each id, or of segments of ids if `bags.offsets` is given.
struct Lookup {
  const Table* table;
  Bags bags;
  size_t ids;  // without offsets: how many
  float* out;
  size_t stride;
  size_t together = 1;  // as in Output; segments have a stride each
};

// Runs all of them. Work is cut by segments and ids into pieces of about equal cost, for `pool` if there is one and if it is
// worth to wake a thread for. Throws as Table::lookup and Table::pool, what the first of them would throw; outputs are then in
// any state.
void run_lookups(std::span<const Lookup> lookups, WorkerPool* pool);

}  // namespace jaxrank::tables
