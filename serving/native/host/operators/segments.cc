// Segment reductions: rows of a tensor combined by a segment number, sorted or not, with or without a gather before.
//
// Float sums run row after row, as TensorFlow's do up to the rounding of its blocks of eight.

#include <cmath>
#include <limits>

#include "../elementwise.h"
#include "../indices.h"

namespace jaxrank::host {

namespace {

enum class Reduce { kSum, kProd, kMax, kMin };
enum class Divide { kNothing, kSize, kRoot };

template <Reduce kReduce, typename T>
T reduced(T a, T b) {
  if constexpr (kReduce == Reduce::kSum) return wrap_add(a, b);
  else if constexpr (kReduce == Reduce::kProd) return wrap_mul(a, b);
  else if constexpr (kReduce == Reduce::kMax) return maximum(a, b);
  else return minimum(a, b);
}

// out[segment of i] = f(out, row i) for every row, in order; `row_at(i)` and `segment_at(i)` are row numbers, a negative
// segment is dropped. The first row of a segment is copied.
template <Reduce kReduce, typename T, typename RowAt, typename SegmentAt>
void reduce_rows(Call& call, const T* data, int64_t items, int64_t count, RowAt row_at, SegmentAt segment_at, T* out,
                 int64_t segments) {
  bool* seen = call.scratch<bool>(segments);
  std::fill_n(seen, segments, false);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t segment = segment_at(i);
    if (segment < 0) continue;
    const T* from = data + row_at(i) * items;
    T* to = out + segment * items;
    if (!seen[segment]) std::copy_n(from, items, to);
    else
      for (int64_t j = 0; j < items; ++j) to[j] = reduced<kReduce>(to[j], from[j]);
    seen[segment] = true;
  }
}

// Sums divided by the sizes of their segments, or by the roots of these. Integers are cut towards zero.
template <typename T>
void divide(Call& call, T* out, int64_t items, std::span<const int64_t> ids, int64_t segments, Divide by) {
  if (by == Divide::kNothing) return;
  auto* sizes = call.scratch<int64_t>(segments);
  std::fill_n(sizes, segments, 0);
  for (const int64_t id : ids) ++sizes[id];
  for (int64_t i = 0; i < segments; ++i) {
    T divisor = static_cast<T>(std::max<int64_t>(sizes[i], 1));
    if (by == Divide::kRoot) divisor = static_cast<T>(std::sqrt(divisor));
    for (int64_t j = 0; j < items; ++j) out[i * items + j] = truncated_quotient(out[i * items + j], divisor);
  }
}

// Checks sorted segment ids; the number of segments.
int64_t sorted_segments(std::span<const int64_t> ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    check(ids[i] >= (i ? ids[i - 1] : 0), "segment ids are not increasing from 0 on");
  }
  if (ids.empty()) return 0;
  check(ids.back() < INT64_MAX, "the segment id ", ids.back(), " is too large");
  return ids.back() + 1;
}

Shape with_rows(const Shape& shape, int64_t rows, int from = 1) {
  Shape found{rows};
  found.append(shape.begin() + from, shape.end());
  return found;
}

template <Reduce kReduce, Divide kDivide>
void sorted(Call& call) {
  const Tensor &data = call.in(0), &segment_ids = call.in(1);
  check(segment_ids.rank() == 1, "segment ids of shape ", segment_ids.shape);
  check(data.rank() >= 1 && data.shape[0] == segment_ids.count, segment_ids.count, " segment ids for ", data.shape);
  const std::span<const int64_t> ids = as_int64(call, segment_ids);
  const int64_t segments = sorted_segments(ids), items = data.shape.product(1, data.rank());
  const Shape shape = with_rows(data.shape, segments);
  for_number(data.type, [&]<typename T>(std::type_identity<T>) {
    T* out = call.make<T>(0, shape);
    std::fill_n(out, shape.count(), T{kReduce == Reduce::kProd});
    reduce_rows<kReduce>(call, data.as<T>(), items, segment_ids.count, [](int64_t i) { return i; },
                         [&](int64_t i) { return ids[i]; }, out, segments);
    divide(call, out, items, ids, segments, kDivide);
  });
}

template <Reduce kReduce>
void unsorted(Call& call) {
  const Tensor &data = call.in(0), &segment_ids = call.in(1);
  const int outer = segment_ids.rank();
  const bool fits = outer <= data.rank() && std::equal(segment_ids.shape.begin(), segment_ids.shape.end(), data.shape.begin());
  check(fits, "segment ids of shape ", segment_ids.shape, " for ", data.shape);
  const int64_t segments = scalar_integer(call.in(2), "num_segments");
  check(segments >= 0, segments, " segments");
  const std::span<const int64_t> ids = as_int64(call, segment_ids);
  for (const int64_t id : ids) check(id < segments, "segment id ", id, " is not in [0, ", segments, ")");
  const int64_t items = data.shape.product(outer, data.rank());
  const Shape shape = with_rows(data.shape, segments, outer);
  for_number(data.type, [&]<typename T>(std::type_identity<T>) {
    using Limits = std::numeric_limits<T>;
    constexpr T kEmpty = kReduce == Reduce::kMax ? Limits::lowest() : kReduce == Reduce::kMin ? Limits::max()
                                                                                             : T{kReduce == Reduce::kProd};
    T* out = call.make<T>(0, shape);
    std::fill_n(out, shape.count(), kEmpty);
    reduce_rows<kReduce>(call, data.as<T>(), items, segment_ids.count, [](int64_t i) { return i; },
                         [&](int64_t i) { return ids[i]; }, out, segments);
  });
}

