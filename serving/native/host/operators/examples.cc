// Serialized tf.Example messages into tensors: dense features of fixed or open length, sparse ones, and ragged ones.

#include "../../hashes.h"
#include "../example_reader.h"
#include "../layout.h"

namespace jaxrank::host {

namespace {

ListKind kind_of(Type type) {
  return type == Type::kString ? ListKind::kBytes : type == Type::kFloat32 ? ListKind::kFloat : ListKind::kInt64;
}

// Keys to look for, and the values of each in every example.
class Features {
 public:
  Features(Call& call, int64_t keys, int64_t examples) : call_(call), keys_(keys) {
    size_t slots = 4;
    while (slots < static_cast<size_t>(2 * keys)) slots *= 2;
    mask_ = slots - 1;
    slots_ = call.scratch<int32_t>(static_cast<int64_t>(slots));
    std::fill_n(slots_, slots, -1);
    names_ = call.scratch<Bytes>(keys);
    values_ = call.scratch<FeatureValues>(keys * examples);
    std::fill_n(values_, keys * examples, FeatureValues{});
  }

  // The number of a key; equal keys have one.
  int64_t add(Bytes key) {
    int32_t& slot = find(key);
    if (slot < 0) {
      names_[count_] = key;
      slot = static_cast<int32_t>(count_++);
    }
    return slot;
  }

  void read(int64_t example, Bytes serialized) {
    struct State {
      Features& features;
      int64_t example;
    } state{*this, example};
    const bool whole = read_example(call_, serialized, [s = &state](Bytes key, const FeatureValues& values) {
      const int32_t number = s->features.find(key);
      if (number >= 0) s->features.at(s->example, number) = values;
    });
    check(whole, "example ", example, " is not a serialized tf.Example");
  }

  // Null where the example does not have the feature.
  const FeatureValues* values(int64_t example, int64_t number, Type type) {
    const FeatureValues& found = at(example, number);
    if (found.kind == ListKind::kNone) return nullptr;
    check(found.kind == kind_of(type), "example ", example, ": feature ", Repr{names_[number]}, " is a ", name_of(found.kind),
          ", expected ", name_of(type));
    return &found;
  }

  Bytes name(int64_t number) const { return names_[number]; }

 private:
  FeatureValues& at(int64_t example, int64_t number) { return values_[example * keys_ + number]; }
  int32_t& find(Bytes key) {
    uint64_t slot = fingerprint64(key.data(), key.size()) & mask_;
    while (slots_[slot] >= 0 && names_[slots_[slot]] != key) slot = (slot + 1) & mask_;
    return slots_[slot];
  }

  Call& call_;
  int64_t keys_, count_ = 0;
  uint64_t mask_;
  int32_t* slots_;
  Bytes* names_;
  FeatureValues* values_;
};

// What to make of the examples; keys are inputs of the operator, or attributes.
struct Wanted {
  std::vector<Type> sparse, ragged, ragged_splits;
  std::vector<std::vector<int64_t>> dense_shapes;
  int outputs() const { return static_cast<int>(3 * sparse.size() + dense_shapes.size() + 2 * ragged.size()); }
};

// Keys and defaults of one run, and whether `serialized` is one example without a batch dimension.
struct Given {
  const Bytes *sparse_keys, *dense_keys, *ragged_keys;
  int first_default;
  bool single;
};

class Parser {
 public:
  Parser(Call& call, const Wanted& wanted, const Given& given)
      : call_(call),
        wanted_(wanted),
        given_(given),
        examples_(call.in(0).count),
        features_(call, static_cast<int64_t>(wanted.sparse.size() + wanted.dense_shapes.size() + wanted.ragged.size()), examples_),
        lengths_(call.scratch<int64_t>(examples_ + 1)) {
    check(call.outputs() == wanted.outputs(), call.outputs(), " outputs, ", wanted.outputs(), " expected");
    numbers_ = call.scratch<int64_t>(wanted.outputs());
    int64_t n = 0;
    for (size_t i = 0; i < wanted.sparse.size(); ++i) numbers_[n++] = features_.add(given.sparse_keys[i]);
    for (size_t i = 0; i < wanted.dense_shapes.size(); ++i) numbers_[n++] = features_.add(given.dense_keys[i]);
    for (size_t i = 0; i < wanted.ragged.size(); ++i) numbers_[n++] = features_.add(given.ragged_keys[i]);
    int64_t example = 0;
    for (const Bytes serialized : call.in(0).values<Bytes>()) features_.read(example++, serialized);
  }

