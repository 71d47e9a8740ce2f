#include "vocabulary.h"

#include <bit>

#include "../hashes.h"

namespace jaxrank::host {

namespace {

uint64_t hash_of(Bytes key) { return fingerprint64(key.data(), key.size()); }

uint64_t hash_of(int64_t key) {
  // Fibonacci hashing with both halves mixed: the vocabulary's own keys, so nobody can choose them to collide.
  uint64_t h = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15ULL;
  h ^= h >> 32;
  return h * 0xd6e8feb86659fd93ULL;
}

bool same(const Vocabulary::Keys& keys, uint32_t entry, Bytes key) { return keys.texts[entry] == key; }
bool same(const Vocabulary::Keys& keys, uint32_t entry, int64_t key) { return keys.numbers[entry] == key; }

}  // namespace

Vocabulary::Vocabulary(Keys keys, Values values) : keys_(std::move(keys)), values_(std::move(values)) {
  const size_t size = keys_.size();
  if (size >= (size_t{1} << 31)) refuse<Unsupported>("a vocabulary of ", size, " keys; at most 2^31 are supported");
  slots_.assign(std::bit_ceil(std::max<size_t>(2 * size, 2)), Slot{0, kNone});
  mask_ = slots_.size() - 1;
  for (size_t i = 0; i < size; ++i) {
    const uint64_t hash = keys_.strings ? hash_of(keys_.texts[i]) : hash_of(keys_.numbers[i]);
    uint64_t at = hash & mask_;
    while (slots_[at].entry != kNone) at = (at + 1) & mask_;
    slots_[at] = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(i)};
  }
}

// Calls `give(i, entry)` for every key, `kNone` for an unknown one. A vocabulary is larger than the caches: the slots of a
// few keys are on their way before the first one is looked at.
template <typename Key, typename Give>
void Vocabulary::find_each(std::span<const Key> keys, Give give) const {
  constexpr size_t kAhead = 16;
  uint64_t hashes[kAhead];
  for (size_t start = 0; start < keys.size(); start += kAhead) {
    const size_t n = std::min(kAhead, keys.size() - start);
    for (size_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<Key, Bytes>) hashes[i] = hash_of(keys[start + i]);
      else hashes[i] = hash_of(static_cast<int64_t>(keys[start + i]));
      __builtin_prefetch(&slots_[hashes[i] & mask_]);
    }
    for (size_t i = 0; i < n; ++i) {
      const auto tag = static_cast<uint32_t>(hashes[i] >> 32);
      uint64_t at = hashes[i] & mask_;
      while (slots_[at].entry != kNone) {
        if constexpr (std::is_same_v<Key, Bytes>) {
          if (slots_[at].tag == tag && same(keys_, slots_[at].entry, keys[start + i])) break;
        } else {
          if (slots_[at].tag == tag && same(keys_, slots_[at].entry, static_cast<int64_t>(keys[start + i]))) break;
        }
        at = (at + 1) & mask_;
      }
      give(start + i, slots_[at].entry);
    }
  }
}

template <typename Give>
void Vocabulary::dispatch(const Tensor& keys, int64_t first, int64_t last, Give give) const {
  const auto range = [&](auto all) { return all.subspan(static_cast<size_t>(first), static_cast<size_t>(last - first)); };
  const auto give_at = [&](size_t i, uint32_t entry) { give(static_cast<size_t>(first) + i, entry); };
  if (keys_.strings) {
    find_each(range(keys.values<Bytes>()), give_at);
  } else {
    for_integer(keys.type, [&]<typename K>(std::type_identity<K>) { find_each(range(keys.values<K>()), give_at); });
  }
}

void Vocabulary::find(const Tensor& keys, int64_t first, int64_t last, void* out) const {
  if (values_.type == Type::kString) {
    return dispatch(keys, first, last, [&](size_t i, uint32_t entry) {
      static_cast<Bytes*>(out)[i] = entry == kNone ? Bytes(values_.default_value) : values_.texts[entry];
    });
  }
  for_number(values_.type, [&]<typename V>(std::type_identity<V>) {
    V missing;
    std::memcpy(&missing, values_.default_value.data(), sizeof missing);
    const V* const values = static_cast<const V*>(values_.data);
    dispatch(keys, first, last, [=](size_t i, uint32_t entry) {
      static_cast<V*>(out)[i] = entry == kNone ? missing : values[entry];
    });
  });
}

}  // namespace jaxrank::host
