// Operators that write at computed places.

#include "../elementwise.h"
#include "../indices.h"

namespace jaxrank::host {

namespace {

enum class Update { kAdd, kSub, kMax, kMin };

template <Update kUpdate, typename T>
T updated(T old, T update) {
  if constexpr (std::is_same_v<T, bool>) {
    check(kUpdate != Update::kSub, "a difference of bools");
    return kUpdate == Update::kMin ? old && update : old || update;
  } else if constexpr (kUpdate == Update::kAdd) return wrap_add(old, update);
  else if constexpr (kUpdate == Update::kSub) return wrap_sub(old, update);
  else if constexpr (kUpdate == Update::kMax) return maximum(old, update);
  else return minimum(old, update);
}

Places checked_places(Call& call, const Tensor& indices, const Tensor& updates, const Shape& shape) {
  const Places places = places_of(call, indices, shape);
  Shape expected;
  expected.append(indices.shape.begin(), indices.shape.end() - 1);
  expected.append(shape.begin() + places.depth, shape.end());
  check(updates.shape == expected, "updates of shape ", updates.shape, ", expected ", expected);
  return places;
}

template <Update kUpdate>
void combine(Tensor& out, const Places& places, const Tensor& updates) {
  for_plain(out.type, [&]<typename T>(std::type_identity<T>) {
    T* to = static_cast<T*>(out.data);
    const T* from = updates.as<T>();
    for (const int64_t at : places.at) {
      T* slice = to + at * places.slice;
      for (int64_t i = 0; i < places.slice; ++i) slice[i] = updated<kUpdate>(slice[i], *from++);
    }
  });
}

void add_strings(Call& call, Tensor& out, const Places& places, const Tensor& updates) {
  Bytes* to = static_cast<Bytes*>(out.data);
  const Bytes* from = updates.as<Bytes>();
  for (const int64_t at : places.at) {
    for (int64_t i = 0; i < places.slice; ++i, ++from) {
      Bytes& total = to[at * places.slice + i];
      char* text = call.scratch<char>(static_cast<int64_t>(total.size() + from->size()));
      std::copy(from->begin(), from->end(), std::copy(total.begin(), total.end(), text));
      total = Bytes(text, total.size() + from->size());
    }
  }
}

// Zeros of the shape plus the updates; repeated ones add up.
Kernel scatter_nd(const Attributes& attributes, const Resources&) {
  check_bad_indices_policy(attributes);
  return [](Call& call) {
    const Tensor &indices = call.in(0), &updates = call.in(1);
    const Shape shape = shape_from(call.in(2));
    const Places places = checked_places(call, indices, updates, shape);
    Tensor& out = call.make(0, updates.type, shape);
    std::memset(out.data, 0, out.count * item_size(out.type));
    if (out.type == Type::kString) add_strings(call, out, places, updates);
    else combine<Update::kAdd>(out, places, updates);
  };
}

Tensor& copy_of(Call& call, const Tensor& tensor) {
  Tensor& out = call.make(0, tensor.type, tensor.shape);
  if (out.count) std::memcpy(out.data, tensor.data, out.count * item_size(out.type));
  return out;
}

template <Update kUpdate>
Kernel tensor_scatter(const Attributes& attributes, const Resources&) {
  check_bad_indices_policy(attributes);
  return [](Call& call) {
    const Places places = checked_places(call, call.in(1), call.in(2), call.in(0).shape);
    combine<kUpdate>(copy_of(call, call.in(0)), places, call.in(2));
  };
}

// Of repeated places the last update stays.
void overwrite(Tensor& out, std::span<const int64_t> at, int64_t slice, const Tensor& rows) {
  const size_t bytes = slice * item_size(out.type);
  if (!bytes) return;
  for (size_t i = 0; i < at.size(); ++i) {
    std::memcpy(static_cast<char*>(out.data) + at[i] * bytes, static_cast<const char*>(rows.data) + i * bytes, bytes);
  }
}

Kernel tensor_scatter_update(const Attributes& attributes, const Resources&) {
  check_bad_indices_policy(attributes);
  return [](Call& call) {
    const Places places = checked_places(call, call.in(1), call.in(2), call.in(0).shape);
    check_same_type(call.in(0), call.in(2));
    overwrite(copy_of(call, call.in(0)), places.at, places.slice, call.in(2));
  };
}

// Slices of the data lists put where the index lists say; rows that no index names are zero.
void dynamic_stitch(Call& call) {
  const int half = call.inputs() / 2;
  check(half > 0 && call.inputs() == 2 * half, "a stitch of nothing");
  const Tensor& first = call.in(half);
  const int outer = call.in(0).rank();
  check(first.rank() >= outer, "data of shape ", first.shape, " for indices of shape ", call.in(0).shape);
  int64_t rows = 0;
  for (int i = 0; i < half; ++i) {
    const Tensor &indices = call.in(i), &data = call.in(half + i);
    Shape expected = indices.shape;
    expected.append(first.shape.begin() + outer, first.shape.end());
    check(data.shape == expected, "data of shape ", data.shape, ", expected ", expected);
    check_same_type(data, first);
    for (int64_t j = 0; j < indices.count; ++j) {
      const int64_t at = integer_at(indices, j);
      check(at >= 0, "a negative index to stitch");
      rows = std::max(rows, at + 1);
    }
  }
  Shape shape{rows};
  shape.append(first.shape.begin() + outer, first.shape.end());
  Tensor& out = call.make(0, first.type, shape);
  std::memset(out.data, 0, out.count * item_size(out.type));
  const int64_t slice = shape.product(1, shape.rank());
  for (int i = 0; i < half; ++i) overwrite(out, as_int64(call, call.in(i)), slice, call.in(half + i));
}

void invert_permutation(Call& call) {
  const Tensor& x = call.in(0);
  check(x.rank() == 1, "a permutation is a vector, found shape ", x.shape);
  for_index(x.type, [&]<typename T>(std::type_identity<T>) {
    check_ids(x.values<T>(), x.count);
    T* out = call.make<T>(0, x.shape);
    std::fill_n(out, x.count, static_cast<T>(-1));
    T place = 0;
    for (const T at : x.values<T>()) {
      check(out[at] == static_cast<T>(-1), "a permutation names one place twice");
      out[at] = place++;
    }
  });
}

}  // namespace

OperatorTable scatter_operators() {
  return {
      {"scatter_nd", scatter_nd},
      {"tensor_scatter_update", tensor_scatter_update},
      {"tensor_scatter_add", tensor_scatter<Update::kAdd>},
      {"tensor_scatter_sub", tensor_scatter<Update::kSub>},
      {"tensor_scatter_max", tensor_scatter<Update::kMax>},
      {"tensor_scatter_min", tensor_scatter<Update::kMin>},
      {"dynamic_stitch", plain<dynamic_stitch>},
      {"parallel_dynamic_stitch", plain<dynamic_stitch>},
      {"invert_permutation", plain<invert_permutation>},
  };
}

}  // namespace jaxrank::host