  void run() {
    const int sparse = static_cast<int>(wanted_.sparse.size()), dense = static_cast<int>(wanted_.dense_shapes.size());
    const int ragged = static_cast<int>(wanted_.ragged.size());
    int64_t n = 0;
    for (int i = 0; i < sparse; ++i) give_sparse(numbers_[n++], wanted_.sparse[i], i, sparse + i, 2 * sparse + i);
    for (int i = 0; i < dense; ++i) give_dense(numbers_[n++], call_.in(given_.first_default + i), wanted_.dense_shapes[i], 3 * sparse + i);
    const int first = 3 * sparse + dense;
    for (int i = 0; i < ragged; ++i) {
      give_ragged(numbers_[n++], wanted_.ragged[i], wanted_.ragged_splits[i], first + i, first + ragged + i);
    }
  }

 private:
  // Sets `lengths_` to the values of every example; their number.
  int64_t measure(int64_t number, Type type) {
    int64_t total = 0;
    for (int64_t i = 0; i < examples_; ++i) {
      const FeatureValues* found = features_.values(i, number, type);
      lengths_[i] = found ? found->count : 0;
      total += lengths_[i];
    }
    return total;
  }

  int64_t longest() const { return examples_ ? *std::max_element(lengths_, lengths_ + examples_) : 0; }

  // Writes the values of an example to a tensor's memory, `offset` elements into it.
  void write(const FeatureValues* values, Tensor& out, int64_t offset) {
    if (values == nullptr) return;
    if (out.type == Type::kString) values->write(static_cast<Bytes*>(out.data) + offset);
    else if (out.type == Type::kFloat32) values->write(static_cast<float*>(out.data) + offset);
    else values->write(static_cast<int64_t*>(out.data) + offset);
  }

  void write_flat(int64_t number, Tensor& out) {
    int64_t at = 0;
    for (int64_t i = 0; i < examples_; ++i) {
      write(features_.values(i, number, out.type), out, at);
      at += lengths_[i];
    }
  }

  void give_sparse(int64_t number, Type type, int indices, int values, int shape) {
    const int64_t total = measure(number, type), rank = given_.single ? 1 : 2;
    int64_t* to = call_.make<int64_t>(indices, {total, rank});
    for (int64_t i = 0; i < examples_; ++i) {
      for (int64_t j = 0; j < lengths_[i]; ++j) {
        if (!given_.single) *to++ = i;
        *to++ = j;
      }
    }
    write_flat(number, call_.make(values, type, {total}));
    int64_t* sizes = call_.make<int64_t>(shape, {rank});
    if (!given_.single) *sizes++ = examples_;
    *sizes = longest();
  }

  Shape with_batch(const Shape& shape) const {
    if (given_.single) return shape;
    Shape all{examples_};
    all.append(shape.begin(), shape.end());
    return all;
  }

  void give_dense(int64_t number, const Tensor& filling, const std::vector<int64_t>& sizes, int output) {
    Shape shape{std::span<const int64_t>(sizes)};
    if (shape.rank() && shape[0] == -1) return give_open(number, filling, shape, output);
    const int64_t size = shape.count();
    Tensor& out = call_.make(output, filling.type, with_batch(shape));
    const size_t bytes = size * item_size(out.type);
    for (int64_t i = 0; i < examples_; ++i) {
      const FeatureValues* found = features_.values(i, number, filling.type);
      if (found == nullptr) {
        const bool fits = filling.count == size && (size != 0 || filling.rank() != 0);
        check(fits || filling.count, "example ", i, ": feature ", Repr{features_.name(number)}, " (", name_of(filling.type),
              ") is required but is not there");
        check(fits, "the default of feature ", Repr{features_.name(number)}, " has ", filling.count, " values, expected ", size);
        if (bytes) std::memcpy(element(out, i * size), filling.data, bytes);
      } else {
        check(found->count == size, "example ", i, ": feature ", Repr{features_.name(number)}, " has ", found->count,
              " values, not ", size);
        write(found, out, i * size);
      }
    }
  }

  // An open first dimension is as long as the longest and padded with the default.
  void give_open(int64_t number, const Tensor& filling, Shape shape, int output) {
    const int64_t inner = shape.product(1, shape.rank()), each = std::max<int64_t>(inner, 1);
    measure(number, filling.type);
    for (int64_t i = 0; i < examples_; ++i) {
      check(lengths_[i] % each == 0, "feature ", Repr{features_.name(number)}, " is not made of ", inner, " values each");
    }
    const int64_t width = longest();
    shape[0] = width / each;
    Shape flat{examples_, width};
    Tensor& out = call_.make(output, filling.type, flat);
    constexpr Item16 kZero{};  // of every type: 0, or the empty string
    fill_items(out, filling.count ? filling.data : &kZero);
    for (int64_t i = 0; i < examples_; ++i) write(features_.values(i, number, filling.type), out, i * width);
    const Shape whole = with_batch(shape);
    check(whole.count() == out.count, "feature ", Repr{features_.name(number)}, " has no values of shape ", shape);
    out.shape = whole;
  }

