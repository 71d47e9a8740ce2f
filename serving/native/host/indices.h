// Checks of indices, and sorting by them without the heap.
#pragma once

#include <numeric>

#include "operator.h"

namespace jaxrank::host {

// Refuses the first id outside of [0, size), by name.
template <typename T>
void check_ids(std::span<const T> ids, int64_t size, const char* what = "index") {
  const auto limit = static_cast<uint64_t>(std::max<int64_t>(size, 0));
  // One pass without branches; which one it was is looked for only if there is one.
  bool bad = false;
  for (const T id : ids) bad |= static_cast<uint64_t>(id) >= limit;
  if (!bad) [[likely]]
    return;
  for (const T id : ids) check(static_cast<uint64_t>(id) < limit, what, " ", +id, " is not in [0, ", size, ")");
}

// Any integers as int64, in the tensor's own memory or in the arena.
inline std::span<const int64_t> as_int64(Call& call, const Tensor& tensor) {
  if (tensor.type == Type::kInt64) return tensor.values<int64_t>();
  auto* out = call.scratch<int64_t>(tensor.count);
  for_integer(tensor.type, [&]<typename T>(std::type_identity<T>) {
    const T* from = tensor.as<T>();
    for (int64_t i = 0; i < tensor.count; ++i) out[i] = static_cast<int64_t>(from[i]);
  });
  return {out, static_cast<size_t>(tensor.count)};
}

// Positions [0, count) sorted by `before`, which must order every two of them.
template <typename Before>
std::span<int64_t> sorted_positions(Call& call, int64_t count, Before before) {
  auto* order = call.scratch<int64_t>(count);
  std::iota(order, order + count, 0);
  std::sort(order, order + count, before);
  return {order, static_cast<size_t>(count)};
}

// Positions sorted by key; equal keys stay in their order.
inline std::span<int64_t> stable_order(Call& call, std::span<const int64_t> keys) {
  return sorted_positions(call, static_cast<int64_t>(keys.size()), [&](int64_t a, int64_t b) {
    return keys[a] != keys[b] ? keys[a] < keys[b] : a < b;
  });
}

// Coordinates `[..., depth]` as row-major positions of the slices that they name.
struct Places {
  std::span<const int64_t> at;
  int depth;
  int64_t slice;  // elements of a slice
};
// Refuses coordinates outside of the shape.
Places places_of(Call& call, const Tensor& indices, const Shape& shape);

// `bad_indices_policy`: only the one that refuses them. Throws `Unsupported` for another.
void check_bad_indices_policy(const Attributes& attributes);

}  // namespace jaxrank::host
