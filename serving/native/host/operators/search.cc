// Distinct values, and places in sorted rows.

#include "../indices.h"
#include "../layout.h"

namespace jaxrank::host {

namespace {

// Distinct values in the order they first occur.
struct Distinct {
  std::span<const int64_t> first;   // where each occurs first
  std::span<const int64_t> number;  // of each value, which distinct one it is
  std::span<const int64_t> counts;
};

// `before` orders all values, `same` says which are equal.
template <typename Before, typename Same>
Distinct distinct(Call& call, int64_t count, Before before, Same same) {
  const std::span<const int64_t> order = sorted_positions(call, count, [&](int64_t a, int64_t b) {
    return before(a, b) || (!before(b, a) && a < b);
  });
  // In a run of equal values the first one stands for all: it is the first to occur.
  auto* leader = call.scratch<int64_t>(count);
  for (int64_t i = 0; i < count; ++i) {
    leader[order[i]] = i && same(order[i - 1], order[i]) ? leader[order[i - 1]] : order[i];
  }
  auto *first = call.scratch<int64_t>(count), *number = call.scratch<int64_t>(count), *counts = call.scratch<int64_t>(count);
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (leader[i] == i) {
      first[found] = i;
      counts[found] = 0;
      number[i] = found++;
    } else {
      number[i] = number[leader[i]];
    }
    ++counts[number[i]];
  }
  const auto size = static_cast<size_t>(found);
  return {{first, size}, {number, static_cast<size_t>(count)}, {counts, size}};
}

// Of a vector; every NaN is a value of its own.
Distinct distinct_values(Call& call, const Tensor& x) {
  return for_any(x.type, [&]<typename T>(std::type_identity<T>) {
    const T* v = x.as<T>();
    const auto before = [v](int64_t a, int64_t b) {
      if constexpr (std::is_floating_point_v<T>) {
        if (v[a] != v[a] || v[b] != v[b]) return v[a] == v[a];  // NaN comes last
      }
      return v[a] < v[b];
    };
    const auto ordered = [&](int64_t a, int64_t b) {
      if constexpr (std::is_floating_point_v<T>) {
        if (v[a] != v[a] && v[b] != v[b]) return false;
      }
      return before(a, b);
    };
    return distinct(call, x.count, ordered, [v](int64_t a, int64_t b) { return v[a] == v[b]; });
  });
}

// Of the `count` slices of `size` elements that lie one after the other. -0.0 and 0.0 are equal, and so are NaN of equal bits.
Distinct distinct_slices(Call& call, const Tensor& slices, int64_t count, int64_t size) {
  return for_any(slices.type, [&]<typename T>(std::type_identity<T>) {
    if constexpr (std::is_same_v<T, Bytes>) {
      const Bytes* v = slices.as<Bytes>();
      return distinct(
          call, count,
          [=](int64_t a, int64_t b) {
            return std::lexicographical_compare(v + a * size, v + (a + 1) * size, v + b * size, v + (b + 1) * size);
          },
          [=](int64_t a, int64_t b) { return std::equal(v + a * size, v + (a + 1) * size, v + b * size); });
    } else {
      T* v = call.scratch<T>(slices.count);
      for (int64_t i = 0; i < slices.count; ++i) {
        if constexpr (std::is_floating_point_v<T>) v[i] = slices.as<T>()[i] + T{0};
        else v[i] = slices.as<T>()[i];
      }
      const auto compare = [=](int64_t a, int64_t b) { return std::memcmp(v + a * size, v + b * size, size * sizeof(T)); };
      return distinct(call, count, [=](int64_t a, int64_t b) { return compare(a, b) < 0; },
                      [=](int64_t a, int64_t b) { return compare(a, b) == 0; });
    }
  });
}

void give_indices(Call& call, int output, Type type, std::span<const int64_t> values) {
  for_index(type, [&]<typename R>(std::type_identity<R>) {
    std::copy(values.begin(), values.end(), call.make<R>(output, {static_cast<int64_t>(values.size())}));
  });
}

template <bool kCounts>
Kernel unique(const Attributes& attributes, const Resources&) {
  return [out_idx = attributes.type("out_idx")](Call& call) {
    const Tensor& x = call.in(0);
    check(x.rank() == 1, "unique of a tensor of rank ", x.rank());
    const Distinct found = distinct_values(call, x);
    Tensor& out = call.make(0, x.type, {static_cast<int64_t>(found.first.size())});
    for_size(x.type, [&]<typename T>(std::type_identity<T>) {
      T* to = static_cast<T*>(out.data);
      for (const int64_t at : found.first) *to++ = static_cast<const T*>(x.data)[at];
    });
    give_indices(call, 1, out_idx, found.number);
    if (kCounts) give_indices(call, 2, out_idx, found.counts);
  };
}

// Distinct slices along an axis.
template <bool kCounts>
Kernel unique_v2(const Attributes& attributes, const Resources&) {
  return [out_idx = attributes.type("out_idx")](Call& call) {
    const Tensor &x = call.in(0), &axis = call.in(1);
    check(axis.count <= 1, "unique along several axes");
    check(axis.count || x.rank() == 1, "unique of a tensor of rank ", x.rank(), " needs an axis");
    const int along = axis.count ? axis_of(integer_at(axis, 0), x.rank()) : 0;
    // The axis in front, so that a slice lies in one piece.
    Shape sizes{x.shape[along]};
    const Strides own = row_major(x.shape);
    Strides strides{own[along]};
    for (int i = 0; i < x.rank(); ++i) {
      if (i == along) continue;
      strides[sizes.rank()] = own[i];
      sizes.push_back(x.shape[i]);
    }
    Tensor front{x.type, sizes, x.count, call.scratch<Item16>(x.count), 0};
    if (x.count) copy_strided(x.type, sizes, x.data, strides, front.data, row_major(sizes));
    const int64_t count = sizes[0], size = sizes.product(1, sizes.rank());
    const Distinct found = x.rank() == 1 ? distinct_values(call, front) : distinct_slices(call, front, count, size);

    Shape shape = x.shape;
    shape[along] = static_cast<int64_t>(found.first.size());
    Tensor& out = call.make(0, x.type, shape);
    const Strides to = row_major(shape);
    Shape slice;
    Strides from{}, into{};
    for (int i = 0; i < x.rank(); ++i) {
      if (i == along) continue;
      from[slice.rank()] = own[i], into[slice.rank()] = to[i];
      slice.push_back(x.shape[i]);
    }
    for (size_t i = 0; i < found.first.size() && out.count; ++i) {
      copy_strided(x.type, slice, element(x, found.first[i] * own[along]), from,
                   element(out, static_cast<int64_t>(i) * to[along]), into);
    }
    give_indices(call, 1, out_idx, found.number);
    if (kCounts) give_indices(call, 2, out_idx, found.counts);
  };
}

// Where each value would go in its sorted row: before or after equal ones. NaN is above all.
template <bool kUpper>
Kernel bound(const Attributes& attributes, const Resources&) {
  return [out_type = attributes.type("out_type")](Call& call) {
    const Tensor &rows = call.in(0), &values = call.in(1);
    const bool fits = rows.rank() == 2 && values.rank() == 2 && rows.shape[0] == values.shape[0] && rows.type == values.type;
    check(fits, "search of ", values.shape, " in ", rows.shape);
    const int64_t width = rows.shape[1], wanted = values.shape[1];
    for_index(out_type, [&]<typename R>(std::type_identity<R>) {
      R* out = call.make<R>(0, values.shape);
      for_number(rows.type, [&]<typename T>(std::type_identity<T>) {
        const auto less = [](T a, T b) { return a < b || (b != b && a == a); };
        for (int64_t i = 0; i < values.count; ++i) {
          const T* row = rows.as<T>() + i / wanted * width;
          const T value = values.as<T>()[i];
          const T* place = kUpper ? std::upper_bound(row, row + width, value, less)
                                  : std::lower_bound(row, row + width, value, less);
          out[i] = static_cast<R>(place - row);
        }
      });
    });
  };
}

}  // namespace

OperatorTable search_operators() {
  return {
      {"unique", unique<false>},
      {"unique_with_counts", unique<true>},
      {"unique_v2", unique_v2<false>},
      {"unique_with_counts_v2", unique_v2<true>},
      {"lower_bound", bound<false>},
      {"upper_bound", bound<true>},
  };
}

}  // namespace jaxrank::host
