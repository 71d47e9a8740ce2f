// Preloaded before the allocator of a process under test: counts what is allocated and hands it on, so that
// every allocator is counted by the same rule. Built by counter.py.

#include <dlfcn.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace {

std::atomic<std::uint64_t> calls{0}, bytes{0};

void count(std::size_t size) {
  calls.fetch_add(1, std::memory_order_relaxed);
  bytes.fetch_add(size, std::memory_order_relaxed);
}

// dlsym may allocate before it has found the next calloc: these bytes answer it, and are never freed.
alignas(std::max_align_t) char early[1 << 16];
std::atomic<std::size_t> early_used{0};
thread_local bool finding = false;

void* early_allocation(std::size_t size) {
  const std::size_t start = early_used.fetch_add((size + 15) & ~std::size_t{15});
  return start + size <= sizeof(early) ? early + start : nullptr;
}

bool is_early(const void* p) {
  return p >= static_cast<const void*>(early) && p < static_cast<const void*>(early + sizeof(early));
}

template <typename F>
F next(std::atomic<F>& found, const char* name) {
  F f = found.load(std::memory_order_acquire);
  if (f == nullptr) {
    finding = true;
    f = reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
    finding = false;
    found.store(f, std::memory_order_release);
  }
  return f;
}

void* allocate_or_throw(void* p) {
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

#define NEXT(name)                                     \
  static std::atomic<decltype(&::name)> name##_found{}; \
  const auto name##_next = next(name##_found, #name)

extern "C" {

void* malloc(std::size_t);
void* calloc(std::size_t, std::size_t);
void* realloc(void*, std::size_t);
void free(void*);
void* memalign(std::size_t, std::size_t);
void* aligned_alloc(std::size_t, std::size_t);
int posix_memalign(void**, std::size_t, std::size_t);

__attribute__((visibility("default"))) void jaxrank_allocations(std::uint64_t out[2]) {
  out[0] = calls.load();
  out[1] = bytes.load();
}

void* malloc(std::size_t size) {
  if (finding) return early_allocation(size);
  count(size);
  NEXT(malloc);
  return malloc_next(size);
}

void* calloc(std::size_t n, std::size_t size) {
  if (finding) return early_allocation(n * size);
  count(n * size);
  NEXT(calloc);
  return calloc_next(n, size);
}

void* realloc(void* p, std::size_t size) {
  if (is_early(p)) {
    void* moved = malloc(size);
    const std::size_t rest = early + sizeof(early) - static_cast<char*>(p);
    return moved == nullptr ? nullptr : std::memcpy(moved, p, size < rest ? size : rest);
  }
  count(size);
  NEXT(realloc);
  return realloc_next(p, size);
}

void free(void* p) {
  if (p == nullptr || is_early(p)) return;
  NEXT(free);
  free_next(p);
}

void* memalign(std::size_t alignment, std::size_t size) {
  count(size);
  NEXT(memalign);
  return memalign_next(alignment, size);
}

void* aligned_alloc(std::size_t alignment, std::size_t size) {
  count(size);
  NEXT(aligned_alloc);
  return aligned_alloc_next(alignment, size);
}

int posix_memalign(void** p, std::size_t alignment, std::size_t size) {
  count(size);
  NEXT(posix_memalign);
  return posix_memalign_next(p, alignment, size);
}

}  // extern "C"

// jemalloc brings its own operator new, which would pass the functions above by.
void* operator new(std::size_t size) { return allocate_or_throw(malloc(size)); }
void* operator new[](std::size_t size) { return allocate_or_throw(malloc(size)); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return malloc(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return malloc(size); }
void* operator new(std::size_t size, std::align_val_t a) {
  return allocate_or_throw(memalign(static_cast<std::size_t>(a), size));
}
void* operator new[](std::size_t size, std::align_val_t a) {
  return allocate_or_throw(memalign(static_cast<std::size_t>(a), size));
}
void* operator new(std::size_t size, std::align_val_t a, const std::nothrow_t&) noexcept {
  return memalign(static_cast<std::size_t>(a), size);
}
void* operator new[](std::size_t size, std::align_val_t a, const std::nothrow_t&) noexcept {
  return memalign(static_cast<std::size_t>(a), size);
}
void operator delete(void* p) noexcept { free(p); }
void operator delete[](void* p) noexcept { free(p); }
void operator delete(void* p, std::size_t) noexcept { free(p); }
void operator delete[](void* p, std::size_t) noexcept { free(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { free(p); }
void operator delete(void* p, std::align_val_t) noexcept { free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { free(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { free(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { free(p); }
