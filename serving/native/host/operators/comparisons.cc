// Comparison, logic, and the choices made by them.

#include <cmath>

#include "../elementwise.h"

namespace jaxrank::host {

namespace {

template <typename F>
void compare(Call& call, F f) {
  const Tensor &x = call.in(0), &y = call.in(1);
  check_same_type(x, y);
  const Shape shape = broadcast_shape(x, y);
  for_any(x.type, [&]<typename T>(std::type_identity<T>) { apply_binary<T>(x, y, shape, call.make<bool>(0, shape), f); });
}

template <typename F>
MakeKernel comparison(F) {
  return [](const Attributes&, const Resources&) -> Kernel { return [](Call& call) { compare(call, F{}); }; };
}

// `incompatible_shape_error=False`: tensors that do not broadcast are different.
template <typename F, bool kDifferent>
Kernel equality(const Attributes& attributes, const Resources&) {
  return [strict = attributes.flag("incompatible_shape_error")](Call& call) {
    if (!strict && !broadcast(call.in(0).shape, call.in(1).shape)) *call.make<bool>(0, {}) = kDifferent;
    else compare(call, F{});
  };
}

Kernel approximate_equal(const Attributes& attributes, const Resources&) {
  return [tolerance = attributes["tolerance"].number()](Call& call) {
    const Tensor &x = call.in(0), &y = call.in(1);
    check(x.shape == y.shape, "x and y must be of the same shape, found ", x.shape, " and ", y.shape);
    for_number(x.type, [&]<typename T>(std::type_identity<T>) {
      apply_binary<T>(x, y, x.shape, call.make<bool>(0, x.shape), [limit = static_cast<T>(tolerance)](T a, T b) {
        const T difference = wrap_sub(a, b);
        return (difference < T{0} ? wrap_sub(T{0}, difference) : difference) < limit;
      });
    });
  };
}

template <typename F>
MakeKernel logic(F) {
  return [](const Attributes&, const Resources&) -> Kernel {
    return [](Call& call) {
      const Shape shape = broadcast_shape(call.in(0), call.in(1));
      apply_binary<bool>(call.in(0), call.in(1), shape, call.make<bool>(0, shape), F{});
    };
  };
}

void logical_not(Call& call) {
  apply_unary<bool>(call.in(0), call.make<bool>(0, call.in(0).shape), [](bool x) { return !x; });
}

// out = condition ? t : e, of values that are only moved.
void choose(Call& call, const Tensor& condition, const Strides& condition_strides, const Tensor& t, const Tensor& e,
            const Shape& shape) {
  check_same_type(t, e);
  const bool* chosen = condition.as<bool>();
  Tensor& out = call.make(0, t.type, shape);
  const Strides st = broadcast_strides(t.shape, shape), se = broadcast_strides(e.shape, shape);
  for_size(t.type, [&]<typename T>(std::type_identity<T>) {
    const T *a = static_cast<const T*>(t.data), *b = static_cast<const T*>(e.data);
    T* to = static_cast<T*>(out.data);
    if (condition.count == out.count && t.count == out.count && e.count == out.count) {
      for (int64_t i = 0; i < out.count; ++i) to[i] = chosen[i] ? a[i] : b[i];
      return;
    }
    const int last = shape.rank() - 1;
    const int64_t n = last < 0 ? 1 : shape[last];
    const int64_t ca = last < 0 ? 0 : condition_strides[last], ta = last < 0 ? 0 : st[last], ea = last < 0 ? 0 : se[last];
    std::array<int64_t, kMaxRank> at{};
    for (int64_t done = 0; done < out.count; done += n) {
      int64_t c = 0, x = 0, y = 0;
      for (int d = 0; d < last; ++d) c += at[d] * condition_strides[d], x += at[d] * st[d], y += at[d] * se[d];
      for (int64_t i = 0; i < n; ++i) *to++ = chosen[c + i * ca] ? a[x + i * ta] : b[y + i * ea];
      for (int d = last - 1; d >= 0 && ++at[d] == shape[d]; --d) at[d] = 0;
    }
  });
}

// The condition is a scalar, has x's shape, or is a vector of rows.
void select(Call& call) {
  const Tensor &condition = call.in(0), &x = call.in(1), &y = call.in(2);
  check(x.shape == y.shape, "then ", x.shape, " and else ", y.shape, " must be of the same shape");
  Strides strides{};
  if (condition.rank() == 1 && x.rank() > 1) {
    check(condition.count == x.shape[0], condition.count, " conditions for ", x.shape[0], " rows");
    strides[0] = 1;
  } else {
    check(condition.rank() == 0 || condition.shape == x.shape, "the condition's shape ", condition.shape, " is not ", x.shape);
    if (condition.rank()) strides = row_major(condition.shape);
  }
  choose(call, condition, strides, x, y, x.shape);
}

void select_v2(Call& call) {
  const Tensor &condition = call.in(0), &t = call.in(1), &e = call.in(2);
  const std::optional<Shape> values = broadcast(t.shape, e.shape);
  const std::optional<Shape> shape = values ? broadcast(*values, condition.shape) : std::nullopt;
  check(shape.has_value(), "tensors of shapes ", condition.shape, " and ", t.shape, " and ", e.shape, " do not broadcast");
  choose(call, condition, broadcast_strides(condition.shape, *shape), t, e, *shape);
}

// max(min(t, high), low); the limits are scalars or of t's shape.
void clip_by_value(Call& call) {
  const Tensor &t = call.in(0), &low = call.in(1), &high = call.in(2);
  for (const Tensor* limit : {&low, &high}) {
    check(limit->count == 1 || limit->shape == t.shape, "a clip limit of shape ", limit->shape, " for a tensor of shape ",
          t.shape);
    check_same_type(*limit, t);
  }
  for_number(t.type, [&]<typename T>(std::type_identity<T>) {
    T* out = call.make<T>(0, t.shape);
    const T *x = t.as<T>(), *a = low.as<T>(), *b = high.as<T>();
    const int64_t step_a = low.shape == t.shape, step_b = high.shape == t.shape;
    for (int64_t i = 0; i < t.count; ++i) out[i] = maximum(minimum(x[i], b[i * step_b]), a[i * step_a]);
  });
}

}  // namespace

OperatorTable comparison_operators() {
  constexpr auto equal = [](const auto& a, const auto& b) { return a == b; };
  constexpr auto different = [](const auto& a, const auto& b) { return a != b; };
  return {
      {"equal", equality<decltype(equal), false>},
      {"not_equal", equality<decltype(different), true>},
      {"less", comparison([](const auto& a, const auto& b) { return a < b; })},
      {"less_equal", comparison([](const auto& a, const auto& b) { return a <= b; })},
      {"greater", comparison([](const auto& a, const auto& b) { return a > b; })},
      {"greater_equal", comparison([](const auto& a, const auto& b) { return a >= b; })},
      {"approximate_equal", approximate_equal},
      {"logical_and", logic([](bool a, bool b) { return a && b; })},
      {"logical_or", logic([](bool a, bool b) { return a || b; })},
      {"logical_not", plain<logical_not>},
      {"select", plain<select>},
      {"select_v2", plain<select_v2>},
      {"clip_by_value", plain<clip_by_value>},
  };
}

}  // namespace jaxrank::host
