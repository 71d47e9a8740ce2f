// Reductions over axes, running sums, positions of extremes.

#include <cmath>
#include <limits>
#include <numeric>

#include "../elementwise.h"

namespace jaxrank::host {

namespace {

// What the maximum of nothing is, and the minimum.
template <typename T>
constexpr T lowest() {
  if constexpr (std::is_floating_point_v<T>) return -std::numeric_limits<T>::infinity();
  else return std::numeric_limits<T>::min();
}
template <typename T>
constexpr T highest() {
  if constexpr (std::is_floating_point_v<T>) return std::numeric_limits<T>::infinity();
  else return std::numeric_limits<T>::max();
}

struct Axes {
  std::array<bool, kMaxRank> reduced{};
  Shape kept;       // the result
  int64_t count = 1;  // elements that become one
};

Axes axes_of(const Tensor& values, const Tensor& axes, bool keep_dims) {
  Axes found;
  for (int64_t i = 0; i < axes.count; ++i) {
    const int axis = axis_of(integer_at(axes, i), values.rank());
    check(!found.reduced[axis], "reduction axis ", axis, " is named twice");
    found.reduced[axis] = true;
  }
  Shape reduced;
  for (int i = 0; i < values.rank(); ++i) {
    if (found.reduced[i]) reduced.push_back(values.shape[i]);
    if (!found.reduced[i]) found.kept.push_back(values.shape[i]);
    else if (keep_dims) found.kept.push_back(1);
  }
  found.count = reduced.count();
  return found;
}

// out[kept index] = f(out, value) over all elements in row-major order; `out` holds the start.
template <typename T, typename A, typename F>
void accumulate(const Tensor& values, const Axes& axes, A* out, F f) {
  if (!values.count) return;
  Strides to{};
  int64_t stride = 1;
  for (int i = values.rank() - 1; i >= 0; --i) {
    if (axes.reduced[i]) continue;
    to[i] = stride;
    stride *= values.shape[i];
  }
  const T* from = values.as<T>();
  const int last = values.rank() - 1;
  const int64_t n = last < 0 ? 1 : values.shape[last];
  const bool within = last < 0 || axes.reduced[last];
  for_rows(values.shape, row_major(values.shape), to, [&](int64_t source, int64_t target) {
    const T* row = from + source;
    if (within) {
      A total = out[target];
      for (int64_t i = 0; i < n; ++i) total = f(total, row[i]);
      out[target] = total;
    } else {
      for (int64_t i = 0; i < n; ++i) out[target + i] = f(out[target + i], row[i]);
    }
  });
}

// Sums of floats are made in double and rounded once: closer to every order of addition than any of them.
template <typename T>
using Total = std::conditional_t<std::is_floating_point_v<T>, double, T>;

template <typename T>
void sum_into(Call& call, const Tensor& values, const Axes& axes, T* out) {
  const int64_t count = axes.kept.count();
  Total<T>* totals;
  if constexpr (std::is_same_v<T, Total<T>>) totals = out;
  else totals = call.scratch<Total<T>>(count);
  std::fill_n(totals, count, Total<T>{0});
  accumulate<T>(values, axes, totals, [](Total<T> a, T b) { return wrap_add<Total<T>>(a, b); });
  if constexpr (!std::is_same_v<T, Total<T>>) std::copy_n(totals, count, out);
}

template <void (*Run)(Call&, const Tensor&, const Axes&)>
Kernel reduction(const Attributes& attributes, const Resources&) {
  return [keep = attributes.flag("keep_dims")](Call& call) {
    Run(call, call.in(0), axes_of(call.in(0), call.in(1), keep));
  };
}

void sum(Call& call, const Tensor& values, const Axes& axes) {
  for_number(values.type, [&]<typename T>(std::type_identity<T>) {
    sum_into(call, values, axes, call.make<T>(0, axes.kept));
  });
}

// The mean of nothing is NaN; of integers it is cut towards zero, and their sum wraps.
void mean(Call& call, const Tensor& values, const Axes& axes) {
  for_number(values.type, [&]<typename T>(std::type_identity<T>) {
    T* out = call.make<T>(0, axes.kept);
    sum_into(call, values, axes, out);
    const int64_t count = axes.kept.count();
    if constexpr (std::is_floating_point_v<T>) {
      for (int64_t i = 0; i < count; ++i) out[i] /= static_cast<T>(axes.count);
    } else {
      using Wider = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
      const auto divisor = static_cast<Wider>(std::max<int64_t>(axes.count, 1));
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(static_cast<Wider>(out[i]) / divisor);
    }
  });
}

template <typename F>
void reduce_from(Call& call, const Tensor& values, const Axes& axes, F f, auto start) {
  for_number(values.type, [&]<typename T>(std::type_identity<T> type) {
    T* out = call.make<T>(0, axes.kept);
    std::fill_n(out, axes.kept.count(), start(type));
    accumulate<T>(values, axes, out, f);
  });
}

void prod(Call& call, const Tensor& values, const Axes& axes) {
  reduce_from(call, values, axes, []<typename T>(T a, T b) { return wrap_mul(a, b); },
              []<typename T>(std::type_identity<T>) { return T{1}; });
}

void max(Call& call, const Tensor& values, const Axes& axes) {
  reduce_from(call, values, axes, []<typename T>(T a, T b) { return maximum(a, b); },
              []<typename T>(std::type_identity<T>) { return lowest<T>(); });
}

void min(Call& call, const Tensor& values, const Axes& axes) {
  reduce_from(call, values, axes, []<typename T>(T a, T b) { return minimum(a, b); },
              []<typename T>(std::type_identity<T>) { return highest<T>(); });
}

void all(Call& call, const Tensor& values, const Axes& axes) {
  bool* out = call.make<bool>(0, axes.kept);
  std::fill_n(out, axes.kept.count(), true);
  accumulate<bool>(values, axes, out, [](bool a, bool b) { return a && b; });
}

void any(Call& call, const Tensor& values, const Axes& axes) {
  bool* out = call.make<bool>(0, axes.kept);
  std::fill_n(out, axes.kept.count(), false);
  accumulate<bool>(values, axes, out, [](bool a, bool b) { return a || b; });
}

// A tensor as [outer, size of the axis, inner].
struct Around {
  int64_t outer, size, inner;
};
Around around(const Tensor& x, int axis) {
  return {x.shape.product(0, axis), x.shape[axis], x.shape.product(axis + 1, x.rank())};
}

// Position of the first value that is better than all before it; NaN is passed over.
template <bool kLargest>
Kernel arg(const Attributes& attributes, const Resources&) {
  return [out_type = attributes.type("output_type")](Call& call) {
    const Tensor& values = call.in(0);
    const int axis = axis_of(scalar_integer(call.in(1), "dimension"), values.rank(), "dimension");
    check(values.shape[axis] > 0, "the position of an extreme of no values");
    Shape kept;
    kept.append(values.shape.begin(), values.shape.begin() + axis);
    kept.append(values.shape.begin() + axis + 1, values.shape.end());
    const auto [outer, size, inner] = around(values, axis);
    for_index(out_type, [&]<typename R>(std::type_identity<R>) {
      R* out = call.make<R>(0, kept);
      for_plain(values.type, [&]<typename T>(std::type_identity<T>) {
        const T* x = values.as<T>();
        const auto value = [](T v) {
          if constexpr (std::is_floating_point_v<T>) return v != v ? (kLargest ? lowest<T>() : highest<T>()) : v;
          else return v;
        };
        for (int64_t o = 0; o < outer; ++o) {
          for (int64_t i = 0; i < inner; ++i) {
            const T* column = x + o * size * inner + i;
            int64_t best = 0;
            for (int64_t k = 1; k < size; ++k) {
              const T now = value(column[k * inner]), so_far = value(column[best * inner]);
              if (kLargest ? now > so_far : now < so_far) best = k;
            }
            *out++ = static_cast<R>(best);
          }
        }
      });
    });
  };
}

template <bool kProduct>
Kernel running(const Attributes& attributes, const Resources&) {
  return [exclusive = attributes.flag("exclusive"), reverse = attributes.flag("reverse")](Call& call) {
    const Tensor& x = call.in(0);
    const int axis = axis_of(scalar_integer(call.in(1), "axis"), x.rank());
    const auto [outer, size, inner] = around(x, axis);
    for_number(x.type, [&]<typename T>(std::type_identity<T>) {
      const T* from = x.as<T>();
      T* to = call.make<T>(0, x.shape);
      for (int64_t o = 0; o < outer; ++o) {
        for (int64_t i = 0; i < inner; ++i) {
          T total{kProduct};
          for (int64_t k = 0; k < size; ++k) {
            const int64_t at = (o * size + (reverse ? size - 1 - k : k)) * inner + i;
            if (exclusive) to[at] = total;
            total = kProduct ? wrap_mul(total, from[at]) : wrap_add(total, from[at]);
            if (!exclusive) to[at] = total;
          }
        }
      }
    });
  };
}

// The k largest of the last dimension, largest first; of equal values the first one comes first, and NaN before all.
Kernel top_k_v2(const Attributes& attributes, const Resources&) {
  return [index_type = attributes.type("index_type")](Call& call) {
    const Tensor& values = call.in(0);
    const int64_t k = scalar_integer(call.in(1), "k");
    check(values.rank() >= 1 && 0 <= k && k <= values.shape[values.rank() - 1], "the top ", k, " of ", values.shape);
    const int64_t size = values.shape[values.rank() - 1], rows = values.shape.product(0, values.rank() - 1);
    Shape shape = values.shape;
    shape[values.rank() - 1] = k;
    int64_t* order = call.scratch<int64_t>(size);
    for_number(values.type, [&]<typename T>(std::type_identity<T>) {
      T* best = call.make<T>(0, shape);
      for_index(index_type, [&]<typename R>(std::type_identity<R>) {
        R* places = call.make<R>(1, shape);
        for (int64_t row = 0; row < rows; ++row) {
          const T* x = values.as<T>() + row * size;
          std::iota(order, order + size, 0);
          std::partial_sort(order, order + k, order + size, [&](int64_t a, int64_t b) {
            if constexpr (std::is_floating_point_v<T>) {
              if (x[a] != x[a] || x[b] != x[b]) return (x[a] != x[a]) == (x[b] != x[b]) ? a < b : x[a] != x[a];
            }
            return x[a] != x[b] ? x[a] > x[b] : a < b;
          });
          for (int64_t i = 0; i < k; ++i) {
            *best++ = x[order[i]];
            *places++ = static_cast<R>(order[i]);
          }
        }
      });
    });
  };
}

void in_top_k_v2(Call& call) {
  const Tensor &predictions = call.in(0), &targets = call.in(1);
  const int64_t k = scalar_integer(call.in(2), "k");
  check(predictions.rank() == 2 && targets.rank() == 1 && targets.count == predictions.shape[0],
        "targets of shape ", targets.shape, " for predictions of shape ", predictions.shape);
  const int64_t classes = predictions.shape[1];
  bool* out = call.make<bool>(0, targets.shape);
  for_float(predictions.type, [&]<typename T>(std::type_identity<T>) {
    for (int64_t row = 0; row < targets.count; ++row) {
      const T* x = predictions.as<T>() + row * classes;
      const int64_t target = integer_at(targets, row);
      out[row] = 0 <= target && target < classes && std::isfinite(x[target]) &&
                 std::count_if(x, x + classes, [&](T other) { return other > x[target]; }) < k;
    }
  });
}

}  // namespace

OperatorTable reduction_operators() {
  return {
      {"sum", reduction<sum>},
      {"mean", reduction<mean>},
      {"prod", reduction<prod>},
      {"max", reduction<max>},
      {"min", reduction<min>},
      {"all", reduction<all>},
      {"any", reduction<any>},
      {"arg_max", arg<true>},
      {"arg_min", arg<false>},
      {"cumsum", running<false>},
      {"cumprod", running<true>},
      {"top_k_v2", top_k_v2},
      {"in_top_k_v2", plain<in_top_k_v2>},
  };
}

}  // namespace jaxrank::host
