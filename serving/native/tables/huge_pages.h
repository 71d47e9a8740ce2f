// Memory for std::vector in huge pages, where it is large and the system has them: random reads then miss the TLB less.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace jaxrank::tables {

template <typename T>
struct InHugePages {
  using value_type = T;
  static constexpr size_t kPage = 2 << 20;

  InHugePages() = default;
  template <typename U>
  InHugePages(const InHugePages<U>&) {}

  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T);
    auto* const memory = static_cast<T*>(::operator new(bytes, alignment(bytes)));
    // Advice may be refused, and changes no answer.
    if (bytes >= kPage) madvise(memory, bytes / kPage * kPage, MADV_HUGEPAGE);
    return memory;
  }
  void deallocate(T* memory, size_t n) { ::operator delete(memory, alignment(n * sizeof(T))); }
  bool operator==(const InHugePages&) const { return true; }

 private:
  // At least a cache line: rows of 64 bytes then lie in one.
  static std::align_val_t alignment(size_t bytes) { return std::align_val_t{bytes < kPage ? 64 : kPage}; }
};

}  // namespace jaxrank::tables