  void give_ragged(int64_t number, Type type, Type splits_type, int values, int splits) {
    const int64_t total = measure(number, type);
    write_flat(number, call_.make(values, type, {total}));
    for_index(splits_type, [&]<typename S>(std::type_identity<S>) {
      if (given_.single) {
        call_.make<S>(splits, {0});
        return;
      }
      S* to = call_.make<S>(splits, {examples_ + 1});
      int64_t at = 0;
      *to++ = 0;
      for (int64_t i = 0; i < examples_; ++i) *to++ = static_cast<S>(at += lengths_[i]);
    });
  }

  Call& call_;
  const Wanted& wanted_;
  const Given& given_;
  int64_t examples_;
  Features features_;
  int64_t* lengths_;
  int64_t* numbers_;
};

std::vector<Type> types_of(const Attribute& names, bool values) {
  std::vector<Type> found;
  for (const std::string& name : names.texts()) {
    const std::optional<Type> type = type_named(name);
    if (!type || (values && *type != Type::kString && *type != Type::kFloat32 && *type != Type::kInt64)) {
      refuse<Unsupported>("a feature of dtype ", name);
    }
    found.push_back(*type);
  }
  return found;
}

Wanted wanted_of(const Attributes& attributes) {
  Wanted wanted{types_of(attributes["sparse_types"], true), {}, {}, {}};
  for (const Attribute& shape : attributes["dense_shapes"].list()) wanted.dense_shapes.push_back(shape.integers());
  return wanted;
}

void check_defaults(Call& call, const Wanted& wanted, int first) {
  const auto dense = static_cast<int>(wanted.dense_shapes.size());
  check(call.inputs() == first + dense, call.inputs(), " inputs, ", first + dense, " expected");
  for (int i = 0; i < dense; ++i) {
    const Type type = call.in(first + i).type;
    check(type == Type::kString || type == Type::kFloat32 || type == Type::kInt64, "a feature of dtype ", name_of(type));
  }
}

Kernel parse_example_v2(const Attributes& attributes, const Resources&) {
  Wanted wanted = wanted_of(attributes);
  wanted.ragged = types_of(attributes["ragged_value_types"], true);
  wanted.ragged_splits = types_of(attributes["ragged_split_types"], false);
  if (wanted.ragged.size() != wanted.ragged_splits.size()) refuse<Unsupported>("ragged types of different numbers");
  return [wanted](Call& call) {
    const Tensor& serialized = call.in(0);
    check(serialized.rank() <= 1, "serialized examples of shape ", serialized.shape);
    check_defaults(call, wanted, 5);
    const Tensor &sparse = call.in(2), &dense = call.in(3), &ragged = call.in(4);
    const bool fits = sparse.count == static_cast<int64_t>(wanted.sparse.size()) &&
                      dense.count == static_cast<int64_t>(wanted.dense_shapes.size()) &&
                      ragged.count == static_cast<int64_t>(wanted.ragged.size());
    check(fits, "keys that do not fit the types");
    Parser(call, wanted, {sparse.as<Bytes>(), dense.as<Bytes>(), ragged.as<Bytes>(), 5, serialized.rank() == 0}).run();
  };
}

// The inputs are the sparse keys, the dense keys, the defaults.
Kernel parse_example(const Attributes& attributes, const Resources&) {
  return [wanted = wanted_of(attributes)](Call& call) {
    check(call.in(0).rank() == 1, "serialized examples of shape ", call.in(0).shape);
    const auto sparse = static_cast<int>(wanted.sparse.size()), dense = static_cast<int>(wanted.dense_shapes.size());
    check_defaults(call, wanted, 2 + sparse + dense);
    auto* keys = call.scratch<Bytes>(sparse + dense);
    for (int i = 0; i < sparse + dense; ++i) {
      check(call.in(2 + i).count > 0, "a key of no value");
      keys[i] = call.in(2 + i).as<Bytes>()[0];
    }
    Parser(call, wanted, {keys, keys + sparse, nullptr, 2 + sparse + dense, false}).run();
  };
}

// One example, without the batch dimension.
Kernel parse_single_example(const Attributes& attributes, const Resources&) {
  return [wanted = wanted_of(attributes), sparse = attributes["sparse_keys"].texts(),
          dense = attributes["dense_keys"].texts()](Call& call) {
    check(call.in(0).rank() == 0, "one serialized example is expected, found shape ", call.in(0).shape);
    check(sparse.size() == wanted.sparse.size() && dense.size() == wanted.dense_shapes.size(), "keys that do not fit the types");
    check_defaults(call, wanted, 1);
    auto* keys = call.scratch<Bytes>(static_cast<int64_t>(sparse.size() + dense.size()));
    std::copy(dense.begin(), dense.end(), std::copy(sparse.begin(), sparse.end(), keys));
    Parser(call, wanted, {keys, keys + sparse.size(), nullptr, 1, true}).run();
  };
}

}  // namespace

OperatorTable example_operators() {
  return {
      {"parse_example", parse_example},
      {"parse_example_v2", parse_example_v2},
      {"parse_single_example", parse_single_example},
  };
}

}  // namespace jaxrank::host
