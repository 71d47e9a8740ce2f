#include "layout.h"

namespace jaxrank::host {

std::optional<Shape> broadcast(const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  Shape common;
  for (int i = 0; i < rank; ++i) {
    const int in_a = i - (rank - a.rank()), in_b = i - (rank - b.rank());
    const int64_t of_a = in_a < 0 ? 1 : a[in_a], of_b = in_b < 0 ? 1 : b[in_b];
    if (of_a != of_b && of_a != 1 && of_b != 1) return std::nullopt;
    common.push_back(of_a == 1 ? of_b : of_a);
  }
  return common;
}

Strides row_major(const Shape& shape) {
  Strides strides{};
  int64_t stride = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  return strides;
}

Strides broadcast_strides(const Shape& shape, const Shape& target) {
  const Strides own = row_major(shape);
  Strides strides{};
  const int shift = target.rank() - shape.rank();
  for (int i = 0; i < shape.rank(); ++i) strides[i + shift] = shape[i] == 1 ? 0 : own[i];
  return strides;
}

namespace {

template <typename T>
void copy_items(const Shape& sizes, const T* from, const Strides& from_strides, T* to, const Strides& to_strides) {
  const int last = sizes.rank() - 1;
  const int64_t n = last < 0 ? 1 : sizes[last];
  const int64_t step = last < 0 ? 1 : from_strides[last], to_step = last < 0 ? 1 : to_strides[last];
  for_rows(sizes, from_strides, to_strides, [&](int64_t source, int64_t target) {
    const T* a = from + source;
    T* b = to + target;
    if (step == 1 && to_step == 1) {
      std::memcpy(b, a, n * sizeof(T));
    } else if (to_step == 1) {
      for (int64_t i = 0; i < n; ++i) b[i] = a[i * step];
    } else {
      for (int64_t i = 0; i < n; ++i) b[i * to_step] = a[i * step];
    }
  });
}

}  // namespace

void copy_strided(Type type, const Shape& sizes, const void* from, const Strides& from_strides, void* to,
                  const Strides& to_strides) {
  // Dimensions that lie one after the other on both sides are one.
  Shape merged;
  Strides a{}, b{};
  for (int i = 0; i < sizes.rank(); ++i) {
    if (sizes[i] == 0) return;
    if (sizes[i] == 1) continue;
    const int last = merged.rank() - 1;
    if (last >= 0 && a[last] == from_strides[i] * sizes[i] && b[last] == to_strides[i] * sizes[i]) {
      merged[last] *= sizes[i];
      a[last] = from_strides[i], b[last] = to_strides[i];
    } else {
      a[merged.rank()] = from_strides[i], b[merged.rank()] = to_strides[i];
      merged.push_back(sizes[i]);
    }
  }
  for_size(type, [&]<typename T>(std::type_identity<T>) {
    copy_items(merged, static_cast<const T*>(from), a, static_cast<T*>(to), b);
  });
}

void fill_items(Tensor& tensor, const void* value) {
  for_size(tensor.type, [&]<typename T>(std::type_identity<T>) {
    T item;
    std::memcpy(&item, value, sizeof item);
    std::fill_n(static_cast<T*>(tensor.data), tensor.count, item);
  });
}

}  // namespace jaxrank::host
