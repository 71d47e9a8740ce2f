// Counts of values, and buckets between boundaries.

#include "../elementwise.h"
#include "../indices.h"

namespace jaxrank::host {

namespace {

int64_t bins_of(const Tensor& size) {
  const int64_t bins = scalar_integer(size, "size");
  check(bins >= 0, "a histogram of ", bins, " values");
  return bins;
}

// Counts (or sums of weights, or 1 if any) of each value below `bins` in each row; `row_of(i)` is the row of value i.
template <typename RowOf>
void count_values(Call& call, const Tensor& values, const Shape& shape, int64_t bins, const Tensor& weights, bool binary,
                  RowOf row_of) {
  const std::span<const int64_t> all = as_int64(call, values);
  for_number(weights.type, [&]<typename W>(std::type_identity<W>) {
    W* out = call.make<W>(0, shape);
    std::fill_n(out, shape.count(), W{0});
    const W* weight = weights.as<W>();
    for (int64_t i = 0; i < values.count; ++i) {
      check(all[i] >= 0, "a histogram of negative values");
      if (all[i] >= bins) continue;
      W& total = out[row_of(i) * bins + all[i]];
      total = binary ? W{1} : wrap_add(total, weights.count ? weight[i] : W{1});
    }
  });
}

void bincount(Call& call) {
  const Tensor &values = call.in(0), &weights = call.in(2);
  check(weights.count == 0 || weights.count == values.count, weights.count, " weights for ", values.count, " values");
  const int64_t bins = bins_of(call.in(1));
  count_values(call, values, {bins}, bins, weights, false, [](int64_t) { return 0; });
}

Kernel dense_bincount(const Attributes& attributes, const Resources&) {
  return [binary = attributes.flag("binary_output")](Call& call) {
    const Tensor &values = call.in(0), &weights = call.in(2);
    check(values.rank() <= 2, "a histogram of a tensor of rank ", values.rank());
    check(weights.count == 0 || weights.shape == values.shape, "weights of another shape than the values");
    const int64_t bins = bins_of(call.in(1));
    if (values.rank() < 2) {
      count_values(call, values, {bins}, bins, weights, binary, [](int64_t) { return 0; });
    } else {
      const int64_t columns = values.shape[1];
      count_values(call, values, {values.shape[0], bins}, bins, weights, binary, [&](int64_t i) { return i / columns; });
    }
  };
}

Kernel sparse_bincount(const Attributes& attributes, const Resources&) {
  return [binary = attributes.flag("binary_output")](Call& call) {
    const Tensor &indices = call.in(0), &values = call.in(1), &dense_shape = call.in(2), &weights = call.in(4);
    check(weights.count == 0 || weights.count == values.count, weights.count, " weights for ", values.count, " values");
    const int64_t bins = bins_of(call.in(3));
    if (dense_shape.count == 1) {
      count_values(call, values, {bins}, bins, weights, binary, [](int64_t) { return 0; });
      return;
    }
    const int64_t rows = integer_at(dense_shape, 0);
    check(indices.rank() == 2 && indices.shape[0] == values.count && indices.shape[1] > 0, values.count,
          " values for indices of shape ", indices.shape);
    const int64_t rank = indices.shape[1];
    for (int64_t i = 0; i < values.count; ++i) {
      const int64_t row = integer_at(indices, i * rank);
      check(0 <= row && row < rows, "a row outside of [0, ", rows, ")");
    }
    count_values(call, values, {rows, bins}, bins, weights, binary, [&](int64_t i) { return integer_at(indices, i * rank); });
  };
}

Kernel ragged_bincount(const Attributes& attributes, const Resources&) {
  return [binary = attributes.flag("binary_output")](Call& call) {
    const Tensor &splits = call.in(0), &values = call.in(1), &weights = call.in(3);
    check(weights.count == 0 || weights.count == values.count, weights.count, " weights for ", values.count, " values");
    const bool covers = splits.count > 0 && integer_at(splits, 0) == 0 && integer_at(splits, splits.count - 1) == values.count;
    check(covers, "splits do not cover the values");
    for (int64_t i = 1; i < splits.count; ++i) {
      check(integer_at(splits, i) >= integer_at(splits, i - 1), "splits that decrease");
    }
    const int64_t bins = bins_of(call.in(2));
    int64_t row = 0;
    count_values(call, values, {splits.count - 1, bins}, bins, weights, binary, [&](int64_t i) {
      while (integer_at(splits, row + 1) <= i) ++row;
      return row;
    });
  };
}

// How many boundaries are at or below the value, of at most a few: a loop that vectorizes beats a search.
constexpr size_t kFewBoundaries = 16;

template <typename T>
int32_t bucket_of(T value, const std::vector<float>& boundaries) {
  if (value != value) return static_cast<int32_t>(boundaries.size());  // NaN is above all
  if (boundaries.size() <= kFewBoundaries) {
    int32_t below = 0;
    for (const float boundary : boundaries) below += static_cast<T>(boundary) <= value;
    return below;
  }
  const auto above = std::upper_bound(boundaries.begin(), boundaries.end(), value,
                                      [](T v, float boundary) { return v < static_cast<T>(boundary); });
  return static_cast<int32_t>(above - boundaries.begin());
}

// TensorFlow compares with float32 boundaries: C++ widens a double, and rounds integers to float32.
Kernel bucketize(const Attributes& attributes, const Resources&) {
  std::vector<float> boundaries;
  for (const Attribute& boundary : attributes["boundaries"].list()) {
    boundaries.push_back(static_cast<float>(boundary.number()));
  }
  return [boundaries = std::move(boundaries)](Call& call) {
    const Tensor& values = call.in(0);
    int32_t* out = call.make<int32_t>(0, values.shape);
    for_number(values.type, [&]<typename T>(std::type_identity<T>) {
      using Compared = std::conditional_t<std::is_same_v<T, double>, double, float>;
      apply_unary<T>(values, out, [&](T v) { return bucket_of(static_cast<Compared>(v), boundaries); });
    });
  };
}

}  // namespace

OperatorTable histogram_operators() {
  return {
      {"bincount", plain<bincount>},
      {"dense_bincount", dense_bincount},
      {"sparse_bincount", sparse_bincount},
      {"ragged_bincount", ragged_bincount},
      {"bucketize", bucketize},
  };
}

}  // namespace jaxrank::host
