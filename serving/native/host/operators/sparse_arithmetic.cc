// Arithmetic of sparse tensors.

#include "../elementwise.h"
#include "../sparse.h"

namespace jaxrank::host {

namespace {

Kernel sparse_tensor_dense_mat_mul(const Attributes& attributes, const Resources&) {
  return [adjoint_a = attributes.flag("adjoint_a"), adjoint_b = attributes.flag("adjoint_b")](Call& call) {
    const Sparse a = sparse_of(call, call.in(0), call.in(1), call.in(2));
    const Tensor& b = call.in(3);
    check(a.rank() == 2 && b.rank() == 2, "a product of tensors that are not matrices");
    check_same_type(*a.values, b);
    const int64_t rows = a.shape[adjoint_a], inner = a.shape[!adjoint_a];
    const int64_t columns = b.shape[adjoint_b ? 0 : 1], depth = b.shape[adjoint_b ? 1 : 0];
    check(depth == inner, "a product of inner dimensions ", inner, " and ", depth);
    check_inside(a);
    for_number(b.type, [&]<typename T>(std::type_identity<T>) {
      T* out = call.make<T>(0, {rows, columns});
      std::fill_n(out, rows * columns, T{0});
      const T *weights = a.values->as<T>(), *dense = b.as<T>();
      const int64_t row_step = adjoint_b ? 1 : columns, column_step = adjoint_b ? depth : 1;
      for (int64_t i = 0; i < a.count(); ++i) {
        T* to = out + a.index(i)[adjoint_a] * columns;
        const T* from = dense + a.index(i)[!adjoint_a] * row_step;
        for (int64_t j = 0; j < columns; ++j) to[j] = wrap_add(to[j], wrap_mul(weights[i], from[j * column_step]));
      }
    });
  };
}

// A dense result; where nothing was, 0.
template <bool kMax>
Kernel sparse_reduction(const Attributes& attributes, const Resources&) {
  return [keep_dims = attributes.flag("keep_dims")](Call& call) {
    const Sparse sparse = sparse_of(call, call.in(0), call.in(1), call.in(2));
    const Tensor& axes = call.in(3);
    bool reduced[kMaxRank] = {};
    const Shape whole(sparse.shape);
    for (int64_t i = 0; i < axes.count; ++i) {
      const int axis = axis_of(integer_at(axes, i), whole.rank());
      check(!reduced[axis], "axis ", axis, " is named twice");
      reduced[axis] = true;
    }
    check_inside(sparse);
    Shape shape;
    for (int d = 0; d < whole.rank(); ++d) {
      if (!reduced[d]) shape.push_back(whole[d]);
      else if (keep_dims) shape.push_back(1);
    }
    const int64_t count = shape.count();
    for_number(sparse.values->type, [&]<typename T>(std::type_identity<T>) {
      T* out = call.make<T>(0, shape);
      bool* seen = call.scratch<bool>(count);
      std::fill_n(out, count, T{0});
      std::fill_n(seen, count, false);
      for (int64_t i = 0; i < sparse.count(); ++i) {
        int64_t at = 0;
        for (int d = 0; d < whole.rank(); ++d) {
          if (!reduced[d]) at = at * whole[d] + sparse.index(i)[d];
        }
        const T value = sparse.values->as<T>()[i];
        out[at] = !seen[at] ? value : kMax ? maximum(out[at], value) : wrap_add(out[at], value);
        seen[at] = true;
      }
    });
  };
}

// The sum of two sparse tensors; a sum of two values of magnitude below the threshold is dropped.
void sparse_add(Call& call) {
  const Sparse a = sparse_of(call, call.in(0), call.in(1), call.in(2));
  const Sparse b = sparse_of(call, call.in(3), call.in(4), call.in(5));
  check(std::equal(a.shape.begin(), a.shape.end(), b.shape.begin(), b.shape.end()), "shapes ", Listed{a.shape}, " and ",
        Listed{b.shape}, " to add");
  check_same_type(*a.values, *b.values);
  check_inside(a);
  check_inside(b);
  const int64_t count = a.count() + b.count();
  const auto index_at = [&](int64_t i) { return i < a.count() ? a.index(i) : b.index(i - a.count()); };
  auto* keys = call.scratch<int64_t>(count);
  for (int64_t i = 0; i < count; ++i) keys[i] = flat_position(index_at(i), a.shape);
  const std::span<const int64_t> order = stable_order(call, {keys, static_cast<size_t>(count)});
  auto* kept = call.scratch<int64_t>(count);
  size_t n = 0;
  for_number(a.values->type, [&]<typename T>(std::type_identity<T>) {
    T* totals = call.scratch<T>(count);
    const T threshold = scalar_value<T>(call.in(6), "thresh");
    const auto value_at = [&](int64_t i) { return i < a.count() ? a.values->as<T>()[i] : b.values->as<T>()[i - a.count()]; };
    for (int64_t i = 0; i < count;) {
      int64_t end = i + 1;
      T total = value_at(order[i]);
      for (; end < count && keys[order[end]] == keys[order[i]]; ++end) total = wrap_add(total, value_at(order[end]));
      const T magnitude = total < T{0} ? wrap_sub(T{0}, total) : total;
      totals[n] = total;
      kept[n] = order[i];
      n += end - i == 1 || !(magnitude < threshold);
      i = end;
    }
    int64_t* indices = call.make<int64_t>(0, {static_cast<int64_t>(n), a.rank()});
    for (size_t i = 0; i < n; ++i) indices = std::copy_n(index_at(kept[i]).data(), a.rank(), indices);
    std::copy_n(totals, n, call.make<T>(1, {static_cast<int64_t>(n)}));
  });
  give_vector(call, 2, a.shape);
}

// New values; the dense tensor broadcasts to the sparse one.
template <typename F>
void with_dense(Call& call) {
  const Sparse sparse = sparse_of(call, call.in(0), call.in(1), call.in(2));
  const Tensor& dense = call.in(3);
  check_same_type(*sparse.values, dense);
  check_inside(sparse);
  const Shape shape(sparse.shape);
  shape.count();
  const std::optional<Shape> common = broadcast(dense.shape, shape);
  check(common && *common == shape, "a dense tensor ", dense.shape, " does not broadcast to ", shape);
  const Strides strides = broadcast_strides(dense.shape, shape);
  for_number(dense.type, [&]<typename T>(std::type_identity<T>) {
    T* out = call.make<T>(0, {sparse.count()});
    for (int64_t i = 0; i < sparse.count(); ++i) {
      int64_t at = 0;
      for (int d = 0; d < shape.rank(); ++d) at += sparse.index(i)[d] * strides[d];
      out[i] = F{}(sparse.values->as<T>()[i], dense.as<T>()[at]);
    }
  });
}

struct Add {
  template <typename T>
  T operator()(T a, T b) const { return wrap_add(a, b); }
};
struct Multiply {
  template <typename T>
  T operator()(T a, T b) const { return wrap_mul(a, b); }
};
struct Divide {
  template <typename T>
  T operator()(T a, T b) const {
    check(b != 0, "division of a sparse tensor by zero");
    return truncated_quotient(a, b);
  }
};

}  // namespace

OperatorTable sparse_arithmetic_operators() {
  return {
      {"sparse_tensor_dense_mat_mul", sparse_tensor_dense_mat_mul},
      {"sparse_reduce_sum", sparse_reduction<false>},
      {"sparse_reduce_max", sparse_reduction<true>},
      {"sparse_add", plain<sparse_add>},
      {"sparse_dense_cwise_mul", plain<with_dense<Multiply>>},
      {"sparse_dense_cwise_add", plain<with_dense<Add>>},
      {"sparse_dense_cwise_div", plain<with_dense<Divide>>},
  };
}

}  // namespace jaxrank::host
