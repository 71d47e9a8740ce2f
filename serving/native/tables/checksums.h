// The checksums of a table's blocks. A block is checked when it is read for the first time, or all of them by `verify`.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "format.h"

namespace jaxrank::tables {

class Checksums {
 public:
  // `file` is the whole file. With `trusted` nothing is ever checked. Throws DamagedTable if the checksums are damaged themselves.
  Checksums(const std::byte* file, const Header& header, std::string path, bool trusted);

  // Whether nothing is left to check.
  bool done() const { return left_.load(std::memory_order_acquire) == 0; }

  // Checks the blocks of `size` bytes at `data`, unless that was done before. Thread-safe. Throws DamagedTable.
  void require(const std::byte* data, size_t size) const {
    const uint64_t at = static_cast<uint64_t>(data - file_) - kHeaderBytes;
    for (uint64_t block = at / kBlockBytes; block <= (at + size - 1) / kBlockBytes; ++block)
      if (!checked_[block].load(std::memory_order_acquire)) check(block);
  }

  // Checks every block again. Throws DamagedTable.
  void verify() const;

 private:
  void check(uint64_t block) const;
  void compare(uint64_t block) const;

  const std::byte* file_;
  const uint64_t end_;
  const uint64_t blocks_;
  const std::byte* sums_;
  const std::string path_;
  std::unique_ptr<std::atomic<bool>[]> checked_;
  mutable std::atomic<uint64_t> left_;
};

}  // namespace jaxrank::tables
