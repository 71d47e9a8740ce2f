// Feature crosses: every combination of one value of each column, row by row, as a joined string or a hash.

#include <charconv>

#include "../../hashes.h"
#include "../sparse.h"

namespace jaxrank::host {

namespace {

// The values of all rows one after the other; row i has the values [starts[i], starts[i + 1]).
struct Column {
  const Tensor* values;
  std::span<const int64_t> starts;
  bool dense;
  int64_t rows() const { return static_cast<int64_t>(starts.size()) - 1; }
  int64_t count(int64_t row) const { return starts[row + 1] - starts[row]; }
  bool strings() const { return values->type == Type::kString; }
};

using Columns = std::span<const Column>;

Column dense_column(Call& call, const Tensor& values) {
  check(values.rank() == 2, "a dense column must be a matrix, found shape ", values.shape);
  const int64_t rows = values.shape[0];
  auto* starts = call.scratch<int64_t>(rows + 1);
  for (int64_t i = 0; i <= rows; ++i) starts[i] = i * values.shape[1];
  return {&values, {starts, static_cast<size_t>(rows + 1)}, true};
}

Column sparse_column(Call& call, const Tensor& indices, const Tensor& values, const Tensor& shape) {
  check(shape.count == 2 && indices.rank() == 2 && indices.shape[1] == 2, "a sparse column must be a matrix");
  check(indices.shape[0] == values.count, indices.shape[0], " sparse indices for ", values.count, " values");
  const std::span<const int64_t> places = as_int64(call, indices);
  const int64_t rows = integer_at(shape, 0);
  check(rows >= 0, "a sparse column of ", rows, " rows");
  auto* starts = call.scratch<int64_t>(rows + 1);
  int64_t row = 0;
  starts[0] = 0;
  for (int64_t i = 0; i < values.count; ++i) {
    const int64_t at = places[2 * i];
    check(row <= at && at < rows, "the rows of a sparse column are out of order or out of range");
    while (row < at) starts[++row] = i;
  }
  while (row < rows) starts[++row] = values.count;
  return {&values, {starts, static_cast<size_t>(rows + 1)}, false};
}

Column ragged_column(Call& call, const Tensor& values, const Tensor& splits) {
  check(values.rank() == 1 && splits.count > 0, "a ragged column must have rank 2");
  const std::span<const int64_t> starts = as_int64(call, splits);
  bool fits = starts.front() == 0 && starts.back() == values.count;
  for (size_t i = 1; fits && i < starts.size(); ++i) fits = starts[i] >= starts[i - 1];
  check(fits, "the row splits of a ragged column do not fit its values");
  return {&values, starts, false};
}

// Columns from indices, values and shapes of sparse columns, then dense ones: inputs from `first` on.
void read_columns(Call& call, int first, int sparse, int dense, Column* out) {
  for (int i = 0; i < sparse; ++i) {
    *out++ = sparse_column(call, call.in(first + i), call.in(first + sparse + i), call.in(first + 2 * sparse + i));
  }
  for (int i = 0; i < dense; ++i) *out++ = dense_column(call, call.in(first + 3 * sparse + i));
}

struct Combinations {
  Columns columns;
  std::span<const int64_t> starts;  // of the combinations of each row
  int64_t total() const { return starts.back(); }

