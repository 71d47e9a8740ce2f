// Static lookup tables: keys to values, with a default for unknown keys.
#pragma once

#include <memory>
#include <vector>

#include "tensor.h"

namespace jaxrank::host {

// Strings end to end in memory that someone else owns: string i is the bytes [offsets[i], offsets[i + 1]).
struct StringList {
  const char* text = nullptr;
  std::span<const int64_t> offsets;
  Bytes operator[](size_t i) const { return {text + offsets[i], static_cast<size_t>(offsets[i + 1] - offsets[i])}; }
};

// Keys are strings or integers, values strings, integers or float32. Reads memory of the bundle that it does not own.
class Vocabulary {
 public:
  struct Keys {
    bool strings = false;
    StringList texts;
    std::vector<int64_t> numbers;
    size_t size() const { return strings ? texts.offsets.size() - 1 : numbers.size(); }
  };
  struct Values {
    Type type = Type::kInt64;
    const void* data = nullptr;  // unless they are strings
    StringList texts;
    std::string default_value;  // as the bytes of one value, or the string
  };
  // Throws `Unsupported` for more keys than 2^31.
  Vocabulary(Keys keys, Values values);

  Type value_type() const { return values_.type; }
  bool has_string_keys() const { return keys_.strings; }

  // Writes the values of the keys [first, last) to their places in `out`, which has room for values of `value_type()` for all
  // keys. Refuses keys of another type.
  void find(const Tensor& keys, int64_t first, int64_t last, void* out) const;

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  struct Slot {
    uint32_t tag;    // the upper half of the key's hash
    uint32_t entry;  // kNone where the slot is free
  };
  template <typename Key, typename Give>
  void find_each(std::span<const Key> keys, Give give) const;
  // Calls `give(i, entry)` for every key of a range.
  template <typename Give>
  void dispatch(const Tensor& keys, int64_t first, int64_t last, Give give) const;

  Keys keys_;
  Values values_;
  std::vector<Slot> slots_;  // open addressing, at most half full
  uint64_t mask_;
};

}  // namespace jaxrank::host
