// Ragged tensors: flat values and row partitions (`row_splits`, `value_rowids`, or the number of rows).

#include <cmath>

#include "../sparse.h"

namespace jaxrank::host {

namespace {

// Refuses splits that do not rise from 0 to `size`.
std::span<const int64_t> splits_of(Call& call, const Tensor& splits, int64_t size) {
  check(splits.rank() == 1 && splits.count > 0, "row splits must be a vector of at least one value");
  const std::span<const int64_t> found = as_int64(call, splits);
  check(found.front() == 0 && found.back() == size, "row splits do not run from 0 to ", size);
  for (size_t i = 1; i < found.size(); ++i) check(found[i] >= found[i - 1], "row splits decrease");
  return found;
}

// Row and column of each value, and the width of the widest row.
struct Partition {
  std::span<const int64_t> row, column;
  int64_t width = 0;
};

Partition partition_by_splits(Call& call, const Tensor& tensor, int64_t rows) {
  check(tensor.rank() == 1 && tensor.count > 0, "row splits must be a vector of at least one value");
  check(tensor.count - 1 <= rows, tensor.count - 1, " rows in a partition of ", rows);
  const std::span<const int64_t> splits = as_int64(call, tensor);
  check(splits[0] == 0, "row splits do not rise from 0");
  for (size_t i = 1; i < splits.size(); ++i) check(splits[i] >= splits[i - 1], "row splits do not rise from 0");
  const int64_t count = splits.back();
  auto *row = call.scratch<int64_t>(count), *column = call.scratch<int64_t>(count);
  int64_t width = 0;
  for (size_t i = 0; i + 1 < splits.size(); ++i) {
    width = std::max(width, splits[i + 1] - splits[i]);
    for (int64_t j = splits[i]; j < splits[i + 1]; ++j) row[j] = static_cast<int64_t>(i), column[j] = j - splits[i];
  }
  return {{row, static_cast<size_t>(count)}, {column, static_cast<size_t>(count)}, width};
}

Partition partition_by_ids(Call& call, const Tensor& tensor, int64_t rows) {
  const std::span<const int64_t> ids = as_int64(call, tensor);
  check_ids(ids, rows, "row id");
  auto* column = call.scratch<int64_t>(tensor.count);
  int64_t width = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    column[i] = i && ids[i] == ids[i - 1] ? column[i - 1] + 1 : 0;
    width = std::max(width, column[i] + 1);
  }
  return {ids, {column, ids.size()}, width};
}

// A dense tensor padded with a default, cut or padded to the sizes in `shape` that are not -1.
Kernel ragged_tensor_to_tensor(const Attributes& attributes, const Resources&) {
  std::vector<std::string> kinds = attributes["row_partition_types"].texts();
  if (kinds.empty() || (kinds[0] != "FIRST_DIM_SIZE" && kinds[0] != "ROW_SPLITS")) {
    return [kind = kinds.empty() ? std::string() : kinds[0]](Call&) {
      refuse("row partition type ", kind, " cannot be the first");
    };
  }
  const bool sized = kinds[0] == "FIRST_DIM_SIZE";
  if (sized) kinds.erase(kinds.begin());
  return [kinds, sized](Call& call) {
    const Tensor &wanted = call.in(0), &values = call.in(1), &filling = call.in(2);
    const int first = sized ? 4 : 3, depth = static_cast<int>(kinds.size());
    check(call.inputs() == first + depth, call.inputs() - first, " row partitions, ", depth, " expected");
    const int64_t rows = sized ? scalar_integer(call.in(3), "the number of rows") : call.in(3).count - 1;
    check(depth < kMaxRank && values.rank() >= 1, "a ragged tensor of ", depth, " partitions");
    Partition parts[kMaxRank];
    int64_t size = rows;
    for (int i = 0; i < depth; ++i) {
      if (kinds[i] == "ROW_SPLITS") parts[i] = partition_by_splits(call, call.in(first + i), size);
      else if (kinds[i] == "VALUE_ROWIDS") parts[i] = partition_by_ids(call, call.in(first + i), size);
      else refuse("row partition type ", kinds[i], " is not supported here");
      size = static_cast<int64_t>(parts[i].row.size());
    }
    Shape sizes{rows}, inner;
    for (int i = 0; i < depth; ++i) sizes.push_back(parts[i].width);
    inner.append(values.shape.begin() + 1, values.shape.end());
    sizes.append(inner.begin(), inner.end());
    if (wanted.rank()) {
      check(wanted.count == sizes.rank(), "a shape of ", wanted.count, " sizes for a ragged tensor of rank ", sizes.rank());
      for (int i = 0; i < sizes.rank(); ++i) {
        const int64_t given = integer_at(wanted, i);
        if (given == -1) continue;
        check(i <= depth || given == sizes[i], "inner size ", given, ", the values' is ", sizes[i]);
        sizes[i] = given;
      }
    }
    check(values.shape[0] >= size, values.shape[0], " values, the partitions have ", size);
    // Where each value goes, or -1 beyond the sizes: level by level, from the rows to the values.
    check(rows >= 0, rows, " rows");
    auto* target = call.scratch<int64_t>(rows);
    for (int64_t i = 0; i < rows; ++i) target[i] = i < sizes[0] ? i : -1;
    for (int level = 0; level < depth; ++level) {
      const auto count = static_cast<int64_t>(parts[level].row.size());
      const int64_t width = sizes[level + 1];
      auto* next = call.scratch<int64_t>(count);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t above = target[parts[level].row[i]], column = parts[level].column[i];
        next[i] = above >= 0 && column < width ? above * width + column : -1;
      }
      target = next;
    }
    check(filling.type == values.type, "default_value of another dtype");
    const std::optional<Shape> fits = broadcast(filling.shape, inner);
    check(fits && *fits == inner, "default_value of shape ", filling.shape, " does not broadcast to ", inner);
    Tensor& out = call.make(0, values.type, sizes);
    const int64_t items = inner.count();
    if (!out.count) return;
    Shape flat{out.count / items};
    flat.append(inner.begin(), inner.end());
    copy_strided(out.type, flat, filling.data, broadcast_strides(filling.shape, flat), out.data, row_major(flat));
    const size_t bytes = items * item_size(values.type);
    for (int64_t i = 0; i < size; ++i) {
      if (target[i] >= 0) std::memcpy(element(out, target[i] * items), element(values, i * items), bytes);
    }
  };
}