  // Calls `f(number, places)` for every combination, with the position of each column's value. The last column varies fastest.
  template <typename F>
  void each(Call& call, F f) const {
    auto* at = call.scratch<int64_t>(columns.size());
    int64_t number = 0;
    for (size_t row = 0; row + 1 < starts.size(); ++row) {
      for (size_t c = 0; c < columns.size(); ++c) at[c] = columns[c].starts[row];
      for (int64_t n = starts[row + 1] - starts[row]; n > 0; --n) {
        f(number++, at);
        for (size_t c = columns.size(); c-- > 0;) {
          if (++at[c] < columns[c].starts[row + 1]) break;
          at[c] = columns[c].starts[row];
        }
      }
    }
  }
};

Combinations combine(Call& call, Columns columns) {
  check(!columns.empty(), "a cross of no columns");
  const int64_t rows = columns[0].rows();
  for (const Column& column : columns) check(column.rows() == rows, "columns of ", rows, " and ", column.rows(), " rows to cross");
  auto* starts = call.scratch<int64_t>(rows + 1);
  starts[0] = 0;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t count = 1;
    bool overflow = false, empty = false;
    for (const Column& column : columns) {
      overflow |= __builtin_mul_overflow(count, column.count(row), &count);
      empty |= column.count(row) == 0;
    }
    if (empty) count = 0, overflow = false;
    overflow |= __builtin_add_overflow(starts[row], count, &starts[row + 1]);
    check(!overflow && starts[row + 1] < (int64_t{1} << 46), "a cross of too many combinations");
  }
  return {columns, {starts, static_cast<size_t>(rows + 1)}};
}

constexpr uint64_t kMul = 0xc6a4a7935bd1e995ULL;
uint64_t mix(uint64_t value) { return value ^ (value >> 47); }

// TensorFlow's FingerprintCat64.
uint64_t fingerprint_cat(uint64_t first, uint64_t second) {
  const uint64_t result = ((first ^ kMul) ^ (mix(second * kMul) * kMul)) * kMul;
  return mix(mix(result) * kMul);
}

uint64_t number_at(const Tensor& values, int64_t i) { return static_cast<uint64_t>(integer_at(values, i)); }

// Strings by their fingerprint; integers are their own.
uint64_t plain_fingerprint(const Column& column, int64_t i) {
  if (!column.strings()) return number_at(*column.values, i);
  const Bytes text = column.values->as<Bytes>()[i];
  return fingerprint64(text.data(), text.size());
}

struct Salt {
  bool strong;
  uint64_t first, second;
};

uint64_t salted_fingerprint(const Column& column, int64_t i, const Salt& salt) {
  // TensorFlow hashes integers of sparse columns only.
  if (column.dense && !salt.strong) return plain_fingerprint(column, i);
  char low[4];
  Bytes text(low, sizeof low);
  if (column.strings()) {
    text = column.values->as<Bytes>()[i];
  } else {
    // TensorFlow hashes `sizeof(dtype enum)` = 4 bytes of each int64: the low half.
    const auto number = static_cast<uint32_t>(number_at(*column.values, i));
    std::memcpy(low, &number, sizeof low);
  }
  return salt.strong ? siphash(salt.first, salt.second, text.data(), text.size()) : fingerprint64(text.data(), text.size());
}

// The bucket of each combination. `start` is the first fingerprint; without one it is the first column's.
template <typename HashOf>
void write_hashes(Call& call, const Combinations& all, std::optional<uint64_t> start, int64_t buckets, int64_t* out,
                  HashOf hash_of) {
  // Each value is hashed once, however many combinations it is in.
  auto** hashes = call.scratch<uint64_t*>(all.columns.size());
  for (size_t c = 0; c < all.columns.size(); ++c) {
    const int64_t count = all.columns[c].values->count;
    hashes[c] = call.scratch<uint64_t>(count);
    for (int64_t i = 0; i < count; ++i) hashes[c][i] = hash_of(all.columns[c], i);
  }
  const uint64_t modulus = buckets > 0 ? static_cast<uint64_t>(buckets) : (uint64_t{1} << 63) - 1;
  all.each(call, [&](int64_t number, const int64_t* at) {
    size_t c = start ? 0 : 1;
    uint64_t total = start ? *start : hashes[0][at[0]];
    for (; c < all.columns.size(); ++c) total = fingerprint_cat(total, hashes[c][at[c]]);
    out[number] = static_cast<int64_t>(total % modulus);
  });
}

void write_joined(Call& call, const Combinations& all, Bytes separator, Bytes* out) {
  // Integers as text, each once.
  auto** texts = call.scratch<const Bytes*>(all.columns.size());
  for (size_t c = 0; c < all.columns.size(); ++c) {
    const Tensor& values = *all.columns[c].values;
    if (all.columns[c].strings()) {
      texts[c] = values.as<Bytes>();
      continue;
    }
    constexpr int kDigits = 20;
    auto* written = call.scratch<Bytes>(values.count);
    char* digits = call.scratch<char>(values.count * kDigits);
    for (int64_t i = 0; i < values.count; ++i, digits += kDigits) {
      const char* end = for_integer(values.type, [&]<typename T>(std::type_identity<T>) {
        return std::to_chars(digits, digits + kDigits, +values.as<T>()[i]).ptr;
      });
      written[i] = {digits, static_cast<size_t>(end - digits)};
    }
    texts[c] = written;
  }
  all.each(call, [&](int64_t number, const int64_t* at) {
    size_t size = separator.size() * (all.columns.size() - 1);
    for (size_t c = 0; c < all.columns.size(); ++c) size += texts[c][at[c]].size();
    char* const text = call.scratch<char>(static_cast<int64_t>(size));
    char* to = text;
    for (size_t c = 0; c < all.columns.size(); ++c) {
      if (c) to = std::copy(separator.begin(), separator.end(), to);
      to = std::copy(texts[c][at[c]].begin(), texts[c][at[c]].end(), to);
    }
    out[number] = {text, size};
  });
}

// Indices and shape of the sparse matrix of combinations; its values are output 1.
void give_sparse(Call& call, const Combinations& all) {
  int64_t* indices = call.make<int64_t>(0, {all.total(), 2});
  int64_t widest = 0;
  const auto rows = static_cast<int64_t>(all.starts.size()) - 1;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t count = all.starts[row + 1] - all.starts[row];
    widest = std::max(widest, count);
    for (int64_t i = 0; i < count; ++i) *indices++ = row, *indices++ = i;
  }
  int64_t* shape = call.make<int64_t>(2, {2});
  shape[0] = rows, shape[1] = widest;
}