// Strings of each segment joined in their order. No separator follows what is still empty.
Kernel unsorted_segment_join(const Attributes& attributes, const Resources&) {
  return [separator = attributes.text("separator")](Call& call) {
    const Tensor &inputs = call.in(0), &segment_ids = call.in(1);
    const int outer = segment_ids.rank();
    const bool fits = 0 < outer && outer <= inputs.rank() &&
                      std::equal(segment_ids.shape.begin(), segment_ids.shape.end(), inputs.shape.begin());
    check(fits, "segment ids of shape ", segment_ids.shape, " for ", inputs.shape);
    const int64_t segments = scalar_integer(call.in(2), "num_segments");
    check(segments >= 0, segments, " segments");
    const std::span<const int64_t> ids = as_int64(call, segment_ids);
    check_ids(ids, segments, "segment id");
    const int64_t items = inputs.shape.product(outer, inputs.rank());
    const Shape shape = with_rows(inputs.shape, segments, outer);
    Bytes* out = call.make<Bytes>(0, shape);
    const Bytes* texts = inputs.as<Bytes>();
    // First how long each one is, then the text: no byte is copied twice.
    const int64_t count = shape.count();
    auto* sizes = call.scratch<int64_t>(count);
    std::fill_n(sizes, count, 0);
    const auto each = [&](auto f) {
      for (size_t i = 0; i < ids.size(); ++i) {
        for (int64_t j = 0; j < items; ++j) f(ids[i] * items + j, texts[i * items + j]);
      }
    };
    each([&](int64_t at, Bytes text) { sizes[at] += (sizes[at] ? separator.size() : 0) + text.size(); });
    auto** ends = call.scratch<char*>(count);
    for (int64_t i = 0; i < count; ++i) {
      ends[i] = call.scratch<char>(sizes[i]);
      out[i] = {ends[i], static_cast<size_t>(sizes[i])};
    }
    each([&](int64_t at, Bytes text) {
      if (ends[at] != out[at].data()) ends[at] = std::copy(separator.begin(), separator.end(), ends[at]);
      ends[at] = std::copy(text.begin(), text.end(), ends[at]);
    });
  };
}

template <Divide kDivide, bool kCounted>
void sparse(Call& call) {
  const Tensor &data = call.in(0), &indices = call.in(1), &segment_ids = call.in(2);
  int64_t wanted = 0;
  if (kCounted) {
    wanted = scalar_integer(call.in(3), "num_segments");
    check(wanted >= 0, wanted, " segments");
  }
  check(data.rank() >= 1, "segments of a scalar");
  check(indices.shape == segment_ids.shape && segment_ids.rank() == 1, indices.count, " indices, ", segment_ids.count,
        " segment ids");
  const std::span<const int64_t> ids = as_int64(call, segment_ids), rows = as_int64(call, indices);
  int64_t segments = sorted_segments(ids);
  if (kCounted) {
    check(wanted >= segments, "segment id ", segments - 1, " is not below num_segments ", wanted);
    segments = wanted;
  }
  check_ids(rows, data.shape[0]);
  const int64_t items = data.shape.product(1, data.rank());
  const Shape shape = with_rows(data.shape, segments);
  for_number(data.type, [&]<typename T>(std::type_identity<T>) {
    T* out = call.make<T>(0, shape);
    std::fill_n(out, shape.count(), T{0});
    reduce_rows<Reduce::kSum>(call, data.as<T>(), items, indices.count, [&](int64_t i) { return rows[i]; },
                              [&](int64_t i) { return ids[i]; }, out, segments);
    divide(call, out, items, ids, segments, kDivide);
  });
}

}  // namespace

OperatorTable segment_operators() {
  constexpr auto kNothing = Divide::kNothing, kSize = Divide::kSize, kRoot = Divide::kRoot;
  return {
      {"segment_sum", plain<sorted<Reduce::kSum, kNothing>>},
      {"segment_mean", plain<sorted<Reduce::kSum, kSize>>},
      {"segment_max", plain<sorted<Reduce::kMax, kNothing>>},
      {"segment_min", plain<sorted<Reduce::kMin, kNothing>>},
      {"segment_prod", plain<sorted<Reduce::kProd, kNothing>>},
      {"unsorted_segment_sum", plain<unsorted<Reduce::kSum>>},
      {"unsorted_segment_prod", plain<unsorted<Reduce::kProd>>},
      {"unsorted_segment_max", plain<unsorted<Reduce::kMax>>},
      {"unsorted_segment_min", plain<unsorted<Reduce::kMin>>},
      {"unsorted_segment_join", unsorted_segment_join},
      {"sparse_segment_sum", plain<sparse<kNothing, false>>},
      {"sparse_segment_sum_with_num_segments", plain<sparse<kNothing, true>>},
      {"sparse_segment_mean", plain<sparse<kSize, false>>},
      {"sparse_segment_mean_with_num_segments", plain<sparse<kSize, true>>},
      {"sparse_segment_sqrt_n", plain<sparse<kRoot, false>>},
      {"sparse_segment_sqrt_n_with_num_segments", plain<sparse<kRoot, true>>},
  };
}

}  // namespace jaxrank::host
