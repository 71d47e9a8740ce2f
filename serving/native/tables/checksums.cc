#include "checksums.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "errors.h"
#include "xxh64.h"

namespace jaxrank::tables {

Checksums::Checksums(const std::byte* file, const Header& header, std::string path, bool trusted)
    : file_(file),
      end_(header.checksums_offset),
      blocks_((header.checksums_offset - kHeaderBytes + kBlockBytes - 1) / kBlockBytes),
      sums_(file + header.checksums_offset),
      path_(std::move(path)),
      checked_(trusted ? nullptr : std::make_unique<std::atomic<bool>[]>(blocks_)),
      left_(trusted ? 0 : blocks_) {
  if (!trusted && xxh64(sums_, blocks_ * sizeof(uint64_t)) != header.checksums_hash)
    throw DamagedTable(path_ + " is damaged: its list of checksums has another checksum; copy it again");
}

void Checksums::compare(uint64_t block) const {
  const uint64_t at = kHeaderBytes + block * kBlockBytes;
  uint64_t expected;
  std::memcpy(&expected, sums_ + block * sizeof expected, sizeof expected);
  if (xxh64(file_ + at, std::min(kBlockBytes, end_ - at)) != expected)
    throw DamagedTable(path_ + " is damaged: the block of 64 KiB at byte " + std::to_string(at) +
                       " has another checksum; copy it again");
}

void Checksums::check(uint64_t block) const {
  compare(block);
  // Two threads may check one block at the same time: it is counted once.
  if (!checked_[block].exchange(true, std::memory_order_acq_rel)) left_.fetch_sub(1, std::memory_order_acq_rel);
}

void Checksums::verify() const {
  for (uint64_t block = 0; block < blocks_; ++block) {
    compare(block);
    if (checked_ && !checked_[block].exchange(true, std::memory_order_acq_rel))
      left_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace jaxrank::tables
