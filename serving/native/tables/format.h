// The table file, version 1. docs/tables.md has every byte of it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>

namespace jaxrank::tables {

static_assert(std::endian::native == std::endian::little, "table files are little-endian and mapped as they are");

enum class RowFormat : uint32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kInt8 = 3, kF64 = 4, kI32 = 5, kI64 = 6 };
enum class DefaultRow : uint32_t { kError = 0, kZeros = 1, kMean = 2, kRow = 3 };

inline constexpr uint64_t kHeaderBytes = 4096;
inline constexpr uint64_t kBlockBytes = 64 << 10;
inline constexpr uint64_t kSlotBytes = 6;
inline constexpr uint32_t kVersion = 1;

struct Header {
  std::byte magic[8];
  uint32_t version;
  RowFormat row_format;
  int64_t rows;
  int64_t dim;
  int64_t row_bytes;
  DefaultRow default_row;
  uint32_t keyed;
  uint64_t rows_offset;       // `rows` rows and then the default row
  uint64_t keys_offset;       // int64 key of each row; where rows end for a table without keys
  uint64_t slots_offset;      // 6 bytes each
  uint64_t homes;             // slots that a key's hash may point to
  uint64_t slots;             // and those behind them that the last keys ran over into; the last slot is empty
  uint64_t checksums_offset;  // XXH64 of each block of 64 KiB from the end of the header to here
  uint64_t file_bytes;
  uint64_t checksums_hash;  // XXH64 of the checksums
  uint64_t lineage;         // digest of the table that deltas were applied to; 0 for one without
  int64_t sequence;         // of the last of them
  uint64_t last_delta;      // its digest
};
static_assert(sizeof(Header) == 136);

// Bytes of a row; 0 for a format that is not known, or if they do not fit an int64.
int64_t row_bytes(RowFormat format, int64_t dim);

// Checks everything that the first `kHeaderBytes` bytes and the size of the file can tell. `path` is for the message.
// Throws DamagedTable or TableVersion.
Header parse_header(const std::byte* data, uint64_t file_bytes, const std::string& path);

}  // namespace jaxrank::tables
