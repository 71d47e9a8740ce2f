#include "arena.h"

#include <algorithm>
#include <new>

#include "refusal.h"

namespace jaxrank::host {

namespace {

constexpr size_t kSmallestChunk = size_t{64} << 10;
constexpr int kWindow = 1000;  // requests after which unused memory is looked at

}  // namespace

void Arena::Free::operator()(std::byte* chunk) const { ::operator delete(chunk, std::align_val_t{kAlignment}); }

void Arena::add_chunk(size_t size) {
  auto* data = static_cast<std::byte*>(::operator new(size, std::align_val_t{kAlignment}));
  chunks_.push_back({std::unique_ptr<std::byte, Free>(data), size});
  capacity_ += size;
  current_ = chunks_.size() - 1;
  next_ = data;
  free_ = size;
}

size_t Arena::used() const {
  size_t total = 0;
  for (size_t i = 0; i <= current_ && i < chunks_.size(); ++i) total += chunks_[i].size;
  return total - free_;
}

void* Arena::take_slowly(size_t bytes) {
  if (bytes > limit_ || used() + bytes > limit_) {
    refuse("the request needs more than the ", limit_ >> 20, " MiB of memory that its features may take");
  }
  const size_t rounded = rounded_up(bytes);
  // After a rewind there may be later chunks that are free.
  while (current_ + 1 < chunks_.size()) {
    peak_ = std::max(peak_, used());
    ++current_;
    next_ = chunks_[current_].data.get();
    free_ = chunks_[current_].size;
    if (rounded <= free_) return take(bytes);
  }
  peak_ = std::max(peak_, used());
  add_chunk(std::max({rounded, kSmallestChunk, capacity_}));
  return take(bytes);
}

void Arena::rewind(const Mark& mark) {
  peak_ = std::max(peak_, used());
  if (mark.next == nullptr) {  // marked before there was any chunk
    current_ = 0;
    next_ = chunks_.empty() ? nullptr : chunks_[0].data.get();
    free_ = chunks_.empty() ? 0 : chunks_[0].size;
    return;
  }
  current_ = mark.chunk;
  next_ = mark.next;
  free_ = mark.free;
}

void Arena::reset() {
  peak_ = std::max(peak_, used());
  window_peak_ = std::max(window_peak_, peak_);
  peak_ = 0;
  const bool look = ++window_ >= kWindow;
  const bool wasteful = look && capacity_ > kSmallestChunk && window_peak_ < capacity_ / 4;
  if (chunks_.size() > 1 || wasteful) {
    const size_t size = std::max(wasteful ? 2 * window_peak_ : capacity_, kSmallestChunk);
    chunks_.clear();
    capacity_ = 0;
    add_chunk(size);
  }
  if (look) {
    window_ = 0;
    window_peak_ = 0;
  }
  current_ = 0;
  next_ = chunks_.empty() ? nullptr : chunks_[0].data.get();
  free_ = chunks_.empty() ? 0 : chunks_[0].size;
}

}  // namespace jaxrank::host
