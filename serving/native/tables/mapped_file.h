// A file as read-only memory: mapped, or copied into huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace jaxrank::tables {

struct MapOptions {
  bool prefault = false;    // bring every page into memory before `open` returns
  bool lock = false;        // and keep it there (mlock)
  bool huge_pages = false;  // a private copy in anonymous huge pages: fewer TLB misses, and no file behind it
};

class MappedFile {
 public:
  // Throws std::system_error where the file cannot be opened, mapped, read or locked.
  MappedFile(const std::string& path, const MapOptions& options);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }

  // Gives the pages back to the system; they come again from the file. Nothing for a copy.
  void forget_pages() const;

 private:
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
  uint64_t mapped_ = 0;
  bool copied_ = false;
};

}  // namespace jaxrank::tables
