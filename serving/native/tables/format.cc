#include "format.h"

#include <cstring>

#include "errors.h"
#include "xxh64.h"

namespace jaxrank::tables {
namespace {

constexpr unsigned char kMagic[8] = {0x89, 'J', 'X', 'T', '\r', '\n', 0x1a, '\n'};
constexpr uint64_t kAlignment = 64;

int64_t element_bytes(RowFormat format) {
  switch (format) {
    case RowFormat::kInt8: return 1;
    case RowFormat::kF16:
    case RowFormat::kBF16: return 2;
    case RowFormat::kF32:
    case RowFormat::kI32: return 4;
    case RowFormat::kF64:
    case RowFormat::kI64: return 8;
  }
  return 0;
}

// Adds `count * size` bytes to `offset` and rounds up to the alignment of sections. False if that overflows.
bool advance(uint64_t& offset, uint64_t count, uint64_t size) {
  uint64_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes) || __builtin_add_overflow(offset, bytes, &offset)) return false;
  if (__builtin_add_overflow(offset, kAlignment - 1, &offset)) return false;
  offset &= ~(kAlignment - 1);
  return offset <= static_cast<uint64_t>(INT64_MAX);
}

// What the sizes in the header must make of its offsets. False if they overflow or contradict each other.
bool fits(const Header& h) {
  if (h.rows < 0 || h.dim < 1 || h.sequence < 0 || h.keyed > 1 || h.default_row > DefaultRow::kRow) return false;
  const int64_t bytes = row_bytes(h.row_format, h.dim);
  if (bytes == 0 || bytes != h.row_bytes || h.rows == INT64_MAX) return false;
  uint64_t offset = kHeaderBytes;
  if (h.rows_offset != offset || !advance(offset, static_cast<uint64_t>(h.rows) + 1, bytes)) return false;
  if (h.keys_offset != offset) return false;
  if (h.keyed) {
    if (h.homes == 0 || h.slots <= static_cast<uint64_t>(h.rows) || h.slots < h.homes) return false;
    if (!advance(offset, h.rows, sizeof(int64_t)) || h.slots_offset != offset) return false;
    // A slot is read as 8 bytes: two bytes of padding end the section.
    if (h.slots >= UINT64_MAX / kSlotBytes || !advance(offset, h.slots * kSlotBytes + 2, 1)) return false;
  } else if (h.homes != 0 || h.slots != 0 || h.slots_offset != offset) {
    return false;
  }
  if (h.checksums_offset != offset) return false;
  const uint64_t blocks = (offset - kHeaderBytes + kBlockBytes - 1) / kBlockBytes;
  return h.file_bytes == offset + blocks * sizeof(uint64_t);
}

}  // namespace

int64_t row_bytes(RowFormat format, int64_t dim) {
  int64_t bytes;
  if (__builtin_mul_overflow(dim, element_bytes(format), &bytes)) return 0;
  if (format == RowFormat::kInt8 && __builtin_add_overflow(bytes, int64_t{sizeof(float)}, &bytes)) return 0;
  return bytes;
}

Header parse_header(const std::byte* data, uint64_t file_bytes, const std::string& path) {
  if (file_bytes < sizeof kMagic || std::memcmp(data, kMagic, sizeof kMagic) != 0)
    throw DamagedTable(path + " is not a table: it does not begin as one; give a file that jaxrank wrote");
  if (file_bytes < kHeaderBytes)
    throw DamagedTable(path + " is truncated: it has " + std::to_string(file_bytes) +
                       " bytes, the header alone has 4096; copy it again");
  Header header;
  std::memcpy(&header, data, sizeof header);
  if (header.version != kVersion)
    throw TableVersion(path + " is a table of version " + std::to_string(header.version) + ", this jaxrank reads version " +
                       std::to_string(kVersion) + "; write it again with this jaxrank, or install the one that wrote it");
  uint64_t hash;
  std::memcpy(&hash, data + kHeaderBytes - sizeof hash, sizeof hash);
  if (hash != xxh64(data, kHeaderBytes - sizeof hash))
    throw DamagedTable(path + " is damaged: its header has another checksum; copy it again");
  if (!fits(header)) throw DamagedTable(path + " has a header that contradicts itself; write the table again");
  if (header.file_bytes != file_bytes)
    throw DamagedTable(path + (file_bytes < header.file_bytes ? " is truncated: it has " : " is too long: it has ") +
                       std::to_string(file_bytes) + " bytes, its header says " + std::to_string(header.file_bytes) +
                       "; copy it again");
  return header;
}

}  // namespace jaxrank::tables
