// int64 keys to rows, without collisions: a slot points to a row, whose key is compared in full.
//
// Open addressing with linear probing. A key's hash is `mix`, which is a bijection; its home slot is the upper part of
// hash * homes, so that keys in the order of their hashes fill the slots from front to back, and a writer never needs the
// whole index in memory. A slot is 48 bits: 0 if empty, else row + 1 in the low 36 and the low 12 bits of the hash above.
#pragma once

#include <cstdint>
#include <cstring>

#include "format.h"

namespace jaxrank::tables {

// The finalizer of MurmurHash3 (Austin Appleby, public domain).
inline uint64_t mix(int64_t key) {
  auto h = static_cast<uint64_t>(key);
  h = (h ^ h >> 33) * 0xff51afd7ed558ccdULL;
  h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53ULL;
  return h ^ h >> 33;
}

class KeyIndex {
 public:
  static constexpr int kRowBits = 36;
  static constexpr uint64_t kRowMask = (uint64_t{1} << kRowBits) - 1;
  static constexpr uint64_t kTagMask = 0xfff;

  KeyIndex(const std::byte* file, const Header& h)
      : slots_(file + h.slots_offset), keys_(file + h.keys_offset), homes_(h.homes), end_(h.slots), rows_(h.rows) {}

  uint64_t home(uint64_t hash) const {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(hash) * homes_ >> 64);
  }
  const std::byte* slot(uint64_t at) const { return slots_ + at * kSlotBytes; }
  const std::byte* key(int64_t row) const { return keys_ + row * static_cast<int64_t>(sizeof(int64_t)); }

  // The row of a key; -1 without one. `touch(data, size)` comes before every read. A damaged index gives a wrong row, or
  // -1, and never reads outside of its sections.
  template <typename Touch>
  int64_t find(int64_t wanted, uint64_t hash, Touch touch) const {
    for (uint64_t at = home(hash); at < end_; ++at) {
      touch(slot(at), kSlotBytes);
      const uint64_t found = read(at);
      if (found == 0) return -1;
      const auto row = static_cast<int64_t>((found & kRowMask) - 1);
      if (found >> kRowBits != (hash & kTagMask) || row < 0 || row >= rows_) continue;
      touch(key(row), sizeof(int64_t));
      int64_t stored;
      std::memcpy(&stored, key(row), sizeof stored);
      if (stored == wanted) return row;
    }
    return -1;
  }

  // The first slot of a key's run that has its tag, as a row to fetch ahead; -1 without one.
  int64_t likely(uint64_t hash) const {
    for (uint64_t at = home(hash); at < end_; ++at) {
      const uint64_t found = read(at);
      if (found == 0) return -1;
      const auto row = static_cast<int64_t>((found & kRowMask) - 1);
      if (found >> kRowBits == (hash & kTagMask)) return row < rows_ ? row : -1;
    }
    return -1;
  }

 private:
  uint64_t read(uint64_t at) const {
    uint64_t value;
    std::memcpy(&value, slot(at), sizeof value);
    return value & ((uint64_t{1} << 48) - 1);
  }

  const std::byte* slots_;
  const std::byte* keys_;
  uint64_t homes_, end_;
  int64_t rows_;
};

}  // namespace jaxrank::tables
