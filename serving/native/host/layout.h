// Walks over tensors by strides: how one shape lies in another's memory.
#pragma once

#include <optional>

#include "operator.h"

namespace jaxrank::host {

// A maker of an operator without attributes.
template <void (*Run)(Call&)>
Kernel plain(const Attributes&, const Resources&) {
  return Run;
}

// The shape that both broadcast to.
std::optional<Shape> broadcast(const Shape& a, const Shape& b);

// Elements from one index to the next, for every dimension.
using Strides = std::array<int64_t, kMaxRank>;

Strides row_major(const Shape& shape);
// Of a tensor of `shape` seen as the larger `target`: 0 where it repeats.
Strides broadcast_strides(const Shape& shape, const Shape& target);

// Copies a box of `sizes`, element by element, between memory with strides; each side begins at its first element.
void copy_strided(Type type, const Shape& sizes, const void* from, const Strides& from_strides, void* to,
                  const Strides& to_strides);

// Writes one value everywhere.
void fill_items(Tensor& tensor, const void* value);

// `offset` elements into a tensor's memory.
inline const char* element(const Tensor& tensor, int64_t offset) {
  return static_cast<const char*>(tensor.data) + offset * static_cast<int64_t>(item_size(tensor.type));
}
inline char* element(Tensor& tensor, int64_t offset) {
  return static_cast<char*>(tensor.data) + offset * static_cast<int64_t>(item_size(tensor.type));
}

// Calls `f(offset of a, offset of b)` for the start of every innermost row of `sizes`, which has `sizes[rank - 1]` elements;
// of a scalar once. Nothing is called for an empty box.
template <typename F>
void for_rows(const Shape& sizes, const Strides& a, const Strides& b, F&& f) {
  const int rank = sizes.rank();
  for (const int64_t size : sizes) {
    if (size == 0) return;
  }
  std::array<int64_t, kMaxRank> at{};
  int64_t first = 0, second = 0;
  for (;;) {
    f(first, second);
    int d = rank - 2;
    for (; d >= 0; --d) {
      first += a[d], second += b[d];
      if (++at[d] < sizes[d]) break;
      first -= a[d] * sizes[d], second -= b[d] * sizes[d];
      at[d] = 0;
    }
    if (d < 0) return;
  }
}

}  // namespace jaxrank::host
