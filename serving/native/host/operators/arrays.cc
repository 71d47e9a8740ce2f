// Operators that say what a tensor is, or see it in another shape, and those that make one from a few numbers.

#include <cmath>

#include "../elementwise.h"

namespace jaxrank::host {

namespace {

void identity(Call& call) {
  for (int i = 0; i < call.inputs(); ++i) call.share(i, call.in(i), call.in(i).shape);
}

Kernel ensure_shape(const Attributes& attributes, const Resources&) {
  const Attribute& wanted = attributes["shape"];
  if (wanted.none()) return identity;
  return [sizes = wanted.integers()](Call& call) {
    const Shape& shape = call.in(0).shape;
    bool fits = static_cast<int>(sizes.size()) == shape.rank();
    for (int i = 0; fits && i < shape.rank(); ++i) fits = sizes[i] == -1 || sizes[i] == shape[i];
    check(fits, "a tensor of shape ", shape, " where ", Listed{sizes}, " is expected");
    identity(call);
  };
}

void give_integer(Call& call, int output, Type type, int64_t value) {
  for_index(type, [&]<typename T>(std::type_identity<T>) { *call.make<T>(output, {}) = static_cast<T>(value); });
}

Kernel shape_of(const Attributes& attributes, const Resources&) {
  return [type = attributes.type("out_type")](Call& call) {
    for (int i = 0; i < call.inputs(); ++i) {
      const Shape& shape = call.in(i).shape;
      for_index(type, [&]<typename T>(std::type_identity<T>) {
        std::copy(shape.begin(), shape.end(), call.make<T>(i, {shape.rank()}));
      });
    }
  };
}

Kernel size(const Attributes& attributes, const Resources&) {
  return [type = attributes.type("out_type")](Call& call) { give_integer(call, 0, type, call.in(0).count); };
}

void rank(Call& call) { give_integer(call, 0, Type::kInt32, call.in(0).rank()); }

void reshape(Call& call) {
  const Tensor &tensor = call.in(0), &wanted = call.in(1);
  check(wanted.rank() == 1, "a shape must be a vector, found shape ", wanted.shape);
  Shape sizes = shape_from(wanted);
  int open = -1;
  bool has_zero = false;
  for (int i = 0; i < sizes.rank(); ++i) {
    check(sizes[i] >= -1 && (sizes[i] != -1 || open < 0), sizes, " is not a shape");
    if (sizes[i] == -1) open = i;
    has_zero |= sizes[i] == 0;
  }
  if (open >= 0) {
    // Beside a size of 0, TensorFlow finds the missing size among the dimensions that are not 0.
    Shape known, whole;
    for (const int64_t size : sizes) known.push_back(size == -1 || size == 0 ? 1 : size);
    for (const int64_t size : tensor.shape) whole.push_back(size == 0 && has_zero ? 1 : size);
    const int64_t rest = known.count(), all = whole.count();
    check(all % rest == 0, "reshape of ", tensor.shape, " to ", sizes);
    sizes[open] = all / rest;
  }
  check(sizes.count() == tensor.count, "reshape of a tensor of shape ", tensor.shape, " to ", sizes);
  call.share(0, tensor, sizes);
}

void expand_dims(Call& call) {
  const Shape& shape = call.in(0).shape;
  const int axis = axis_of(scalar_integer(call.in(1), "axis"), shape.rank() + 1);
  Shape expanded;
  expanded.append(shape.begin(), shape.begin() + axis);
  expanded.push_back(1);
  expanded.append(shape.begin() + axis, shape.end());
  call.share(0, call.in(0), expanded);
}

Kernel squeeze(const Attributes& attributes, const Resources&) {
  return [dims = attributes["squeeze_dims"].integers()](Call& call) {
    const Shape& shape = call.in(0).shape;
    bool drop[kMaxRank] = {};
    for (const int64_t dim : dims) {
      const int axis = axis_of(dim, shape.rank());
      check(shape[axis] == 1, "cannot squeeze dimension ", axis, " of shape ", shape);
      drop[axis] = true;
    }
    Shape kept;
    for (int i = 0; i < shape.rank(); ++i) {
      if (!(dims.empty() ? shape[i] == 1 : drop[i])) kept.push_back(shape[i]);
    }
    call.share(0, call.in(0), kept);
  };
}

void fill(Call& call) {
  const Tensor &dims = call.in(0), &value = call.in(1);
  const Shape shape = shape_from(dims);
  for (const int64_t size : shape) check(size >= 0, shape, " is not a shape");
  check(value.count == 1, "value must be one value, it has shape ", value.shape);
  Tensor& out = call.make(0, value.type, shape);
  fill_items(out, value.data);
}

template <typename T>
void integer_range(Call& call) {
  const auto first = static_cast<int64_t>(scalar_value<T>(call.in(0), "a range's start"));
  const auto last = static_cast<int64_t>(scalar_value<T>(call.in(1), "a range's limit"));
  const auto step = static_cast<int64_t>(scalar_value<T>(call.in(2), "a range's delta"));
  check(step != 0, "a range with delta 0");
  check(step > 0 ? first <= last : first >= last, "a range from ", first, " to ", last, " by ", step);
  // Of uint64 values: their difference may be beyond int64.
  const uint64_t span = step > 0 ? static_cast<uint64_t>(last) - first : static_cast<uint64_t>(first) - last;
  const uint64_t stride = step > 0 ? step : uint64_t{0} - step;
  const uint64_t count = span / stride + (span % stride != 0);
  check(count <= (uint64_t{1} << 46), "a range of ", count, " values is too large");
  T* out = call.make<T>(0, {static_cast<int64_t>(count)});
  for (uint64_t i = 0; i < count; ++i) out[i] = static_cast<T>(static_cast<uint64_t>(first) + i * step);
}

template <typename T>
void float_range(Call& call) {
  const T first = scalar_value<T>(call.in(0), "a range's start"), last = scalar_value<T>(call.in(1), "a range's limit");
  const T step = scalar_value<T>(call.in(2), "a range's delta");
  check(step != 0, "a range with delta 0");
  check(step > 0 ? first <= last : first >= last, "a range from ", first, " to ", last, " by ", step);
  const double count = std::ceil(std::abs((static_cast<double>(last) - first) / step));
  check(count <= 1e13, "a range of ", count, " values is too large");
  T* out = call.make<T>(0, {static_cast<int64_t>(count)});
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) out[i] = first + static_cast<T>(i) * step;
}

void range(Call& call) {
  for_number(call.in(0).type, [&]<typename T>(std::type_identity<T>) {
    if constexpr (std::is_floating_point_v<T>) float_range<T>(call);
    else integer_range<T>(call);
  });
}

void lin_space(Call& call) {
  const int64_t count = scalar_integer(call.in(2), "num");
  check(count > 0, "a linear space of ", count, " values");
  for_float(call.in(0).type, [&]<typename T>(std::type_identity<T>) {
    const T first = scalar_value<T>(call.in(0), "start"), last = scalar_value<T>(call.in(1), "stop");
    T* out = call.make<T>(0, {count});
    const T step = count > 1 ? (last - first) / static_cast<T>(count - 1) : T{0};
    for (int64_t i = 0; i < count; ++i) out[i] = first + step * static_cast<T>(i);
    if (count > 1) out[count - 1] = last;
  });
}

void broadcast_args(Call& call) {
  const Shape first = shape_from(call.in(0)), second = shape_from(call.in(1));
  const std::optional<Shape> common = broadcast(first, second);
  check(common.has_value(), "shapes ", first, " and ", second, " do not broadcast");
  for_index(call.in(0).type, [&]<typename T>(std::type_identity<T>) {
    std::copy(common->begin(), common->end(), call.make<T>(0, {common->rank()}));
  });
}

void zeros_like(Call& call) {
  Tensor& out = call.make(0, call.in(0).type, call.in(0).shape);
  std::memset(out.data, 0, out.count * item_size(out.type));  // an empty string is a view of nothing
}

void ones_like(Call& call) {
  Tensor& out = call.make(0, call.in(0).type, call.in(0).shape);
  for_plain(out.type, [&]<typename T>(std::type_identity<T>) { std::fill_n(static_cast<T*>(out.data), out.count, T{1}); });
}

void repeat_rows(Call& call) {
  const Tensor& row = call.in(0);
  check(row.rank() >= 1, "a scalar has no rows to repeat");
  Shape shape = row.shape;
  check(!__builtin_mul_overflow(shape[0], call.candidates(), &shape[0]), "too many rows");
  Tensor& out = call.make(0, row.type, shape);
  const size_t bytes = row.shape.product(1, row.rank()) * item_size(row.type);
  auto* to = static_cast<char*>(out.data);
  for (int64_t i = 0; i < row.shape[0]; ++i) {
    const char* from = static_cast<const char*>(row.data) + i * bytes;
    for (int64_t j = 0; j < call.candidates() && bytes; ++j, to += bytes) std::memcpy(to, from, bytes);
  }
}

// A constant that grows with every candidate beyond the first.
void per_row_constant(Call& call) {
  const Tensor &value = call.in(0), &growth = call.in(1);
  for_number(value.type, [&]<typename T>(std::type_identity<T>) {
    const T more = static_cast<T>(call.candidates() - 1);
    apply_binary<T>(value, growth, value.shape, call.make<T>(0, value.shape),
                    [more](T a, T b) { return wrap_add(a, wrap_mul(b, more)); });
  });
}

}  // namespace

OperatorTable array_operators() {
  return {
      {"identity", plain<identity>},
      {"stop_gradient", plain<identity>},
      {"snapshot", plain<identity>},
      {"prevent_gradient", plain<identity>},
      {"identity_n", plain<identity>},
      {"ensure_shape", ensure_shape},
      {"shape", shape_of},
      {"shape_n", shape_of},
      {"size", size},
      {"rank", plain<rank>},
      {"reshape", plain<reshape>},
      {"expand_dims", plain<expand_dims>},
      {"squeeze", squeeze},
      {"fill", plain<fill>},
      {"range", plain<range>},
      {"lin_space", plain<lin_space>},
      {"broadcast_args", plain<broadcast_args>},
      {"zeros_like", plain<zeros_like>},
      {"ones_like", plain<ones_like>},
      {"repeat_rows", plain<repeat_rows>},
      {"per_row_constant", plain<per_row_constant>},
  };
}

}  // namespace jaxrank::host