// Indices, values and dense shape of the ragged tensor `(*nested_splits, dense_values)`.
void ragged_tensor_to_sparse(Call& call) {
  const int levels = call.inputs() - 1;
  const Tensor& values = call.in(levels);
  check(levels > 0 && values.rank() > 0, "a ragged tensor has row splits and values");
  check(levels + values.rank() <= kMaxRank, "a tensor of more than ", kMaxRank, " dimensions");
  Shape shape{call.in(0).count - 1};
  std::span<const int64_t> splits[kMaxRank];
  for (int level = 0; level < levels; ++level) {
    const int64_t inner = level + 1 < levels ? call.in(level + 1).count - 1 : values.shape[0];
    splits[level] = splits_of(call, call.in(level), inner);
    int64_t width = 0;
    for (size_t i = 1; i < splits[level].size(); ++i) width = std::max(width, splits[level][i] - splits[level][i - 1]);
    shape.push_back(width);
  }
  shape.append(values.shape.begin() + 1, values.shape.end());
  const int rank = shape.rank();
  int64_t* out = call.make<int64_t>(0, {values.count, rank});
  const int64_t items = values.shape.product(1, values.rank());
  // The row of every level that the next value is in.
  int64_t at[kMaxRank] = {};
  for (int64_t i = 0; i < values.count; ++i, out += rank) {
    int64_t position = i / std::max<int64_t>(items, 1), rest = i % std::max<int64_t>(items, 1);
    for (int d = rank - 1; d > levels; --d) {
      out[d] = rest % shape[d];
      rest /= shape[d];
    }
    for (int level = levels - 1; level >= 0; --level) {
      while (splits[level][at[level] + 1] <= position) ++at[level];
      out[level + 1] = position - splits[level][at[level]];
      position = at[level];
    }
    out[0] = position;
  }
  call.share(1, values, {values.count});
  give_vector(call, 2, {shape.begin(), shape.end()});
}