struct Counts {
  int sparse, dense;
  int inputs() const { return 3 * sparse + dense; }
};

Counts counts_of(const Attributes& attributes) {
  return {static_cast<int>(attributes["sparse_types"].list().size()), static_cast<int>(attributes["dense_types"].list().size())};
}

Combinations combinations_of(Call& call, const Counts& counts) {
  check(call.inputs() >= counts.inputs(), call.inputs(), " inputs of a cross");
  auto* columns = call.scratch<Column>(counts.sparse + counts.dense);
  read_columns(call, 0, counts.sparse, counts.dense, columns);
  return combine(call, {columns, static_cast<size_t>(counts.sparse + counts.dense)});
}

constexpr Bytes kSeparator = "_X_";

Kernel sparse_cross(const Attributes& attributes, const Resources&) {
  return [counts = counts_of(attributes), hashed = attributes.flag("hashed_output"), key = attributes.integer("hash_key"),
          buckets = attributes.integer("num_buckets"), texts = attributes.text("internal_type") == "string"](Call& call) {
    const Combinations all = combinations_of(call, counts);
    for (const Column& column : all.columns) {
      check(!texts || column.strings(), "a cross of strings has a column that is not of strings");
    }
    give_sparse(call, all);
    if (hashed) {
      write_hashes(call, all, static_cast<uint64_t>(key), buckets, call.make<int64_t>(1, {all.total()}), plain_fingerprint);
    } else {
      write_joined(call, all, kSeparator, call.make<Bytes>(1, {all.total()}));
    }
  };
}

Kernel sparse_cross_v2(const Attributes& attributes, const Resources&) {
  return [counts = counts_of(attributes)](Call& call) {
    const Combinations all = combinations_of(call, counts);
    give_sparse(call, all);
    write_joined(call, all, scalar_value<Bytes>(call.in(counts.inputs()), "sep"), call.make<Bytes>(1, {all.total()}));
  };
}

