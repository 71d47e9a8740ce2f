// An embedding table: a file (format.h) that is mapped and read where it lies. Immutable and free of Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "checksums.h"
#include "format.h"
#include "kernels.h"
#include "key_index.h"
#include "mapped_file.h"
#include "overlay.h"

namespace jaxrank::tables {

// When the checksums of blocks are compared: as rows are read for the first time; never (who opens it has checked the file).
enum class Check : uint8_t { kLazily = 0, kNever = 1 };

// Ids in segments. All arrays belong to the caller.
struct Bags {
  const int64_t* ids;      // none for rows that are there already
  const int64_t* offsets;  // segments + 1: the ids of segment s are ids[offsets[s]] up to ids[offsets[s + 1]]
  size_t segments;
  const float* weights = nullptr;  // one for each id, or none
  Combiner combiner = Combiner::kSum;
  float max_norm = 0;  // above 0, longer rows are scaled to it
};

// Throws TableMismatch for offsets that decrease or begin below 0.
void check_offsets(const Bags& bags);

// Combines `rows`, float32 and `dim` beside each other, as Table::pool combines those of a table. Throws as check_offsets.
void pool_rows(const float* rows, size_t dim, const Bags& bags, float* out, size_t stride);

class Table {
 public:
  // Throws what MappedFile, parse_header and Checksums throw.
  static std::shared_ptr<const Table> open(const std::string& path, const MapOptions& options = {}, Check check = Check::kLazily);

  // This table with what lies over `previous`, another state of it, if there is one, and then with `changes`; the file is
  // shared. Throws TableMismatch for changes that the table cannot take, and for a table of other rows.
  std::shared_ptr<const Table> with(const Table* previous, std::span<const Change> changes) const;

  int64_t rows() const { return header_.rows; }
  int64_t dim() const { return header_.dim; }
  int64_t row_bytes() const { return header_.row_bytes; }
  RowFormat row_format() const { return header_.row_format; }
  DefaultRow default_row() const { return header_.default_row; }
  bool keyed() const { return header_.keyed != 0; }
  const std::string& path() const { return path_; }
  uint64_t file_bytes() const { return header_.file_bytes; }
  const Header& header() const { return header_; }
  // XXH64 of the header, and by the checksums in it of everything: what tells one table from another.
  uint64_t digest() const;
  const Overlay* overlay() const { return overlay_.get(); }
  // Throws TableMismatch under an overlay, which has no row numbers: only ids are looked up there.
  void require_no_overlay() const;

  // Writes the row of each id. An id is a key, or else a row number; one without a row gives the default row. Throws
  // RowNotFound where that is an error, TableMismatch for a format that does not decode to float32, and DamagedTable.
  void lookup(const int64_t* ids, size_t n, const Output& output) const;
  void lookup(const int64_t* ids, size_t n, float* out, size_t stride) const { lookup(ids, n, {out, stride}); }

  // The same, in the table's row format, `stride` bytes apart.
  void take(const int64_t* ids, size_t n, std::byte* out, size_t stride) const;

  // The rows of each segment combined, `stride` floats apart, as tf.nn.embedding_lookup_sparse does; a segment without ids
  // is 0. Also throws TableMismatch for offsets that decrease or begin below 0; the ids and weights that they reach into are
  // the caller's.
  void pool(const Bags& bags, float* out, size_t stride) const { pool_with(kernels_, bags, out, stride); }

  // The same with kernels of one's choice, of those of `kernels()`.
  void pool_with(const Kernels& kernels, const Bags& bags, float* out, size_t stride) const;

  // Rows [start, start + n) by number, whether there are keys or not; `start + n` may be rows() + 1, the default row's. Throws
  // as `lookup`, and TableMismatch for rows that there are not.
  void read(int64_t start, size_t n, float* out, size_t stride) const;

  // Row numbers of ids, -1 for those without a row.
  void find(const int64_t* ids, size_t n, int64_t* rows) const;

  // The rows themselves, rows() * row_bytes() bytes and after them the default row, and the keys, row by row. Checks of what
  // is read there are the caller's (`check`).
  const std::byte* data() const { return file_->data() + header_.rows_offset; }
  const std::byte* keys() const { return file_->data() + header_.keys_offset; }
  void check(const std::byte* data, size_t size) const;

  // Checks every block. Throws DamagedTable.
  void verify() const { checksums_->verify(); }
  void forget_pages() const { file_->forget_pages(); }

 private:
  Table(const std::string& path, const MapOptions& options, Check check);
  Table(const Table& base, std::shared_ptr<const Overlay> overlay);

  class Addresses;

  // Addresses of the rows of ids, the default row's for those without one.
  void resolve(const int64_t* ids, size_t n, const std::byte** rows) const;
  void resolve_rows(const int64_t* ids, size_t n, const std::byte** rows) const;
  void resolve_keys(const int64_t* keys, size_t n, const std::byte** rows) const;
  void resolve_changed_keys(const int64_t* keys, size_t n, const std::byte** rows) const;
  const std::byte* own_default_row() const { return data() + header_.rows * header_.row_bytes; }
  void check_rows(const std::byte* const* rows, size_t n) const;
  [[noreturn]] void not_found(int64_t id) const;
  void require_floats() const;
  RowList list(const std::byte* const* rows, size_t n) const;

  const std::string path_;
  const std::shared_ptr<const MappedFile> file_;
  const Header header_;
  const std::shared_ptr<const Checksums> checksums_;
  const KeyIndex index_;
  const Kernels& kernels_;
  const std::shared_ptr<const Overlay> overlay_;
};

}  // namespace jaxrank::tables
