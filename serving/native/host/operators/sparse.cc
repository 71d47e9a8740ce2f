// Sparse tensors filled, reshaped, joined and cut.

#include "../sparse.h"

namespace jaxrank::host {

namespace {

// A value at column 0 of every row that had nothing: indices and values sorted by row, which rows were empty, and where each
// value went.
void sparse_fill_empty_rows(Call& call) {
  const Sparse sparse = sparse_of(call, call.in(0), call.in(1), call.in(2));
  const Tensor& filling = call.in(3);
  check(filling.rank() == 0 && filling.type == sparse.values->type, "default_value must be a scalar of the values' dtype");
  check(sparse.rank() > 0, "a sparse scalar has no rows");
  const int64_t rows = sparse.shape[0], count = sparse.count(), rank = sparse.rank();
  check(rows > 0 || count == 0, count, " values in a sparse tensor of 0 rows");
  bool* empty = call.make<bool>(2, {rows});
  auto* next = call.scratch<int64_t>(rows);
  std::fill_n(next, rows, 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = sparse.index(i)[0];
    check(0 <= row && row < rows, "a row of a sparse tensor is outside of [0, ", rows, ")");
    ++next[row];
  }
  int64_t total = 0;
  for (int64_t row = 0; row < rows; ++row) {
    empty[row] = next[row] == 0;
    const int64_t size = std::max<int64_t>(next[row], 1);
    next[row] = total;
    total += size;
  }
  int64_t* indices = call.make<int64_t>(0, {total, rank});
  Tensor& values = call.make(1, sparse.values->type, {total});
  int64_t* reverse = call.make<int64_t>(3, {count});
  std::fill_n(indices, total * rank, 0);
  fill_items(values, filling.data);
  for (int64_t row = 0; row < rows; ++row) {
    if (empty[row]) indices[next[row] * rank] = row;
  }
  for_size(values.type, [&]<typename T>(std::type_identity<T>) {
    T* to = static_cast<T*>(values.data);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = reverse[i] = next[sparse.index(i)[0]]++;
      std::copy_n(sparse.index(i).data(), rank, indices + at * rank);
      to[at] = static_cast<const T*>(sparse.values->data)[i];
    }
  });
}

int64_t product(std::span<const int64_t> sizes) {
  return Shape(sizes).count();
}

// Indices in another shape, one size of which may be -1.
void sparse_reshape(Call& call) {
  const Tensor &indices = call.in(0), &input_shape = call.in(1);
  const std::span<const int64_t> from = as_int64(call, input_shape);
  check(indices.rank() == 2 && indices.shape[1] == input_shape.count, "indices and shape of different ranks");
  const int64_t whole = product(from);
  Shape target = shape_from(call.in(2));
  int open = -1;
  Shape known;
  for (int i = 0; i < target.rank(); ++i) {
    check(target[i] >= -1 && (target[i] != -1 || open < 0), target, " is not a shape");
    if (target[i] == -1) open = i;
    else known.push_back(target[i]);
  }
  if (open >= 0) {
    check(known.count() > 0 && whole % known.count() == 0, "reshape of ", Listed{from}, " to ", target);
    target[open] = whole / known.count();
  }
  check(target.count() == whole, "reshape of ", Listed{from}, " to ", target);
  const std::span<const int64_t> all = as_int64(call, indices);
  const int64_t count = indices.shape[0], rank = indices.shape[1];
  int64_t* out = call.make<int64_t>(0, {count, target.rank()});
  for (int64_t i = 0; i < count; ++i, out += target.rank()) {
    int64_t flat = flat_position(all.subspan(i * rank, rank), from);
    for (int d = target.rank() - 1; d >= 0; --d) {
      // Rounded down, as for an index below 0.
      const int64_t size = std::max<int64_t>(target[d], 1), rest = flat % size + (flat % size < 0 ? size : 0);
      out[d] = rest;
      flat = (flat - rest) / size;
    }
  }
  give_vector(call, 1, {target.begin(), target.end()});
}

Kernel sparse_to_dense(const Attributes& attributes, const Resources&) {
  return [validate = attributes.flag("validate_indices")](Call& call) {
    const Tensor &indices = call.in(0), &output_shape = call.in(1), &values = call.in(2), &filling = call.in(3);
    const Shape shape = shape_from(output_shape);
    const int64_t count = indices.rank() == 2 ? indices.shape[0] : indices.count;
    const int64_t rank = indices.rank() == 2 ? indices.shape[1] : 1;
    check(indices.rank() <= 2 && rank == shape.rank(), "indices of rank ", rank, " for shape ", shape);
    check(values.rank() == 0 || (values.rank() == 1 && values.count == count), "values do not fit the indices");
    check(filling.count == 1 && filling.type == values.type, "default_value must be one value of the values' dtype");
    const std::span<const int64_t> all = as_int64(call, indices);
    Tensor& out = call.make(0, values.type, shape);
    fill_items(out, filling.data);
    const std::span<const int64_t> sizes(shape.begin(), shape.end());
    int64_t before = -1;
    for_size(values.type, [&]<typename T>(std::type_identity<T>) {
      for (int64_t i = 0; i < count; ++i) {
        const std::span<const int64_t> index = all.subspan(i * rank, rank);
        for (int d = 0; d < rank; ++d) {
          check(0 <= index[d] && index[d] < shape[d], "sparse index ", Listed{index}, " is outside of the shape ", shape);
        }
        const int64_t at = flat_position(index, sizes);
        check(!validate || at != before, "a sparse index is repeated");
        check(!validate || at > before, "sparse indices are out of order");
        before = at;
        static_cast<T*>(out.data)[at] = static_cast<const T*>(values.data)[values.rank() ? i : 0];
      }
    });
  };
}

// Joined along a dimension; the inputs are all indices, then all values, then all shapes.
Kernel sparse_concat(const Attributes& attributes, const Resources&) {
  return [where = attributes.integer("concat_dim")](Call& call) {
    const int n = call.inputs() / 3;
    check(n > 0 && call.inputs() == 3 * n, "a sparse tensor has three parts");
    const Sparse first = sparse_of(call, call.in(0), call.in(n), call.in(2 * n));
    const auto rank = static_cast<int>(first.rank());
    const int axis = axis_of(where, rank, "concat_dim");
    Shape shape(first.shape);
    int64_t total = 0, size = 0;
    for (int i = 0; i < n; ++i) {
      const Sparse part = sparse_of(call, call.in(i), call.in(n + i), call.in(2 * n + i));
      bool same = part.rank() == rank && part.values->type == first.values->type;
      for (int d = 0; same && d < rank; ++d) same = d == axis || part.shape[d] == first.shape[d];
      check(same, "sparse shapes ", Listed{first.shape}, " and ", Listed{part.shape}, " do not join");
      total += part.count();
      check(!__builtin_add_overflow(size, part.shape[axis], &size), "the joined dimension is too large");
    }
    shape[axis] = size;
    auto* joined = call.scratch<int64_t>(total * rank);
    auto* keys = call.scratch<int64_t>(total);
    Tensor values{first.values->type, {total}, total, call.scratch<Item16>(total), 0};
    int64_t at = 0;
    uint64_t offset = 0;
    for (int i = 0; i < n; ++i) {
      const Sparse part = sparse_of(call, call.in(i), call.in(n + i), call.in(2 * n + i));
      if (part.count()) std::memcpy(element(values, at), part.values->data, part.count() * item_size(values.type));
      for (int64_t j = 0; j < part.count(); ++j, ++at) {
        int64_t* index = joined + at * rank;
        std::copy_n(part.index(j).data(), rank, index);
        index[axis] = static_cast<int64_t>(static_cast<uint64_t>(index[axis]) + offset);
        keys[at] = flat_position({index, static_cast<size_t>(rank)}, {shape.begin(), shape.end()});
      }
      offset += static_cast<uint64_t>(part.shape[axis]);
    }
    const std::span<const int64_t> order = stable_order(call, {keys, static_cast<size_t>(total)});
    give_indices(call, 0, {{joined, static_cast<size_t>(total * rank)}, &values, {shape.begin(), shape.end()}}, order);
    give_values(call, 1, values, order);
    give_vector(call, 2, {shape.begin(), shape.end()});
  };
}

// The values inside of a box, as outputs `indices` and `values`.
void cut(Call& call, const Sparse& sparse, const Shape& start, const Shape& size, int indices, int values) {
  auto* kept = call.scratch<int64_t>(sparse.count());
  size_t count = 0;
  for (int64_t i = 0; i < sparse.count(); ++i) {
    bool inside = true;
    // In unsigned numbers an index before the start is far beyond it.
    for (int d = 0; d < sparse.rank(); ++d) {
      inside &= static_cast<uint64_t>(sparse.index(i)[d]) - static_cast<uint64_t>(start[d]) < static_cast<uint64_t>(size[d]);
    }
    kept[count] = i;
    count += inside;
  }
  int64_t* out = call.make<int64_t>(indices, {static_cast<int64_t>(count), sparse.rank()});
  for (size_t i = 0; i < count; ++i) {
    for (int d = 0; d < sparse.rank(); ++d) *out++ = sparse.index(kept[i])[d] - start[d];
  }
  give_values(call, values, *sparse.values, {kept, count});
}

void sparse_slice(Call& call) {
  const Sparse sparse = sparse_of(call, call.in(0), call.in(1), call.in(2));
  const Tensor &begin = call.in(3), &extent = call.in(4);
  const bool fits = begin.rank() == 1 && extent.rank() == 1 && begin.count == sparse.rank() && extent.count == sparse.rank();
  check(fits, "a slice of a sparse tensor of rank ", sparse.rank());
  const Shape start = shape_from(begin), size = shape_from(extent);
  Shape shape;
  for (int d = 0; d < start.rank(); ++d) {
    check(start[d] >= 0 && size[d] >= 0, "a slice with a negative start or size");
    shape.push_back(std::max<int64_t>(std::min(size[d], sparse.shape[d] - start[d]), 0));
  }
  cut(call, sparse, start, size, 0, 1);
  give_vector(call, 2, {shape.begin(), shape.end()});
}

// Parts along a dimension, the first ones larger by one where it does not divide.
Kernel sparse_split(const Attributes& attributes, const Resources&) {
  return [parts = attributes.integer("num_split")](Call& call) {
    const Sparse sparse = sparse_of(call, call.in(1), call.in(2), call.in(3));
    const int axis = axis_of(scalar_integer(call.in(0), "split_dim"), static_cast<int>(sparse.rank()), "split_dim");
    const int64_t whole = sparse.shape[axis];
    check(1 <= parts && parts <= whole && call.outputs() == 3 * parts, "a dimension of size ", whole, " in ", parts, " parts");
    Shape start(sparse.shape), size(sparse.shape);
    for (int d = 0; d < start.rank(); ++d) start[d] = 0;
    for (int i = 0; i < parts; ++i) {
      size[axis] = whole / parts + (i < whole % parts);
      cut(call, sparse, start, size, i, static_cast<int>(parts) + i);
      give_vector(call, static_cast<int>(2 * parts) + i, {size.begin(), size.end()});
      start[axis] += size[axis];
    }
  };
}

void sparse_reorder(Call& call) {
  const Sparse sparse = sparse_of(call, call.in(0), call.in(1), call.in(2));
  const std::span<const int64_t> order = sorted_positions(call, sparse.count(), [&](int64_t a, int64_t b) {
    const std::span<const int64_t> x = sparse.index(a), y = sparse.index(b);
    for (int64_t d = 0; d < sparse.rank(); ++d) {
      if (x[d] != y[d]) return x[d] < y[d];
    }
    return a < b;
  });
  give_indices(call, 0, sparse, order);
  give_values(call, 1, *sparse.values, order);
}

}  // namespace

OperatorTable sparse_operators() {
  return {
      {"sparse_fill_empty_rows", plain<sparse_fill_empty_rows>},
      {"sparse_reshape", plain<sparse_reshape>},
      {"sparse_to_dense", sparse_to_dense},
      {"sparse_concat", sparse_concat},
      {"sparse_slice", plain<sparse_slice>},
      {"sparse_split", sparse_split},
      {"sparse_reorder", plain<sparse_reorder>},
  };
}

}  // namespace jaxrank::host
