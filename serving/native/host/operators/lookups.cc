// Lookups in vocabularies and embedding tables, one value for each key. Each stands for a sub-graph of TensorFlow ops.

#include "../embedding.h"
#include "../indices.h"
#include "../layout.h"
#include "../vocabulary.h"

namespace jaxrank::host {

namespace {

// Of finding a key, when its slot, its text and the vocabulary's are not in a cache.
constexpr int64_t kNanosecondsOfKey = 60;

// One more entry that wins over the vocabulary's.
struct Override {
  std::string text;
  int64_t key;
  double number;
  int64_t integer;
};

void overrule(const Tensor& keys, Tensor& found, const Override& entry) {
  for_number(found.type, [&]<typename V>(std::type_identity<V>) {
    const V value = std::is_floating_point_v<V> ? static_cast<V>(entry.number) : static_cast<V>(entry.integer);
    V* out = static_cast<V*>(found.data);
    if (keys.type == Type::kString) {
      for (int64_t i = 0; i < keys.count; ++i) {
        if (keys.as<Bytes>()[i] == entry.text) out[i] = value;
      }
    } else {
      for (int64_t i = 0; i < keys.count; ++i) {
        if (integer_at(keys, i) == entry.key) out[i] = value;
      }
    }
  });
}

Kernel vocabulary_lookup(const Attributes& attributes, const Resources& resources) {
  const std::shared_ptr<const Vocabulary> vocabulary = resources.vocabulary(attributes.text("vocabulary"));
  std::optional<Override> entry;
  if (!attributes["override_key"].none()) {
    if (vocabulary->value_type() == Type::kString) refuse<Unsupported>("an override in a vocabulary of strings");
    entry.emplace();
    if (vocabulary->has_string_keys()) entry->text = attributes.text("override_key");
    else entry->key = attributes.integer("override_key");
    entry->number = attributes["override_value"].number();
    entry->integer = static_cast<int64_t>(entry->number);
    if (std::holds_alternative<int64_t>(attributes["override_value"].value)) {
      entry->integer = attributes.integer("override_value");
    }
  }
  return [vocabulary, entry](Call& call) {
    const Tensor& keys = call.in(0);
    check((keys.type == Type::kString) == vocabulary->has_string_keys(), "keys of ", name_of(keys.type),
          " for a vocabulary of ", vocabulary->has_string_keys() ? "strings" : "integers");
    Tensor& found = call.make(0, vocabulary->value_type(), keys.shape);
    call.split(keys.count, kNanosecondsOfKey, [&](int64_t first, int64_t last) { vocabulary->find(keys, first, last, found.data); });
    if (entry) overrule(keys, found, *entry);
  };
}

struct Lookup {
  TableSlot table;
  bool wrap;
  std::optional<double> max_norm;
  std::optional<std::vector<int64_t>> row_shape;
};

// The ids as row numbers: negative ones count from the end.
std::span<const int64_t> wrapped(Call& call, std::span<const int64_t> ids, int64_t rows) {
  auto* out = call.scratch<int64_t>(static_cast<int64_t>(ids.size()));
  std::transform(ids.begin(), ids.end(), out, [rows](int64_t id) { return id < 0 ? id + rows : id; });
  return {out, ids.size()};
}

// float32 rows, where they belong.
void look_rows_up(Call& call, const Lookup& lookup, std::span<const int64_t> ids, const Shape& shape, int64_t lowest) {
  const tables::Table& table = call.table(lookup.table);
  const auto count = static_cast<int64_t>(ids.size());
  const Sink* sink = usable_sink(call.sink(), lookup.table, table.dim(), count);
  if (sink != nullptr && lookup.max_norm && count != sink->rows) sink = nullptr;  // a bag is one row of a block
  auto* out = static_cast<float*>(give_rows(call, Type::kFloat32, shape, sink).data);
  tables::Lookup found{&table, {ids.data(), nullptr, 0}, ids.size(), out, static_cast<size_t>(sink ? sink->stride : table.dim())};
  if (sink != nullptr) found.together = static_cast<size_t>(count / sink->rows);
  if (lookup.max_norm) {
    // Rows are clipped where they are combined: bags of one id each.
    auto* offsets = call.scratch<int64_t>(count + 1);
    std::iota(offsets, offsets + count + 1, 0);
    found.bags = {ids.data(), offsets, ids.size(), nullptr, tables::Combiner::kSum, static_cast<float>(*lookup.max_norm)};
  }
  look_up(call, lookup.table, found, lowest);
}

Kernel embedding_lookup(const Attributes& attributes, const Resources& resources) {
  Lookup lookup{resources.table(attributes.text("table")), attributes.text("negative_ids") == "wrap", max_norm_of(attributes), std::nullopt};
  if (!attributes["row_shape"].none()) lookup.row_shape = attributes["row_shape"].integers();
  return [lookup](Call& call) {
    const Tensor& given = call.in(0);
    const tables::Table& table = call.table(lookup.table);
    Shape shape = given.shape;
    if (lookup.row_shape) shape.append(lookup.row_shape->data(), lookup.row_shape->data() + lookup.row_shape->size());
    else shape.push_back(table.dim());
    check(shape.count() == given.count * table.dim(), "rows of ", table.dim(), " values do not have the shape of ", shape);
    const int64_t lowest = lookup.wrap ? -table.rows() : 0;
    std::span<const int64_t> ids = as_int64(call, given);
    if (lookup.wrap) ids = wrapped(call, ids, table.rows());
    if (lookup.table.type == Type::kFloat32) return look_rows_up(call, lookup, ids, shape, lowest);
    Tensor& out = call.make(0, lookup.table.type, shape);
    take_rows(lookup.table, table, ids, out.data, lowest);
    if (lookup.max_norm)
      for_float(out.type, [&]<typename T>(std::type_identity<T>) {
        clip_rows(static_cast<T*>(out.data), given.count, table.dim(), static_cast<T>(*lookup.max_norm));
      });
  };
}

Kernel wrap_negative(const Attributes& attributes, const Resources&) {
  return [rows = attributes.integer("rows")](Call& call) {
    const Tensor& ids = call.in(0);
    for_integer(ids.type, [&]<typename I>(std::type_identity<I>) {
      I* out = call.make<I>(0, ids.shape);
      for (const I id : ids.values<I>()) {
        *out++ = id < 0 ? static_cast<I>(static_cast<uint64_t>(id) + static_cast<uint64_t>(rows)) : id;
      }
    });
  };
}

Kernel ids_within(const Attributes& attributes, const Resources&) {
  return [rows = attributes.integer("rows")](Call& call) {
    const Tensor& ids = call.in(0);
    for_integer(ids.type, [&]<typename I>(std::type_identity<I>) { check_ids(ids.values<I>(), rows, "id"); });
    call.share(0, ids, ids.shape);
  };
}

// `[..., depth]` float32 with 1.0 at every id of the last axis; ids outside of the depth are dropped.
Kernel multi_hot(const Attributes& attributes, const Resources&) {
  return [depth = attributes.integer("depth")](Call& call) {
    const Tensor& ids = call.in(0);
    check(ids.rank() >= 1, "a multi-hot of a scalar");
    Shape shape = ids.shape;
    shape[ids.rank() - 1] = depth;
    const int64_t per_row = ids.shape[ids.rank() - 1];
    float* out = call.make<float>(0, shape);
    std::fill_n(out, shape.count(), 0.0f);
    for_integer(ids.type, [&]<typename I>(std::type_identity<I>) {
      const std::span<const I> all = ids.values<I>();
      for (int64_t i = 0; i < ids.count; ++i) {
        const auto id = static_cast<int64_t>(all[i]);
        if (0 <= id && id < depth) out[i / per_row * depth + id] = 1.0f;
      }
    });
  };
}

}  // namespace

OperatorTable lookup_operators() {
  return {
      {"vocabulary_lookup", vocabulary_lookup},
      {"embedding_lookup", embedding_lookup},
      {"wrap_negative", wrap_negative},
      {"ids_within", ids_within},
      {"multi_hot", multi_hot},
  };
}

}  // namespace jaxrank::host
