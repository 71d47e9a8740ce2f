// Operators that read at computed places.

#include "../indices.h"
#include "../layout.h"

namespace jaxrank::host {

namespace {

// Copies the slices at the indices, `items` elements each.
template <typename Index>
void copy_slices(const Tensor& params, int64_t offset, const Index* indices, int64_t count, int64_t items, char* to) {
  const size_t item = item_size(params.type);
  const char* from = element(params, offset);
  if (items == 1) {
    for_size(params.type, [&]<typename T>(std::type_identity<T>) {
      const T* source = reinterpret_cast<const T*>(from);
      T* target = reinterpret_cast<T*>(to);
      for (int64_t i = 0; i < count; ++i) target[i] = source[indices[i]];
    });
    return;
  }
  const size_t bytes = items * item;
  if (!bytes) return;
  for (int64_t i = 0; i < count; ++i, to += bytes) std::memcpy(to, from + indices[i] * static_cast<int64_t>(bytes), bytes);
}

// Slices of `params` along an axis; the first `batch_dims` dimensions of both belong together.
void gather_along(Call& call, int axis, int batch_dims) {
  const Tensor &params = call.in(0), &indices = call.in(1);
  Shape shape;
  shape.append(params.shape.begin(), params.shape.begin() + axis);
  shape.append(indices.shape.begin() + batch_dims, indices.shape.end());
  shape.append(params.shape.begin() + axis + 1, params.shape.end());
  for_index(indices.type, [&]<typename I>(std::type_identity<I>) {
    check_ids(indices.values<I>(), params.shape[axis]);
    Tensor& out = call.make(0, params.type, shape);
    if (!out.count) return;
    const int64_t batches = params.shape.product(0, batch_dims), outer = params.shape.product(batch_dims, axis);
    const int64_t inner = params.shape.product(axis + 1, params.rank());
    const int64_t picked = indices.shape.product(batch_dims, indices.rank());
    int64_t to = 0;
    for (int64_t b = 0; b < batches; ++b) {
      for (int64_t o = 0; o < outer; ++o, to += picked * inner) {
        copy_slices(params, (b * outer + o) * params.shape[axis] * inner, indices.as<I>() + b * picked, picked, inner,
                    element(out, to));
      }
    }
  });
}

void gather(Call& call) {
  check(call.in(0).rank() >= 1, "gather from a scalar");
  gather_along(call, 0, 0);
}

Kernel gather_v2(const Attributes& attributes, const Resources&) {
  return [dims = attributes.integer("batch_dims")](Call& call) {
    const Tensor &params = call.in(0), &indices = call.in(1);
    const int axis = axis_of(scalar_integer(call.in(2), "axis"), params.rank());
    const int64_t batch_dims = dims < 0 ? dims + indices.rank() : dims;
    check(0 <= batch_dims && batch_dims <= std::min(axis, indices.rank()), "batch_dims ", batch_dims, " with axis ", axis);
    const bool same = std::equal(indices.shape.begin(), indices.shape.begin() + batch_dims, params.shape.begin());
    check(same, "batches of ", params.shape, " and ", indices.shape);
    gather_along(call, axis, static_cast<int>(batch_dims));
  };
}

Kernel gather_nd(const Attributes& attributes, const Resources&) {
  check_bad_indices_policy(attributes);
  return [](Call& call) {
    const Tensor &params = call.in(0), &indices = call.in(1);
    const Places places = places_of(call, indices, params.shape);
    Shape shape;
    shape.append(indices.shape.begin(), indices.shape.end() - 1);
    shape.append(params.shape.begin() + places.depth, params.shape.end());
    Tensor& out = call.make(0, params.type, shape);
    if (out.count) {
      copy_slices(params, 0, places.at.data(), static_cast<int64_t>(places.at.size()), places.slice, element(out, 0));
    }
  };
}

// For each partition number, the slices of `data` that carry it, in their order.
Kernel dynamic_partition(const Attributes& attributes, const Resources&) {
  return [count = attributes.integer("num_partitions")](Call& call) {
    const Tensor &data = call.in(0), &partitions = call.in(1);
    const int outer = partitions.rank();
    const bool fits = outer <= data.rank() && std::equal(partitions.shape.begin(), partitions.shape.end(), data.shape.begin());
    check(fits && count == call.outputs(), "partitions ", partitions.shape, " of data ", data.shape);
    const std::span<const int64_t> of = as_int64(call, partitions);
    check_ids(of, count, "partition");
    auto* sizes = call.scratch<int64_t>(count);
    std::fill_n(sizes, count, 0);
    for (const int64_t number : of) ++sizes[number];
    auto* places = call.scratch<int64_t>(partitions.count);
    const int64_t items = data.shape.product(outer, data.rank());
    for (int i = 0; i < count; ++i) {
      Shape shape{sizes[i]};
      shape.append(data.shape.begin() + outer, data.shape.end());
      Tensor& out = call.make(i, data.type, shape);
      int64_t n = 0;
      for (int64_t j = 0; j < partitions.count; ++j) {
        if (of[j] == i) places[n++] = j;
      }
      if (out.count) copy_slices(data, 0, places, n, items, element(out, 0));
    }
  };
}

void where(Call& call) {
  const Tensor& condition = call.in(0);
  const int rank = condition.rank();
  for_plain(condition.type, [&]<typename T>(std::type_identity<T>) {
    const T* x = condition.as<T>();
    const int64_t found = std::count_if(x, x + condition.count, [](T v) { return v != T{}; });
    int64_t* out = call.make<int64_t>(0, {found, rank});
    for (int64_t i = 0; i < condition.count; ++i) {
      if (x[i] == T{}) continue;
      int64_t rest = i;
      for (int d = rank - 1; d >= 0; --d) {
        out[d] = rest % condition.shape[d];
        rest /= condition.shape[d];
      }
      out += rank;
    }
  });
}

// A new axis of size `depth` with `on_value` at the index; an index outside of it has only `off_value`.
Kernel one_hot(const Attributes& attributes, const Resources&) {
  return [where = attributes.integer("axis")](Call& call) {
    const Tensor &indices = call.in(0), &on = call.in(2), &off = call.in(3);
    const int64_t depth = scalar_integer(call.in(1), "depth");
    check(depth >= 0, "a one-hot of depth ", depth);
    check(on.count == 1 && off.count == 1, "on_value and off_value must be one value each");
    check(on.type == off.type, "on_value and off_value of different types");
    const int axis = axis_of(where, indices.rank() + 1);
    Shape shape;
    shape.append(indices.shape.begin(), indices.shape.begin() + axis);
    shape.push_back(depth);
    shape.append(indices.shape.begin() + axis, indices.shape.end());
    Tensor& out = call.make(0, on.type, shape);
    fill_items(out, off.data);
    const int64_t inner = indices.shape.product(axis, indices.rank());
    const std::span<const int64_t> at = as_int64(call, indices);
    for_size(on.type, [&]<typename T>(std::type_identity<T>) {
      T hot;
      std::memcpy(&hot, on.data, sizeof hot);
      T* to = static_cast<T*>(out.data);
      for (int64_t i = 0; i < indices.count; ++i) {
        if (0 <= at[i] && at[i] < depth) to[(i / inner * depth + at[i]) * inner + i % inner] = hot;
      }
    });
  };
}

}  // namespace

OperatorTable gather_operators() {
  return {
      {"gather", plain<gather>},
      {"gather_v2", gather_v2},
      {"gather_nd", gather_nd},
      {"dynamic_partition", dynamic_partition},
      {"where", plain<where>},
      {"one_hot", one_hot},
  };
}

}  // namespace jaxrank::host
