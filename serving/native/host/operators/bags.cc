// Embedding bags: the rows of a sparse tensor of ids, each one combined into one embedding.

#include <numeric>

#include "../embedding.h"
#include "../indices.h"

namespace jaxrank::host {

namespace {

using tables::Combiner;

struct Bag {
  TableSlot table;
  Combiner combiner;
  std::optional<double> max_norm;
  bool safe;
  std::optional<int64_t> default_id;
};

// The ids that count, in the order of the rows of the result.
struct Entries {
  std::span<const int64_t> ids;
  std::span<const int64_t> rows;     // where each belongs; they do not decrease
  std::span<const int64_t> from;     // its position among all ids
  std::span<const int64_t> offsets;  // of each row's first entry, and the end
};

// The row of every id, all dimensions but the last taken together.
std::span<const int64_t> rows_of(Call& call, const Tensor& indices, const Tensor& dense_shape, int64_t count) {
  const int64_t rank = indices.shape[1];
  const std::span<const int64_t> all = as_int64(call, indices);
  auto* rows = call.scratch<int64_t>(count);
  for (int64_t i = 0; i < count; ++i) rows[i] = all[i * rank];
  for (int64_t d = 1; d + 1 < rank; ++d) {
    const auto size = static_cast<uint64_t>(integer_at(dense_shape, d));
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = static_cast<int64_t>(static_cast<uint64_t>(rows[i]) * size + static_cast<uint64_t>(all[i * rank + d]));
    }
  }
  return {rows, static_cast<size_t>(count)};
}

template <typename T>
T weight_at(const Tensor& weights, int64_t i) {
  return for_number(weights.type, [&]<typename W>(std::type_identity<W>) { return static_cast<T>(weights.as<W>()[i]); });
}

// Ids that are not below 0, with a weight above 0 unless they are summed; sorted by row, those of a row in their order.
Entries prune(Call& call, std::span<const int64_t> ids, std::span<const int64_t> rows, const Tensor* weights,
              Combiner combiner) {
  auto* from = call.scratch<int64_t>(ids.size());
  size_t kept = 0;
  bool sorted = true;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool weighs = weights == nullptr || combiner == Combiner::kSum || weight_at<double>(*weights, i) > 0;
    from[kept] = static_cast<int64_t>(i);
    kept += ids[i] >= 0 && weighs;
    sorted &= i == 0 || rows[i - 1] <= rows[i];
  }
  if (!sorted) std::sort(from, from + kept, [&](int64_t a, int64_t b) { return rows[a] != rows[b] ? rows[a] < rows[b] : a < b; });
  else if (kept == ids.size()) return {ids, rows, {from, kept}, {}};
  auto* kept_ids = call.scratch<int64_t>(kept);
  auto* kept_rows = call.scratch<int64_t>(kept);
  for (size_t i = 0; i < kept; ++i) kept_ids[i] = ids[from[i]], kept_rows[i] = rows[from[i]];
  return {{kept_ids, kept}, {kept_rows, kept}, {from, kept}, {}};
}

// Where each of `rows` rows begins.
std::span<const int64_t> offsets_of(Call& call, std::span<const int64_t> sorted, int64_t rows) {
  auto* offsets = call.scratch<int64_t>(rows + 1);
  std::fill_n(offsets, rows + 1, int64_t{0});
  for (const int64_t row : sorted) ++offsets[row + 1];
  std::partial_sum(offsets, offsets + rows + 1, offsets);
  return {offsets, static_cast<size_t>(rows) + 1};
}

constexpr int64_t kFilled = -1;  // the position of a default id, whose weight is 1

// A default id in every row that has none.
void fill(Call& call, Entries& entries, int64_t default_id, int64_t rows) {
  int64_t empty = 0;
  for (int64_t row = 0; row < rows; ++row) empty += entries.offsets[row] == entries.offsets[row + 1];
  if (empty == 0) return;
  const size_t count = entries.ids.size() + static_cast<size_t>(empty);
  auto *ids = call.scratch<int64_t>(count), *from = call.scratch<int64_t>(count), *offsets = call.scratch<int64_t>(rows + 1);
  size_t next = 0;
  for (int64_t row = 0; row < rows; ++row) {
    offsets[row] = static_cast<int64_t>(next);
    const auto first = static_cast<size_t>(entries.offsets[row]), last = static_cast<size_t>(entries.offsets[row + 1]);
    if (first == last) ids[next] = default_id, from[next++] = kFilled;
    for (size_t i = first; i < last; ++i) ids[next] = entries.ids[i], from[next++] = entries.from[i];
  }
  offsets[rows] = static_cast<int64_t>(next);
  entries = {{ids, count}, {}, {from, count}, {offsets, static_cast<size_t>(rows) + 1}};
}

template <typename T>
const T* weights_of(Call& call, const Entries& entries, const Tensor* weights) {
  if (weights == nullptr) return nullptr;
  auto* out = call.scratch<T>(entries.from.size());
  for (size_t i = 0; i < entries.from.size(); ++i)
    out[i] = entries.from[i] == kFilled ? T{1} : weight_at<T>(*weights, entries.from[i]);
  return out;
}

