// Rows that changed since a table's file was written, in memory, found before the file is asked. Immutable: a new state of the
// table is another overlay, and who reads the old one keeps it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "huge_pages.h"
#include "kernels.h"

namespace jaxrank::tables {

// One step of a table. All arrays belong to the caller.
struct Change {
  const int64_t* ids;
  const std::byte* rows;  // one for each id, beside each other
  size_t changed;
  const int64_t* deleted;
  size_t deletions;
  const std::byte* default_row = nullptr;  // none: it stays
};

class Overlay {
 public:
  virtual ~Overlay() = default;
  Overlay(const Overlay&) = delete;
  Overlay& operator=(const Overlay&) = delete;

  // Calls `changed(id, row)` and `deleted(id)` for every id.
  using Changed = std::function<void(int64_t id, const std::byte* row)>;
  using Deleted = std::function<void(int64_t id)>;
  virtual void for_each(const Changed& changed, const Deleted& deleted) const = 0;
  // Ids that changed or are deleted.
  virtual size_t entries() const = 0;
  virtual uint64_t bytes() const = 0;

  // Null where the table's own default row holds.
  const std::byte* default_row() const { return default_row_.empty() ? nullptr : default_row_.data(); }

 protected:
  // What `previous`, if there is one, and then `changes` leave.
  Overlay(size_t row_bytes, const Overlay* previous, std::span<const Change> changes);

  const size_t row_bytes_;
  std::vector<std::byte, InHugePages<std::byte>> rows_;

 private:
  std::vector<std::byte> default_row_;
};

// By row number. A bit for each row of the table says whether it changed, and the number of changed rows before it where its
// new row stands among them (a bitmap with rank): a lookup reads one word, in an eighth of the memory of the smallest hash table.
class RowOverlay : public Overlay {
 public:
  // For a table of `rows` rows. Throws TableMismatch for an id that is none of them, and for one that is deleted.
  RowOverlay(size_t row_bytes, int64_t rows, const RowOverlay* previous, std::span<const Change> changes);

  ChangedRows changed() const { return {words_.data(), rows_.data()}; }
  void for_each(const Changed& changed, const Deleted& deleted) const override;
  size_t entries() const override { return rows_.size() / row_bytes_; }
  uint64_t bytes() const override { return rows_.size() + words_.size() * sizeof(ChangedRows::Word); }

 private:
  std::byte* row(int64_t id) {
    const auto number = static_cast<uint64_t>(id);
    return rows_.data() + rank_of(words_[number / 64], number) * row_bytes_;
  }

  std::vector<ChangedRows::Word, InHugePages<ChangedRows::Word>> words_;
};

// By key. Open addressing with linear probing, at most half full. A slot is 64 bits: 0 if empty, else entry + 1 in the low 32
// and the upper half of the key's hash above; the entry's key is then compared in full. In front is a filter of at least 16
// bits for each entry, which answers for nearly all keys that are not here, and stays in a cache where the slots do not.
class KeyOverlay : public Overlay {
 public:
  // Throws TableMismatch for more than 2^32 - 2 keys.
  KeyOverlay(size_t row_bytes, const KeyOverlay* previous, std::span<const Change> changes);

  // The row of each of `n` keys: null for one that is not here, `deleted()` for one that is deleted.
  void find(const int64_t* keys, size_t n, const std::byte** rows) const;
  static const std::byte* deleted();

  void for_each(const Changed& changed, const Deleted& deleted) const override;
  size_t entries() const override { return entries_.size(); }
  uint64_t bytes() const override;

 private:
  static constexpr uint32_t kDeleted = UINT32_MAX;

  struct Entry {
    int64_t key;
    uint32_t at;  // place in `rows_`, or kDeleted
  };

  void reserve(size_t entries);
  size_t slot_of(int64_t key, uint64_t hash) const;  // of the key, or the empty one where it would stand
  void put(int64_t key, const std::byte* row);       // null deletes
  const std::byte* row(const Entry& entry) const;

  std::vector<Entry> entries_;
  std::vector<uint64_t> slots_;
  std::vector<uint64_t> filter_;
};

}  // namespace jaxrank::tables
