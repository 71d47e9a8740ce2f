// Memory of one request: taken in pieces, given back all at once, and kept for the next request.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace jaxrank::host {

// Hands out memory by moving a pointer. After a few requests of a size it is one chunk that holds the largest of them,
// and takes nothing from the heap any more. Not thread-safe.
class Arena {
 public:
  // `limit` bounds what one request may take, in bytes.
  explicit Arena(size_t limit) : limit_(limit) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void limit(size_t bytes) { limit_ = bytes; }

  // Memory aligned to a cache line, uninitialized. Throws `Refusal` beyond the limit.
  void* take(size_t bytes) {
    const size_t rounded = rounded_up(bytes);
    if (rounded < bytes || rounded > free_) [[unlikely]]
      return take_slowly(bytes);
    void* found = next_;
    next_ += rounded;
    free_ -= rounded;
    return found;
  }

  // Everything taken since `mark()` is free again.
  struct Mark {
    size_t chunk;
    std::byte* next;
    size_t free;
  };
  Mark mark() const { return {current_, next_, free_}; }
  void rewind(const Mark& mark);

  // Everything is free again. Several chunks become one; memory that no request of the last thousand needed goes back.
  void reset();

  size_t capacity() const { return capacity_; }

  static constexpr size_t kAlignment = 64;

 private:
  // Never nothing: the address of nothing may not be copied to.
  static size_t rounded_up(size_t bytes) { return (bytes + (bytes == 0) + kAlignment - 1) & ~(kAlignment - 1); }
  struct Free {
    void operator()(std::byte* chunk) const;
  };
  struct Chunk {
    std::unique_ptr<std::byte, Free> data;
    size_t size;
  };
  void* take_slowly(size_t bytes);
  void add_chunk(size_t size);
  size_t used() const;

  std::vector<Chunk> chunks_;
  size_t current_ = 0;  // the chunk that `next_` points into
  std::byte* next_ = nullptr;
  size_t free_ = 0;
  size_t capacity_ = 0;
  size_t limit_;
  size_t peak_ = 0;         // of the request
  size_t window_peak_ = 0;  // of the requests since the last look
  int window_ = 0;
};

}  // namespace jaxrank::host