// Rows of the ragged tensor at the indices that are the last input: nested splits, one more for each dimension of the indices
// after the first, and values.
void ragged_gather(Call& call) {
  const int levels = call.inputs() - 2;
  const Tensor &values = call.in(levels), &indices = call.in(levels + 1);
  check(levels > 0 && values.rank() > 0 && call.in(0).count > 0, "a ragged tensor has row splits and values");
  std::span<const int64_t> at = as_int64(call, indices);
  check_ids(at, call.in(0).count - 1);
  int output = 0;
  const auto give = [&](Type type, std::span<const int64_t> splits) {
    for_index(type, [&]<typename T>(std::type_identity<T>) {
      T* to = call.make<T>(output, {static_cast<int64_t>(splits.size())});
      for (const int64_t split : splits) *to++ = static_cast<T>(split);
    });
    ++output;
  };
  const Type type = call.in(0).type;
  for (int d = 0; d + 1 < indices.rank(); ++d) {
    const int64_t count = indices.shape.product(0, d + 1);
    auto* splits = call.scratch<int64_t>(count + 1);
    for (int64_t i = 0; i <= count; ++i) splits[i] = i * indices.shape[d + 1];
    give(type, {splits, static_cast<size_t>(count + 1)});
  }
  for (int level = 0; level < levels; ++level) {
    const std::span<const int64_t> part = as_int64(call, call.in(level));
    const int64_t inner = level + 1 < levels ? call.in(level + 1).count - 1 : values.shape[0];
    check(!part.empty() && part.front() >= 0 && part.back() <= inner, "row splits do not fit");
    for (size_t i = 1; i < part.size(); ++i) check(part[i] >= part[i - 1], "row splits do not fit");
    auto* splits = call.scratch<int64_t>(at.size() + 1);
    splits[0] = 0;
    for (size_t i = 0; i < at.size(); ++i) splits[i + 1] = splits[i] + part[at[i] + 1] - part[at[i]];
    const int64_t total = splits[at.size()];
    auto* next = call.scratch<int64_t>(total);
    for (size_t i = 0; i < at.size(); ++i) std::iota(next + splits[i], next + splits[i + 1], part[at[i]]);
    // One row has no outer dimension.
    if (level > 0 || indices.rank() > 0) give(call.in(level).type, {splits, at.size() + 1});
    at = {next, static_cast<size_t>(total)};
  }
  Shape shape{static_cast<int64_t>(at.size())};
  shape.append(values.shape.begin() + 1, values.shape.end());
  Tensor& out = call.make(output, values.type, shape);
  const size_t bytes = shape.product(1, shape.rank()) * item_size(values.type);
  auto* to = static_cast<char*>(out.data);
  for (size_t i = 0; i < at.size() && bytes; ++i, to += bytes) {
    std::memcpy(to, static_cast<const char*>(values.data) + at[i] * bytes, bytes);
  }
}

// How many values a range has; one in the wrong direction is empty.
template <typename T>
int64_t range_length(T first, T last, T step) {
  check(step != 0, "a range with delta 0");
  if (step > 0 ? first >= last : first <= last) return 0;
  double count;
  if constexpr (std::is_floating_point_v<T>) {
    count = std::ceil(std::abs((static_cast<double>(last) - first) / step));
  } else {
    const uint64_t span = step > 0 ? static_cast<uint64_t>(last) - first : static_cast<uint64_t>(first) - last;
    const uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : uint64_t{0} - static_cast<uint64_t>(step);
    count = static_cast<double>(span / stride + (span % stride != 0));
  }
  check(count <= 1e13, "a range of ", count, " values is too large");
  return static_cast<int64_t>(count);
}

