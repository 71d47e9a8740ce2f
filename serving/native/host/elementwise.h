// Functions applied element by element to operands that broadcast.
#pragma once

#include "layout.h"

namespace jaxrank::host {

// The common shape of two operands.
inline Shape broadcast_shape(const Tensor& x, const Tensor& y) {
  if (x.shape == y.shape) return x.shape;
  const std::optional<Shape> common = broadcast(x.shape, y.shape);
  check(common.has_value(), "tensors of shapes ", x.shape, " and ", y.shape, " do not broadcast");
  return *common;
}

inline void check_same_type(const Tensor& x, const Tensor& y) {
  check(x.type == y.type, "tensors of ", name_of(x.type), " and ", name_of(y.type), " where one type is expected");
}

// out[i] = f(x[i], y[i]) with x and y seen as `shape`.
template <typename T, typename R, typename F>
void apply_binary(const Tensor& x, const Tensor& y, const Shape& shape, R* out, F f) {
  const T* a = x.as<T>();
  const T* b = y.as<T>();
  const int64_t count = shape.count();
  if (x.count == count && y.count == count) {
    for (int64_t i = 0; i < count; ++i) out[i] = f(a[i], b[i]);
    return;
  }
  Shape sizes = shape;
  Strides sa = broadcast_strides(x.shape, shape), sb = broadcast_strides(y.shape, shape);
  if ((x.count == count || x.count == 1) && (y.count == count || y.count == 1)) {  // one of them is a scalar: one long row
    sizes = {count};
    sa[0] = x.count == count, sb[0] = y.count == count;
  }
  const int last = sizes.rank() - 1;
  const int64_t n = sizes[last], step_a = sa[last], step_b = sb[last];
  for_rows(sizes, sa, sb, [&](int64_t i, int64_t j) {
    for (int64_t k = 0; k < n; ++k) *out++ = f(a[i + k * step_a], b[j + k * step_b]);
  });
}

template <typename T, typename R, typename F>
void apply_unary(const Tensor& x, R* out, F f) {
  const T* a = x.as<T>();
  for (int64_t i = 0; i < x.count; ++i) out[i] = f(a[i]);
}

// Integer arithmetic that wraps, as TensorFlow's does; of floats the plain one.
template <typename T>
using Wide = std::conditional_t<std::is_floating_point_v<T>, T, uint64_t>;
template <typename T>
T wrap_add(T a, T b) {
  return static_cast<T>(static_cast<Wide<T>>(a) + static_cast<Wide<T>>(b));
}
template <typename T>
T wrap_sub(T a, T b) {
  return static_cast<T>(static_cast<Wide<T>>(a) - static_cast<Wide<T>>(b));
}
template <typename T>
T wrap_mul(T a, T b) {
  return static_cast<T>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b));
}

// NaN where either is NaN.
template <typename T>
T maximum(T a, T b) {
  return a >= b || a != a ? a : b;
}
template <typename T>
T minimum(T a, T b) {
  return a <= b || a != a ? a : b;
}

// C++ division: of integers it cuts towards zero, and the one quotient that does not fit wraps. `b` is not 0.
template <typename T>
T truncated_quotient(T a, T b) {
  if constexpr (std::is_signed_v<T> && std::is_integral_v<T>) {
    if (b == -1) return wrap_sub(T{0}, a);
  }
  return a / b;
}

}  // namespace jaxrank::host