// Rows of float64, which tables do not combine themselves.
void combine_doubles(Call& call, const Bag& bag, const Entries& entries, const Tensor* given, double* out) {
  const tables::Table& table = call.table(bag.table);
  const int64_t dim = table.dim(), rows = static_cast<int64_t>(entries.offsets.size()) - 1;
  auto* found = call.scratch<double>(static_cast<int64_t>(entries.ids.size()) * dim);
  take_rows(bag.table, table, entries.ids, found);
  if (bag.max_norm) clip_rows(found, static_cast<int64_t>(entries.ids.size()), dim, *bag.max_norm);
  const double* const weights = weights_of<double>(call, entries, given);
  std::fill_n(out, rows * dim, 0.0);
  for (int64_t row = 0; row < rows; ++row, out += dim) {
    double divisor = 0;
    for (int64_t i = entries.offsets[row]; i < entries.offsets[row + 1]; ++i) {
      const double weight = weights == nullptr ? 1 : weights[i];
      divisor += bag.combiner == Combiner::kSqrtN ? weight * weight : weight;
      for (int64_t c = 0; c < dim; ++c) out[c] += found[i * dim + c] * weight;
    }
    if (bag.combiner == Combiner::kSum) continue;
    if (bag.combiner == Combiner::kSqrtN) divisor = std::sqrt(divisor);
    for (int64_t c = 0; c < dim; ++c) out[c] = divisor == 0 ? 0 : out[c] / divisor;
  }
}

// Without `safe`: the rows are the first dimension up to the last one that has an id, in order.
int64_t last_row(std::span<const int64_t> rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    check(rows[i] >= (i ? rows[i - 1] : 0), "the rows of a bag of ids are not in order");
  }
  return rows.empty() ? 0 : rows.back() + 1;
}

void run(Call& call, const Bag& bag) {
  const Tensor &indices = call.in(0), &ids = call.in(1), &dense_shape = call.in(2);
  const Tensor* weights = call.inputs() > 3 ? &call.in(3) : nullptr;
  check(indices.rank() == 2 && indices.shape[0] == ids.count, ids.count, " ids for indices ", indices.shape);
  check(dense_shape.count == indices.shape[1] && indices.shape[1] >= 2, "a bag of ids must have rows");
  check(weights == nullptr || weights->shape == ids.shape, "weights do not fit the ids");
  const std::span<const int64_t> all = as_int64(call, ids);
  Entries entries;
  Shape shape;
  int64_t rows;
  if (bag.safe) {
    for (int64_t i = 0; i + 1 < dense_shape.count; ++i) shape.push_back(integer_at(dense_shape, i));
    rows = shape.count();
    const std::span<const int64_t> places = rows_of(call, indices, dense_shape, ids.count);
    check_ids(places, rows, "row");
    entries = prune(call, all, places, weights, bag.combiner);
  } else {
    auto* first = call.scratch<int64_t>(ids.count);
    auto* from = call.scratch<int64_t>(ids.count);
    for (int64_t i = 0; i < ids.count; ++i) first[i] = integer_at(indices, i * indices.shape[1]), from[i] = i;
    entries = {all, {first, all.size()}, {from, all.size()}, {}};
    rows = last_row(entries.rows);
    shape = {rows};
  }
  entries.offsets = offsets_of(call, entries.rows, rows);
  if (bag.default_id) fill(call, entries, *bag.default_id, rows);
  const tables::Table& table = call.table(bag.table);
  shape.push_back(table.dim());
  if (bag.table.type == Type::kFloat64) {
    return combine_doubles(call, bag, entries, weights, static_cast<double*>(call.make(0, Type::kFloat64, shape).data));
  }
  const Sink* sink = usable_sink(call.sink(), bag.table, table.dim(), rows);
  if (sink != nullptr && rows != sink->rows) sink = nullptr;  // several bags to a row of the block
  auto* out = static_cast<float*>(give_rows(call, Type::kFloat32, shape, sink).data);
  const tables::Bags bags{entries.ids.data(), entries.offsets.data(), static_cast<size_t>(rows), weights_of<float>(call, entries, weights),
                          bag.combiner, static_cast<float>(bag.max_norm.value_or(0))};
  look_up(call, bag.table, {&table, bags, 0, out, static_cast<size_t>(sink ? sink->stride : table.dim())});
}

Kernel embedding_bag(const Attributes& attributes, const Resources& resources) {
  const std::string& combiner = attributes.text("combiner");
  Bag bag{resources.table(attributes.text("table")),
          combiner == "sum" ? Combiner::kSum : combiner == "mean" ? Combiner::kMean : Combiner::kSqrtN,
          max_norm_of(attributes),
          attributes.flag("safe"),
          std::nullopt};
  if (!is_float(bag.table.type)) refuse<Unsupported>("bags of the table '", bag.table.name, "' of ", name_of(bag.table.type));
  if (bag.safe && !attributes["default_id"].none()) bag.default_id = attributes.integer("default_id");
  return [bag](Call& call) { run(call, bag); };
}

}  // namespace

OperatorTable bag_operators() { return {{"embedding_bag", embedding_bag}}; }

}  // namespace jaxrank::host