Kernel ragged_range(const Attributes& attributes, const Resources&) {
  return [splits_type = attributes.type("Tsplits")](Call& call) {
    const Tensor &starts = call.in(0), &limits = call.in(1), &deltas = call.in(2);
    int64_t rows = 1;
    bool given = false;
    for (const Tensor* part : {&starts, &limits, &deltas}) {
      if (!part->rank()) continue;
      check(!given || part->count == rows, "starts, limits and deltas of sizes ", rows, " and ", part->count);
      rows = part->count;
      given = true;
    }
    for_number(starts.type, [&]<typename T>(std::type_identity<T>) {
      const auto at = [](const Tensor& part, int64_t i) { return part.as<T>()[part.rank() ? i : 0]; };
      auto* ends = call.scratch<int64_t>(rows + 1);
      ends[0] = 0;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t length = range_length(at(starts, i), at(limits, i), at(deltas, i));
        check(!__builtin_add_overflow(ends[i], length, &ends[i + 1]), "the ranges are too large");
      }
      for_index(splits_type, [&]<typename S>(std::type_identity<S>) {
        S* splits = call.make<S>(0, {rows + 1});
        for (int64_t i = 0; i <= rows; ++i) splits[i] = static_cast<S>(ends[i]);
      });
      T* out = call.make<T>(1, {ends[rows]});
      for (int64_t i = 0; i < rows; ++i) {
        // TensorFlow adds the delta again and again; a product would round differently.
        T value = at(starts, i);
        for (int64_t j = ends[i]; j < ends[i + 1]; ++j) {
          *out++ = value;
          if constexpr (std::is_floating_point_v<T>) value += at(deltas, i);
          else value = static_cast<T>(static_cast<uint64_t>(value) + static_cast<uint64_t>(at(deltas, i)));
        }
      }
    });
  };
}

// Row ids and values with a default in every row that had nothing, which rows those were, and where each value went.
void ragged_fill_empty_rows(Call& call) {
  const Tensor &value_rowids = call.in(0), &values = call.in(1), &filling = call.in(3);
  const int64_t rows = scalar_integer(call.in(2), "nrows"), count = values.count;
  check(value_rowids.shape == values.shape, value_rowids.count, " row ids for ", values.count, " values");
  check(filling.count == 1 && filling.type == values.type, "default_value must be one value of the values' dtype");
  const std::span<const int64_t> ids = as_int64(call, value_rowids);
  check_ids(ids, rows, "row id");
  bool* empty = call.make<bool>(2, {rows});
  auto* next = call.scratch<int64_t>(rows + 1);
  std::fill_n(next, rows + 1, 0);
  for (const int64_t id : ids) ++next[id];
  int64_t total = 0;
  for (int64_t row = 0; row < rows; ++row) {
    empty[row] = next[row] == 0;
    const int64_t size = std::max<int64_t>(next[row], 1);
    next[row] = total;
    total += size;
  }
  next[rows] = total;
  // Of a ragged tensor without rows TensorFlow gives the row ids a second dimension.
  int64_t* row_ids = rows ? call.make<int64_t>(0, {total}) : call.make<int64_t>(0, {0, 1});
  for (int64_t row = 0; row < rows; ++row) std::fill(row_ids + next[row], row_ids + next[row + 1], row);
  Tensor& out = call.make(1, values.type, {total});
  fill_items(out, filling.data);
  int64_t* reverse = call.make<int64_t>(3, {count});
  for_size(values.type, [&]<typename T>(std::type_identity<T>) {
    for (int64_t i = 0; i < count; ++i) {
      reverse[i] = next[ids[i]]++;
      static_cast<T*>(out.data)[reverse[i]] = static_cast<const T*>(values.data)[i];
    }
  });
}

}  // namespace

OperatorTable ragged_operators() {
  return {
      {"ragged_tensor_to_tensor", ragged_tensor_to_tensor},
      {"ragged_tensor_to_sparse", plain<ragged_tensor_to_sparse>},
      {"ragged_gather", plain<ragged_gather>},
      {"ragged_range", ragged_range},
      {"ragged_fill_empty_rows", plain<ragged_fill_empty_rows>},
  };
}

}  // namespace jaxrank::host
