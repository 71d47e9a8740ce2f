#include "overlay.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "errors.h"
#include "key_index.h"

namespace jaxrank::tables {
namespace {

constexpr size_t kAtOnce = 64;
constexpr size_t kMaxEntries = UINT32_MAX - 1;
const std::byte kDeletedRow{};

uint64_t tag(uint64_t hash) { return hash >> 32 << 32; }

}  // namespace

Overlay::Overlay(size_t row_bytes, const Overlay* previous, std::span<const Change> changes) : row_bytes_(row_bytes) {
  if (previous != nullptr) default_row_ = previous->default_row_;
  for (const Change& change : changes)
    if (change.default_row != nullptr) default_row_.assign(change.default_row, change.default_row + row_bytes);
}

RowOverlay::RowOverlay(size_t row_bytes, int64_t rows, const RowOverlay* previous, std::span<const Change> changes)
    : Overlay(row_bytes, previous, changes) {
  if (previous != nullptr)
    words_ = previous->words_;
  else
    words_.resize(static_cast<size_t>(rows) / 64 + 1);
  for (const Change& change : changes) {
    if (change.deletions > 0) throw TableMismatch("a delta deletes rows of a table without keys; serve the new version");
    for (size_t i = 0; i < change.changed; ++i) {
      const int64_t id = change.ids[i];
      if (id < 0 || id >= rows)
        throw TableMismatch("a delta changes row " + std::to_string(id) + " of a table without keys that has " + std::to_string(rows) +
                            "; serve the new version");
      words_[static_cast<size_t>(id) / 64].bits |= uint64_t{1} << (id & 63);
    }
  }
  uint64_t before = 0;
  for (ChangedRows::Word& word : words_) {
    word.before = before;
    before += static_cast<uint64_t>(std::popcount(word.bits));
  }
  rows_.resize(before * row_bytes_);
  if (previous != nullptr)
    previous->for_each([&](int64_t id, const std::byte* from) { std::memcpy(row(id), from, row_bytes_); }, {});
  for (const Change& change : changes)
    for (size_t i = 0; i < change.changed; ++i) std::memcpy(row(change.ids[i]), change.rows + i * row_bytes_, row_bytes_);
}

void RowOverlay::for_each(const Changed& changed, const Deleted&) const {
  const std::byte* row = rows_.data();
  for (size_t w = 0; w < words_.size(); ++w)
    for (uint64_t bits = words_[w].bits; bits != 0; bits &= bits - 1, row += row_bytes_)
      changed(static_cast<int64_t>(w * 64) + std::countr_zero(bits), row);
}

const std::byte* KeyOverlay::deleted() { return &kDeletedRow; }

KeyOverlay::KeyOverlay(size_t row_bytes, const KeyOverlay* previous, std::span<const Change> changes)
    : Overlay(row_bytes, previous, changes) {
  size_t most = previous == nullptr ? 0 : previous->entries();
  for (const Change& change : changes) most += change.changed + change.deletions;
  if (most > kMaxEntries) throw TableMismatch("an overlay holds at most 2^32 - 2 ids; write the table again with its changes");
  if (previous != nullptr) {
    entries_ = previous->entries_;
    rows_ = previous->rows_;
  }
  reserve(most);
  for (const Change& change : changes) {
    for (size_t i = 0; i < change.changed; ++i) put(change.ids[i], change.rows + i * row_bytes_);
    for (size_t i = 0; i < change.deletions; ++i) put(change.deleted[i], nullptr);
  }
}

void KeyOverlay::for_each(const Changed& changed, const Deleted& deleted) const {
  for (const Entry& e : entries_) e.at == kDeleted ? deleted(e.key) : changed(e.key, row(e));
}

uint64_t KeyOverlay::bytes() const {
  return entries_.size() * sizeof(Entry) + rows_.size() + (slots_.size() + filter_.size()) * sizeof(uint64_t);
}

void KeyOverlay::reserve(size_t entries) {
  slots_.assign(std::bit_ceil(std::max<size_t>(entries, 4) * 2), 0);
  filter_.assign(slots_.size() / 8, 0);  // 8 bits for each slot, of which at least two for each entry
  entries_.reserve(entries);
  for (size_t i = 0; i < entries_.size(); ++i) {
    const uint64_t hash = mix(entries_[i].key);
    slots_[slot_of(entries_[i].key, hash)] = tag(hash) | (i + 1);
    filter_[(hash >> 6) & (filter_.size() - 1)] |= uint64_t{1} << (hash & 63);
  }
}

size_t KeyOverlay::slot_of(int64_t key, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  for (size_t at = hash & mask;; at = (at + 1) & mask) {
    const uint64_t found = slots_[at];
    if (found == 0 || (tag(found) == tag(hash) && entries_[static_cast<uint32_t>(found) - 1].key == key)) return at;
  }
}

void KeyOverlay::put(int64_t key, const std::byte* row) {
  const uint64_t hash = mix(key);
  const size_t slot = slot_of(key, hash);
  if (slots_[slot] == 0) {
    entries_.push_back({key, kDeleted});
    slots_[slot] = tag(hash) | entries_.size();
    filter_[(hash >> 6) & (filter_.size() - 1)] |= uint64_t{1} << (hash & 63);
  }
  uint32_t& at = entries_[static_cast<uint32_t>(slots_[slot]) - 1].at;
  if (row == nullptr) {
    at = kDeleted;
    return;
  }
  if (at == kDeleted) {
    at = static_cast<uint32_t>(rows_.size() / row_bytes_);
    rows_.resize(rows_.size() + row_bytes_);
  }
  std::memcpy(rows_.data() + at * row_bytes_, row, row_bytes_);
}

const std::byte* KeyOverlay::row(const Entry& entry) const {
  return entry.at == kDeleted ? deleted() : rows_.data() + entry.at * row_bytes_;
}

void KeyOverlay::find(const int64_t* keys, size_t n, const std::byte** rows) const {
  const size_t mask = slots_.size() - 1, words = filter_.size() - 1;
  uint64_t hashes[kAtOnce];
  uint8_t likely[kAtOnce];
  for (size_t start = 0; start < n; start += kAtOnce) {
    const size_t count = std::min(kAtOnce, n - start);
    for (size_t i = 0; i < count; ++i) {
      hashes[i] = mix(keys[start + i]);
      __builtin_prefetch(&filter_[(hashes[i] >> 6) & words]);
      rows[start + i] = nullptr;
    }
    size_t found = 0;
    for (size_t i = 0; i < count; ++i) {
      likely[found] = static_cast<uint8_t>(i);
      found += filter_[(hashes[i] >> 6) & words] >> (hashes[i] & 63) & 1;
    }
    for (size_t j = 0; j < found; ++j) __builtin_prefetch(&slots_[hashes[likely[j]] & mask]);
    for (size_t j = 0; j < found; ++j)
      if (const uint64_t slot = slots_[hashes[likely[j]] & mask]; slot != 0)
        __builtin_prefetch(&entries_[static_cast<uint32_t>(slot) - 1]);
    for (size_t j = 0; j < found; ++j) {
      const size_t i = likely[j];
      if (const uint64_t slot = slots_[slot_of(keys[start + i], hashes[i])]; slot != 0)
        rows[start + i] = row(entries_[static_cast<uint32_t>(slot) - 1]);
    }
  }
}

}  // namespace jaxrank::tables
