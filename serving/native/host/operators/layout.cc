// Operators that move values without looking at them: slices, joins, repetitions, borders, permutations.

#include "../layout.h"

namespace jaxrank::host {

namespace {

// Elements `from` a tensor's memory with these strides, as an output of its own.
void give_view(Call& call, int output, const Tensor& tensor, const Shape& sizes, int64_t offset, const Strides& strides) {
  Tensor& out = call.make(output, tensor.type, sizes);
  if (out.count) copy_strided(tensor.type, sizes, element(tensor, offset), strides, out.data, row_major(sizes));
}

struct SliceMasks {
  int64_t begin, end, ellipsis, new_axis, shrink;
};

// Python's `value[begin:end:stride, ...]`; bit i of a mask is about entry i.
void strided_slice(Call& call, const SliceMasks& masks) {
  const Tensor &value = call.in(0), &begins = call.in(1), &ends = call.in(2), &steps = call.in(3);
  const int64_t entries = begins.count;
  check(ends.count == entries && steps.count == entries && entries <= 32, "begin, end and strides of different sizes");
  const Strides own = row_major(value.shape);
  Shape sizes;
  Strides strides{};
  int64_t offset = 0;
  int dimension = 0;
  const auto keep = [&](int64_t size, int64_t stride) {
    sizes.push_back(size);
    strides[sizes.rank() - 1] = stride;
  };
  bool ellipsis = false;
  for (int64_t i = 0; i < entries; ++i) {
    const int64_t bit = int64_t{1} << i;
    if (masks.ellipsis & bit) {
      check(!ellipsis, "a strided slice with two ellipses");
      ellipsis = true;
      int later = 0;
      for (int64_t j = i + 1; j < entries; ++j) later += !(masks.new_axis & (int64_t{1} << j));
      for (; dimension < value.rank() - later; ++dimension) keep(value.shape[dimension], own[dimension]);
      continue;
    }
    if (masks.new_axis & bit) {
      keep(1, 0);
      continue;
    }
    check(dimension < value.rank(), "a strided slice of more than the ", value.rank(), " dimensions it has");
    const int64_t size = value.shape[dimension], step = integer_at(steps, i);
    int64_t first = integer_at(begins, i), stop = integer_at(ends, i);
    check(step != 0, "a strided slice with stride 0");
    if (masks.shrink & bit) {
      check(step > 0, "a strided slice takes one element with a negative stride");
      check(-size <= first && first < size, "slice index ", first, " of dimension ", dimension, " of size ", size);
      offset += (first < 0 ? first + size : first) * own[dimension];
    } else {
      const auto inside = [&](int64_t at) {
        const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? size : size - 1;
        return std::clamp(at < 0 ? at + size : at, low, high);
      };
      first = masks.begin & bit ? (step > 0 ? 0 : size - 1) : inside(first);
      stop = masks.end & bit ? (step > 0 ? size : -1) : inside(stop);
      // In unsigned numbers: the smallest step has no negative.
      const uint64_t span = step > 0 ? std::max<int64_t>(stop - first, 0) : std::max<int64_t>(first - stop, 0);
      const uint64_t stride = step > 0 ? step : uint64_t{0} - step;
      const auto count = static_cast<int64_t>(span / stride + (span % stride != 0));
      if (count) offset += first * own[dimension];
      keep(count, count > 1 ? step * own[dimension] : 0);
    }
    ++dimension;
  }
  for (; dimension < value.rank(); ++dimension) keep(value.shape[dimension], own[dimension]);
  give_view(call, 0, value, sizes, offset, strides);
}

Kernel make_strided_slice(const Attributes& attributes, const Resources&) {
  const SliceMasks masks{attributes.integer("begin_mask"), attributes.integer("end_mask"), attributes.integer("ellipsis_mask"),
                         attributes.integer("new_axis_mask"), attributes.integer("shrink_axis_mask")};
  return [masks](Call& call) { strided_slice(call, masks); };
}

void slice(Call& call) {
  const Tensor &value = call.in(0), &begin = call.in(1), &size = call.in(2);
  const bool fits = begin.rank() == 1 && size.rank() == 1 && begin.count == value.rank() && size.count == value.rank();
  check(fits, "a slice of a tensor of rank ", value.rank());
  const Strides own = row_major(value.shape);
  Shape sizes;
  int64_t offset = 0;
  for (int i = 0; i < value.rank(); ++i) {
    const int64_t first = integer_at(begin, i), count = integer_at(size, i), whole = value.shape[i];
    check(0 <= first && first <= whole && count >= -1 && (count == -1 || count <= whole - first), "slice of ", count,
          " from ", first, " on, of a dimension of size ", whole);
    sizes.push_back(count == -1 ? whole - first : count);
    offset += first * own[i];
  }
  give_view(call, 0, value, sizes, offset, own);
}

// Copies a tensor to a place in an output.
void put(Tensor& out, int64_t offset, const Tensor& part, const Strides& out_strides) {
  if (part.count) copy_strided(part.type, part.shape, part.data, row_major(part.shape), element(out, offset), out_strides);
}

void check_same(const Tensor& a, const Tensor& b, int without) {
  bool same = a.rank() == b.rank() && a.type == b.type;
  for (int i = 0; same && i < a.rank(); ++i) same = i == without || a.shape[i] == b.shape[i];
  check(same, "tensors of shapes ", a.shape, " and ", b.shape, " do not join");
}

Kernel pack(const Attributes& attributes, const Resources&) {
  return [where = attributes.integer("axis")](Call& call) {
    const Tensor& first = call.in(0);
    for (int i = 1; i < call.inputs(); ++i) check_same(first, call.in(i), -1);
    const int axis = axis_of(where, first.rank() + 1);
    Shape shape;
    shape.append(first.shape.begin(), first.shape.begin() + axis);
    shape.push_back(call.inputs());
    shape.append(first.shape.begin() + axis, first.shape.end());
    const Strides whole = row_major(shape);
    Strides part{};
    for (int i = 0; i < first.rank(); ++i) part[i] = whole[i < axis ? i : i + 1];
    Tensor& out = call.make(0, first.type, shape);
    for (int i = 0; i < call.inputs(); ++i) put(out, i * whole[axis], call.in(i), part);
  };
}

Kernel unpack(const Attributes& attributes, const Resources&) {
  return [where = attributes.integer("axis"), num = attributes.integer("num")](Call& call) {
    const Tensor& value = call.in(0);
    const int axis = axis_of(where, value.rank());
    check(value.shape[axis] == num && num == call.outputs(), value.shape[axis], " values to unpack, ", num, " expected");
    const Strides own = row_major(value.shape);
    Shape sizes;
    Strides strides{};
    for (int i = 0; i < value.rank(); ++i) {
      if (i == axis) continue;
      strides[sizes.rank()] = own[i];
      sizes.push_back(value.shape[i]);
    }
    for (int i = 0; i < num; ++i) give_view(call, i, value, sizes, i * own[axis], strides);
  };
}

// Joins inputs [first, last) along an axis.
void join(Call& call, int first, int last, int64_t where) {
  check(last > first, "nothing to join");
  const Tensor& head = call.in(first);
  const int axis = axis_of(where, head.rank());
  Shape shape = head.shape;
  for (int i = first + 1; i < last; ++i) {
    check_same(head, call.in(i), axis);
    shape[axis] += call.in(i).shape[axis];
  }
  Tensor& out = call.make(0, head.type, shape);
  const Strides strides = row_major(shape);
  int64_t offset = 0;
  for (int i = first; i < last; ++i) {
    put(out, offset, call.in(i), strides);
    offset += call.in(i).shape[axis] * strides[axis];
  }
}

void concat_v2(Call& call) { join(call, 0, call.inputs() - 1, scalar_integer(call.in(call.inputs() - 1), "axis")); }

void concat(Call& call) { join(call, 1, call.inputs(), scalar_integer(call.in(0), "concat_dim")); }

// Cuts a tensor along an axis into parts of these sizes.
template <typename SizeOf>
void cut(Call& call, const Tensor& value, int axis, SizeOf size_of) {
  const Strides own = row_major(value.shape);
  int64_t offset = 0;
  for (int i = 0; i < call.outputs(); ++i) {
    Shape sizes = value.shape;
    sizes[axis] = size_of(i);
    give_view(call, i, value, sizes, offset, own);
    offset += sizes[axis] * own[axis];
  }
}

Kernel split(const Attributes& attributes, const Resources&) {
  return [parts = attributes.integer("num_split")](Call& call) {
    const Tensor& value = call.in(1);
    const int axis = axis_of(scalar_integer(call.in(0), "split_dim"), value.rank());
    check(parts == call.outputs() && value.shape[axis] % parts == 0, value.shape[axis], " is not a multiple of ", parts);
    cut(call, value, axis, [&](int) { return value.shape[axis] / parts; });
  };
}

Kernel split_v(const Attributes& attributes, const Resources&) {
  return [parts = attributes.integer("num_split")](Call& call) {
    const Tensor &value = call.in(0), &sizes = call.in(1);
    const int axis = axis_of(scalar_integer(call.in(2), "split_dim"), value.rank());
    const int64_t whole = value.shape[axis];
    check(sizes.count == parts && parts == call.outputs(), sizes.count, " sizes for ", parts, " parts");
    int64_t open = -1, total = 0;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t size = integer_at(sizes, i);
      check(size >= -1 && size <= whole && (size != -1 || open < 0), "the sizes of ", parts, " parts do not add to ", whole);
      if (size == -1) open = i;
      else total += size;
    }
    check(open >= 0 ? total <= whole : total == whole, "the sizes of ", parts, " parts do not add to ", whole);
    cut(call, value, axis, [&](int i) { return i == open ? whole - total : integer_at(sizes, i); });
  };
}

void transpose(Call& call) {
  const Tensor &value = call.in(0), &order = call.in(1);
  check(order.count == value.rank(), "a permutation of ", order.count, " dimensions for a tensor of rank ", value.rank());
  const Strides own = row_major(value.shape);
  Shape sizes;
  Strides strides{};
  bool seen[kMaxRank] = {};
  for (int i = 0; i < value.rank(); ++i) {
    const int axis = axis_of(integer_at(order, i), value.rank());
    check(!seen[axis], "a permutation that names dimension ", axis, " twice");
    seen[axis] = true;
    strides[i] = own[axis];
    sizes.push_back(value.shape[axis]);
  }
  give_view(call, 0, value, sizes, 0, strides);
}

void tile(Call& call) {
  const Tensor &value = call.in(0), &multiples = call.in(1);
  check(multiples.rank() == 1 && multiples.count == value.rank(), multiples.count, " multiples for a tensor of rank ",
        value.rank());
  Shape shape, times;
  for (int i = 0; i < value.rank(); ++i) {
    const int64_t multiple = integer_at(multiples, i);
    check(multiple >= 0, "a negative multiple ", multiple);
    times.push_back(multiple);
    int64_t size;
    check(!__builtin_mul_overflow(value.shape[i], multiple, &size), "a tile of ", multiple, " times ", value.shape[i]);
    shape.push_back(size);
  }
  Tensor& out = call.make(0, value.type, shape);
  if (!out.count) return;
  const Strides strides = row_major(shape);
  // One copy of the value at every place of a grid of `times`.
  Strides grid{};
  for (int i = 0; i < value.rank(); ++i) grid[i] = strides[i] * value.shape[i];
  times.push_back(1);
  for_rows(times, grid, grid, [&](int64_t offset, int64_t) { put(out, offset, value, strides); });
}

void broadcast_to(Call& call) {
  const Tensor& value = call.in(0);
  const Shape target = shape_from(call.in(1));
  target.count();
  const std::optional<Shape> common = broadcast(value.shape, target);
  check(common && *common == target, "a tensor of shape ", value.shape, " does not broadcast to ", target);
  give_view(call, 0, value, target, 0, broadcast_strides(value.shape, target));
}

// The sizes before and after, checked against the rank: `[rank, 2]`.
void check_paddings(const Tensor& value, const Tensor& paddings) {
  const bool fits = paddings.rank() == 2 && paddings.shape[0] == value.rank() && paddings.shape[1] == 2;
  check(fits, "paddings ", paddings.shape, " for rank ", value.rank());
}

void pad_with(Call& call, const void* filling) {
  const Tensor &value = call.in(0), &paddings = call.in(1);
  check_paddings(value, paddings);
  Shape shape;
  for (int i = 0; i < value.rank(); ++i) {
    const int64_t before = integer_at(paddings, 2 * i), after = integer_at(paddings, 2 * i + 1);
    check(before >= 0 && after >= 0, "negative paddings (", before, ", ", after, ")");
    int64_t size;
    const bool too_large = __builtin_add_overflow(before, after, &size) || __builtin_add_overflow(size, value.shape[i], &size);
    check(!too_large, "paddings (", before, ", ", after, ") are too large");
    shape.push_back(size);
  }
  Tensor& out = call.make(0, value.type, shape);
  fill_items(out, filling);
  const Strides strides = row_major(shape);
  int64_t offset = 0;
  for (int i = 0; i < value.rank(); ++i) offset += integer_at(paddings, 2 * i) * strides[i];
  put(out, offset, value, strides);
}

void pad(Call& call) {
  constexpr Item16 kZero{};  // of every type: 0, false, the empty string
  pad_with(call, &kZero);
}

void pad_v2(Call& call) {
  check(call.in(2).count == 1, "constant_values must be one value, it has shape ", call.in(2).shape);
  check(call.in(2).type == call.in(0).type, "constant_values of another type");
  pad_with(call, call.in(2).data);
}

// out[i, j, ...] = value[at[0][i], at[1][j], ...].
void pick(Call& call, const Tensor& value, const Shape& shape, const std::array<const int64_t*, kMaxRank>& at) {
  Tensor& out = call.make(0, value.type, shape);
  if (!out.count) return;
  const Strides own = row_major(value.shape);
  const int last = shape.rank() - 1;
  for_size(value.type, [&]<typename T>(std::type_identity<T>) {
    const T* from = static_cast<const T*>(value.data);
    T* to = static_cast<T*>(out.data);
    if (last < 0) {
      *to = *from;
      return;
    }
    std::array<int64_t, kMaxRank> index{};
    for (int64_t done = 0; done < out.count; done += shape[last]) {
      int64_t offset = 0;
      for (int d = 0; d < last; ++d) offset += at[d][index[d]] * own[d];
      for (int64_t i = 0; i < shape[last]; ++i) *to++ = from[offset + at[last][i]];
      for (int d = last - 1; d >= 0 && ++index[d] == shape[d]; --d) index[d] = 0;
    }
  });
}

Kernel mirror_pad(const Attributes& attributes, const Resources&) {
  return [reflect = attributes.text("mode") == "REFLECT"](Call& call) {
    const Tensor &value = call.in(0), &paddings = call.in(1);
    check_paddings(value, paddings);
    Shape shape;
    std::array<const int64_t*, kMaxRank> at{};
    for (int d = 0; d < value.rank(); ++d) {
      const int64_t before = integer_at(paddings, 2 * d), after = integer_at(paddings, 2 * d + 1), size = value.shape[d];
      const int64_t limit = size - reflect;
      check(0 <= before && before <= limit && 0 <= after && after <= limit, "paddings (", before, ", ", after,
            ") of a dimension of size ", size);
      const int64_t total = before + size + after;
      auto* places = call.scratch<int64_t>(total);
      // SYMMETRIC repeats the border itself, REFLECT does not.
      for (int64_t i = 0; i < total; ++i) {
        const int64_t j = i - before;
        places[i] = j < 0 ? -j - 1 + reflect : j >= size ? 2 * size - 1 - reflect - j : j;
      }
      shape.push_back(total);
      at[d] = places;
    }
    pick(call, value, shape, at);
  };
}

void reverse_v2(Call& call) {
  const Tensor &value = call.in(0), &axes = call.in(1);
  Strides strides = row_major(value.shape);
  int64_t offset = 0;
  bool seen[kMaxRank] = {};
  for (int64_t i = 0; i < axes.count; ++i) {
    const int axis = axis_of(integer_at(axes, i), value.rank());
    check(!seen[axis], "axis ", axis, " is named twice");
    seen[axis] = true;
    if (value.count) offset += (value.shape[axis] - 1) * strides[axis];
    strides[axis] = -strides[axis];
  }
  give_view(call, 0, value, value.shape, offset, strides);
}

Kernel reverse_sequence(const Attributes& attributes, const Resources&) {
  return [seq_dim = attributes.integer("seq_dim"), batch_dim = attributes.integer("batch_dim")](Call& call) {
    const Tensor &value = call.in(0), &lengths = call.in(1);
    const int seq = axis_of(seq_dim, value.rank()), batch = axis_of(batch_dim, value.rank());
    check(seq != batch, "seq_dim and batch_dim are the same");
    check(lengths.rank() == 1 && lengths.count == value.shape[batch], lengths.count, " sequence lengths");
    const int64_t size = value.shape[seq];
    Tensor& out = call.make(0, value.type, value.shape);
    const Strides own = row_major(value.shape);
    Shape rest = value.shape;  // one batch entry and one step
    rest[seq] = rest[batch] = 1;
    for (int64_t b = 0; b < lengths.count; ++b) {
      const int64_t length = integer_at(lengths, b);
      check(0 <= length && length <= size, "a sequence length is outside of [0, ", size, "]");
      for (int64_t i = 0; i < size && out.count; ++i) {
        const int64_t from = i < length ? length - 1 - i : i;
        copy_strided(value.type, rest, element(value, b * own[batch] + from * own[seq]), own,
                     element(out, b * own[batch] + i * own[seq]), own);
      }
    }
  };
}

void matrix_band_part(Call& call) {
  const Tensor& value = call.in(0);
  check(value.rank() >= 2, "a matrix is expected, found shape ", value.shape);
  const int64_t below = scalar_integer(call.in(1), "num_lower"), above = scalar_integer(call.in(2), "num_upper");
  const int64_t rows = value.shape[value.rank() - 2], columns = value.shape[value.rank() - 1];
  check(below <= rows && above <= columns, "a band (", below, ", ", above, ") of a ", rows, "x", columns, " matrix");
  Tensor& out = call.make(0, value.type, value.shape);
  for_size(value.type, [&]<typename T>(std::type_identity<T>) {
    const T* from = static_cast<const T*>(value.data);
    T* to = static_cast<T*>(out.data);
    for (int64_t i = 0; i < out.count; ++i) {
      const int64_t row = i / columns % rows, column = i % columns;
      const bool inside = (below < 0 || row - column <= below) && (above < 0 || column - row <= above);
      to[i] = inside ? from[i] : T{};
    }
  });
}

}  // namespace

OperatorTable layout_operators() {
  return {
      {"strided_slice", make_strided_slice},
      {"slice", plain<slice>},
      {"pack", pack},
      {"unpack", unpack},
      {"concat_v2", plain<concat_v2>},
      {"concat", plain<concat>},
      {"split", split},
      {"split_v", split_v},
      {"transpose", plain<transpose>},
      {"tile", plain<tile>},
      {"broadcast_to", plain<broadcast_to>},
      {"pad", plain<pad>},
      {"pad_v2", plain<pad_v2>},
      {"mirror_pad", mirror_pad},
      {"reverse_v2", plain<reverse_v2>},
      {"reverse_sequence", reverse_sequence},
      {"matrix_band_part", plain<matrix_band_part>},
  };
}

}  // namespace jaxrank::host