Kernel sparse_cross_hashed(const Attributes& attributes, const Resources&) {
  return [counts = counts_of(attributes)](Call& call) {
    const int rest = counts.inputs();
    const Tensor& salt = call.in(rest + 2);
    check(salt.count == 2, "a salt has two values, found ", salt.count);
    const Combinations all = combinations_of(call, counts);
    const Salt key{scalar_value<bool>(call.in(rest + 1), "strong_hash"), number_at(salt, 0), number_at(salt, 1)};
    for (const Column& column : all.columns) {
      // TensorFlow 2.21 crashes on this, so there is nothing to be equal to.
      check(!(key.strong && column.dense && !column.strings()),
            "a strong hash of dense integers is not supported: hash them as strings or sparse");
    }
    give_sparse(call, all);
    write_hashes(call, all, std::nullopt, scalar_integer(call.in(rest), "num_buckets"), call.make<int64_t>(1, {all.total()}),
                 [&](const Column& column, int64_t i) { return salted_fingerprint(column, i, key); });
  };
}

// Values and row splits of the combinations of ragged (R), sparse (S) and dense (D) columns in `input_order`.
Kernel ragged_cross(const Attributes& attributes, const Resources&) {
  const auto ragged = static_cast<int>(attributes["ragged_values_types"].list().size());
  const Counts counts{static_cast<int>(attributes["sparse_values_types"].list().size()),
                      static_cast<int>(attributes["dense_types"].list().size())};
  const bool hashed = attributes.flag("hashed_output"), texts = attributes.text("out_values_type") == "string";
  return [=, order = attributes.text("input_order"), buckets = attributes.integer("num_buckets"),
          key = attributes.integer("hash_key"), splits_type = attributes.type("out_row_splits_type")](Call& call) {
    const int total = ragged + counts.sparse + counts.dense;
    check(call.inputs() == 2 * ragged + counts.inputs() && static_cast<int>(order.size()) == total, call.inputs(),
          " inputs of a cross");
    auto *given = call.scratch<Column>(total), *ordered = call.scratch<Column>(total);
    for (int i = 0; i < ragged; ++i) given[i] = ragged_column(call, call.in(i), call.in(ragged + i));
    read_columns(call, 2 * ragged, counts.sparse, counts.dense, given + ragged);
    int next[] = {0, ragged, ragged + counts.sparse};
    const int ends[] = {ragged, ragged + counts.sparse, total};
    for (int i = 0; i < total; ++i) {
      const int kind = order[i] == 'R' ? 0 : order[i] == 'S' ? 1 : 2;
      check(next[kind] < ends[kind], "an input order that does not fit the columns");
      ordered[i] = given[next[kind]++];
    }
    const Combinations all = combine(call, {ordered, static_cast<size_t>(total)});
    if (hashed) {
      write_hashes(call, all, static_cast<uint64_t>(key), buckets, call.make<int64_t>(0, {all.total()}), plain_fingerprint);
    } else {
      check(texts, "a cross that is not hashed has strings");
      write_joined(call, all, kSeparator, call.make<Bytes>(0, {all.total()}));
    }
    for_index(splits_type, [&]<typename S>(std::type_identity<S>) {
      S* splits = call.make<S>(1, {static_cast<int64_t>(all.starts.size())});
      for (const int64_t start : all.starts) *splits++ = static_cast<S>(start);
    });
  };
}

}  // namespace

OperatorTable cross_operators() {
  return {
      {"sparse_cross", sparse_cross},
      {"sparse_cross_v2", sparse_cross_v2},
      {"sparse_cross_hashed", sparse_cross_hashed},
      {"ragged_cross", ragged_cross},
  };
}

}  // namespace jaxrank::host
