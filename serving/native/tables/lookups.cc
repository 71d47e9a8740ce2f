#include "lookups.h"

#include <algorithm>
#include <vector>

namespace jaxrank::tables {
namespace {

// Nanoseconds of a row that is not in a cache, roughly: an access and its bytes, and one more to find a key. Pieces are cut by
// ratios of these.
int64_t row_cost(const Table& table) { return 4 + table.row_bytes() / 12 + (table.keyed() ? 20 : 0); }

struct Piece {
  const Lookup* lookup;
  size_t first, last;  // segments, or ids
};

size_t length(const Lookup& l) { return l.bags.offsets == nullptr ? l.ids : l.bags.segments; }

int64_t cost(const Lookup& l) {
  if (l.bags.offsets == nullptr) return static_cast<int64_t>(l.ids) * row_cost(*l.table);
  return (l.bags.offsets[l.bags.segments] - l.bags.offsets[0]) * row_cost(*l.table);
}

// Adds pieces of about `wanted` to `pieces`.
void cut(const Lookup& l, int64_t wanted, std::vector<Piece>& pieces) {
  const auto together = static_cast<int64_t>(l.together);
  const int64_t rows = std::max<int64_t>(1, wanted / row_cost(*l.table) / together) * together;
  const int64_t* const offsets = l.bags.offsets;
  for (size_t first = 0, last; first < length(l); first = last) {
    if (offsets == nullptr)
      last = std::min(length(l), first + static_cast<size_t>(rows));
    else
      // The segments that begin before `rows` more ids are passed; at least one.
      last = static_cast<size_t>(std::upper_bound(offsets + first + 1, offsets + l.bags.segments, offsets[first] + rows - 1) - offsets);
    pieces.push_back({&l, first, last});
  }
}

void run(const Piece& piece) {
  const Lookup& l = *piece.lookup;
  float* const out = l.out + piece.first / l.together * l.stride;
  if (l.bags.offsets == nullptr)
    return l.table->lookup(l.bags.ids + piece.first, piece.last - piece.first, {out, l.stride, l.together});
  Bags bags = l.bags;
  bags.offsets += piece.first;
  bags.segments = piece.last - piece.first;
  l.table->pool(bags, out, l.stride);
}

}  // namespace

void run_lookups(std::span<const Lookup> lookups, WorkerPool* pool) {
  int64_t total = 0;
  for (const Lookup& l : lookups) {
    if (l.bags.offsets != nullptr) check_offsets(l.bags);
    total += cost(l);
  }
  if (pool == nullptr || pool->threads() == 0 || total < WorkerPool::kWorthWaking) {
    for (const Lookup& l : lookups) run({&l, 0, length(l)});
    return;
  }
  thread_local std::vector<Piece> pieces;
  pieces.clear();
  const int64_t most = static_cast<int64_t>(pool->threads()) * WorkerPool::kPiecesOfThread;
  const int64_t wanted = std::max(WorkerPool::kSmallestPiece, total / most);
  for (const Lookup& l : lookups) cut(l, wanted, pieces);
  const std::vector<Piece>& all = pieces;  // a thread_local name would be each worker's own
  pool->run(all.size(), [&all](size_t i) { run(all[i]); });
}

}  // namespace jaxrank::tables
