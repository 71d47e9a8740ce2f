#include "table.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "errors.h"

namespace jaxrank::tables {
namespace {

// Rows whose addresses are found before any of them is read.
constexpr size_t kGroup = 1024;
// With a norm to clip to, rows are decoded before they are combined: fewer of them, to stay in the cache.
constexpr size_t kClippedGroup = 128;

// Working memory of a thread, kept for its next call unless a huge segment made it large. One for each type and use.
template <typename T, int kUse = 0>
class Scratch {
 public:
  explicit Scratch(size_t size) : memory_(kept()) { grow(size); }
  ~Scratch() {
    if (memory_.size() * sizeof(T) > (4 << 20)) memory_ = {};
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void grow(size_t size) {
    if (memory_.size() < size) memory_.resize(size);
  }
  T* data() { return memory_.data(); }

 private:
  static std::vector<T>& kept() {
    thread_local std::vector<T> memory;
    return memory;
  }
  std::vector<T>& memory_;
};

// Calls `work(first segment, last, ids)` for whole segments, as many as fit into a group; a longer one is a group of its own.
template <typename Work>
void for_groups(const Bags& bags, Work work) {
  const auto group = static_cast<int64_t>(bags.max_norm > 0 ? kClippedGroup : kGroup);
  for (size_t first = 0, last; first < bags.segments; first = last) {
    last = first + 1;
    while (last < bags.segments && bags.offsets[last + 1] - bags.offsets[first] <= group) ++last;
    work(first, last, static_cast<size_t>(bags.offsets[last] - bags.offsets[first]));
  }
}

Segments segments_of(const Bags& bags, size_t first, size_t last) {
  const float* const weights = bags.weights == nullptr ? nullptr : bags.weights + bags.offsets[first];
  return {bags.offsets + first, last - first, weights, bags.combiner};
}

// Scales `count` rows, in place, and combines them.
void pool_clipped(const Kernels& kernels, float* rows, size_t count, size_t dim, const Segments& segments, float max_norm,
                  float* out, size_t stride) {
  if (max_norm > 0) kernels.clip(rows, count, dim, dim, max_norm);
  Scratch<const std::byte*, 1> addresses(count + kAhead);
  for (size_t i = 0; i < count; ++i) addresses.data()[i] = reinterpret_cast<const std::byte*>(rows + i * dim);
  pad_rows(addresses.data(), count);
  kernels.pool({addresses.data(), count, dim * sizeof(float), dim, RowFormat::kF32}, segments, out, stride);
}

}  // namespace

// The addresses of a call's rows, group after group. Behind those of a group lie the first ones of the next, so that the
// kernels fetch on across its end.
class Table::Addresses {
 public:
  explicit Addresses(const Table& table) : table_(table), rows_(kGroup + kAhead) {}

  // Of the next `count` of the `left` ids that are left, and of up to kAhead behind them.
  RowList next(const int64_t* ids, size_t count, size_t left) {
    const size_t ahead = std::min(kAhead, left - count);
    rows_.grow(count + kAhead);
    const std::byte** const rows = rows_.data();
    std::copy(rows + count_, rows + count_ + known_, rows);
    table_.resolve(ids + known_, count + ahead - known_, rows + known_);
    std::fill(rows + count + ahead, rows + count + kAhead, count + ahead == 0 ? nullptr : rows[count + ahead - 1]);
    count_ = count, known_ = ahead;
    return table_.list(rows, count);
  }

 private:
  const Table& table_;
  Scratch<const std::byte*> rows_;
  size_t count_ = 0, known_ = 0;  // of the last group, and behind it
};

void check_offsets(const Bags& bags) {
  const int64_t* const offsets = bags.offsets;
  if (offsets[0] < 0) throw TableMismatch("offsets begin with " + std::to_string(offsets[0]) + ", which is below 0");
  for (size_t s = 0; s < bags.segments; ++s)
    if (offsets[s] > offsets[s + 1])
      throw TableMismatch("offsets decrease from " + std::to_string(offsets[s]) + " to " + std::to_string(offsets[s + 1]) +
                          " behind segment " + std::to_string(s));
}

std::shared_ptr<const Table> Table::open(const std::string& path, const MapOptions& options, Check check) {
  return std::shared_ptr<const Table>(new Table(path, options, check));
}

Table::Table(const std::string& path, const MapOptions& options, Check check)
    : path_(path),
      file_(std::make_shared<const MappedFile>(path, options)),
      header_(parse_header(file_->data(), file_->size(), path)),
      checksums_(std::make_shared<const Checksums>(file_->data(), header_, path, check == Check::kNever)),
      index_(file_->data(), header_),
      kernels_(*kernels().front()) {}

Table::Table(const Table& base, std::shared_ptr<const Overlay> overlay)
    : path_(base.path_),
      file_(base.file_),
      header_(base.header_),
      checksums_(base.checksums_),
      index_(base.index_),
      kernels_(base.kernels_),
      overlay_(std::move(overlay)) {}

std::shared_ptr<const Table> Table::with(const Table* previous, std::span<const Change> changes) const {
  const Overlay* const before = previous == nullptr ? nullptr : previous->overlay();
  if (previous != nullptr &&
      (previous->keyed() != keyed() || previous->row_bytes() != row_bytes() || (!keyed() && previous->rows() != rows())))
    throw TableMismatch(previous->path_ + " is no state of " + path_);
  const auto bytes = static_cast<size_t>(row_bytes());
  std::shared_ptr<const Overlay> overlay;
  if (keyed())
    overlay = std::make_shared<const KeyOverlay>(bytes, static_cast<const KeyOverlay*>(before), changes);
  else
    overlay = std::make_shared<const RowOverlay>(bytes, rows(), static_cast<const RowOverlay*>(before), changes);
  return std::shared_ptr<const Table>(new Table(*this, std::move(overlay)));
}

uint64_t Table::digest() const {
  uint64_t hash;
  std::memcpy(&hash, file_->data() + kHeaderBytes - sizeof hash, sizeof hash);
  return hash;
}

void Table::require_no_overlay() const {
  if (overlay_ != nullptr)
    throw TableMismatch(path_ + " is read with deltas over it, which have no row numbers; look ids up, or apply the deltas to the file");
}

void Table::check(const std::byte* data, size_t size) const {
  if (!checksums_->done() && size > 0) checksums_->require(data, size);
}

void Table::not_found(int64_t id) const {
  if (keyed()) throw RowNotFound("key " + std::to_string(id) + " is not in the table " + path_, id);
  throw RowNotFound("id " + std::to_string(id) + " is outside of the table " + path_ + ", which has rows [0, " +
                        std::to_string(rows()) + ")",
                    id);
}

void Table::require_floats() const {
  if (row_format() > RowFormat::kInt8)
    throw TableMismatch(path_ + " holds rows of float64 or integers, which are not decoded to float32; take them as they are");
}

RowList Table::list(const std::byte* const* rows, size_t n) const {
  return {rows, n, static_cast<size_t>(row_bytes()), static_cast<size_t>(dim()), row_format()};
}

void Table::resolve(const int64_t* ids, size_t n, const std::byte** rows) const {
  if (!keyed())
    resolve_rows(ids, n, rows);
  else if (overlay_ == nullptr)
    resolve_keys(ids, n, rows);
  else
    resolve_changed_keys(ids, n, rows);
}

void Table::resolve_rows(const int64_t* ids, size_t n, const std::byte** rows) const {
  const auto count = static_cast<uint64_t>(header_.rows), bytes = static_cast<uint64_t>(header_.row_bytes);
  const std::byte* const changed_default = overlay_ == nullptr ? nullptr : overlay_->default_row();
  const bool inside =
      overlay_ == nullptr
          ? kernels_.locate(ids, n, data(), count, bytes, rows)
          : kernels_.locate_changed(ids, n, data(), count, bytes, static_cast<const RowOverlay&>(*overlay_).changed(),
                                    changed_default == nullptr ? own_default_row() : changed_default, rows);
  if (!inside && default_row() == DefaultRow::kError)
    not_found(*std::find_if(ids, ids + n, [&](int64_t id) { return static_cast<uint64_t>(id) >= count; }));
  check_rows(rows, n);
}

void Table::check_rows(const std::byte* const* rows, size_t n) const {
  if (checksums_->done()) return;
  const auto bytes = static_cast<size_t>(header_.row_bytes);
  for (size_t i = 0; i < n; ++i)
    // Rows of an overlay lie elsewhere.
    if (!std::less<>()(rows[i], data()) && !std::less<>()(own_default_row(), rows[i])) checksums_->require(rows[i], bytes);
}

void Table::resolve_changed_keys(const int64_t* keys, size_t n, const std::byte** rows) const {
  constexpr size_t kAtOnce = 256;
  const auto& overlay = static_cast<const KeyOverlay&>(*overlay_);
  const std::byte* const default_now = overlay.default_row() == nullptr ? own_default_row() : overlay.default_row();
  int64_t rest[kAtOnce];
  const std::byte* found[kAtOnce];
  uint16_t place[kAtOnce];
  for (size_t start = 0; start < n; start += kAtOnce) {
    const size_t count = std::min(kAtOnce, n - start);
    overlay.find(keys + start, count, rows + start);
    size_t left = 0;
    for (size_t i = 0; i < count; ++i) {
      rest[left] = keys[start + i];
      place[left] = static_cast<uint16_t>(i);
      left += rows[start + i] == nullptr;
      if (rows[start + i] != KeyOverlay::deleted()) continue;
      if (default_row() == DefaultRow::kError) not_found(keys[start + i]);
      rows[start + i] = default_now;
    }
    resolve_keys(rest, left, found);
    for (size_t i = 0; i < left; ++i) rows[start + place[i]] = found[i] == own_default_row() ? default_now : found[i];
  }
}

void Table::resolve_keys(const int64_t* keys, size_t n, const std::byte** rows) const {
  constexpr size_t kAtOnce = 64;
  const bool checked = checksums_->done();
  const auto touch = [&](const std::byte* data, size_t size) {
    if (!checked) checksums_->require(data, size);
  };
  uint64_t hashes[kAtOnce];
  for (size_t start = 0; start < n; start += kAtOnce) {
    const size_t count = std::min(kAtOnce, n - start);
    for (size_t i = 0; i < count; ++i) {
      hashes[i] = mix(keys[start + i]);
      __builtin_prefetch(index_.slot(index_.home(hashes[i])));
    }
    // The key is fetched once the slot is there; the row itself by whoever reads it.
    for (size_t i = 0; checked && i < count; ++i)
      if (const int64_t row = index_.likely(hashes[i]); row >= 0) __builtin_prefetch(index_.key(row));
    for (size_t i = 0; i < count; ++i) {
      int64_t row = index_.find(keys[start + i], hashes[i], touch);
      if (row < 0) {
        if (default_row() == DefaultRow::kError) not_found(keys[start + i]);
        row = header_.rows;
      }
      rows[start + i] = data() + row * header_.row_bytes;
    }
  }
  check_rows(rows, n);
}

void Table::find(const int64_t* ids, size_t n, int64_t* rows) const {
  require_no_overlay();
  const auto touch = [&](const std::byte* data, size_t size) { check(data, size); };
  for (size_t i = 0; i < n; ++i) {
    if (keyed())
      rows[i] = index_.find(ids[i], mix(ids[i]), touch);
    else
      rows[i] = ids[i] >= 0 && ids[i] < header_.rows ? ids[i] : -1;
  }
}

void Table::lookup(const int64_t* ids, size_t n, const Output& output) const {
  require_floats();
  Addresses rows(*this);
  const size_t together = output.together, group = std::max<size_t>(kGroup / together, 1) * together;
  for (size_t start = 0; start < n; start += group)
    kernels_.gather(rows.next(ids + start, std::min(group, n - start), n - start),
                    {output.out + start / together * output.stride, output.stride, together});
}

void Table::read(int64_t start, size_t n, float* out, size_t stride) const {
  require_no_overlay();
  require_floats();
  if (start < 0 || start > rows() + 1 || n > static_cast<uint64_t>(rows() + 1 - start))
    throw TableMismatch("there are no " + std::to_string(n) + " rows from row " + std::to_string(start) + " on: " + path_ +
                        " has " + std::to_string(rows()));
  const std::byte* addresses[kGroup + kAhead];
  const std::byte* next = data() + start * row_bytes();
  check(next, n * static_cast<size_t>(row_bytes()));
  for (size_t done = 0; done < n; done += kGroup) {
    const size_t count = std::min(kGroup, n - done);
    for (size_t i = 0; i < count; ++i, next += row_bytes()) addresses[i] = next;
    pad_rows(addresses, count);
    kernels_.gather(list(addresses, count), {out + done * stride, stride});
  }
}

void Table::take(const int64_t* ids, size_t n, std::byte* out, size_t stride) const {
  const std::byte* rows[kGroup + kAhead];
  const auto bytes = static_cast<size_t>(row_bytes());
  for (size_t start = 0; start < n; start += kGroup) {
    const size_t count = std::min(kGroup, n - start);
    resolve(ids + start, count, rows);
    for (size_t i = 0; i < count; ++i, out += stride) {
      if (i + 8 < count) __builtin_prefetch(rows[i + 8]);
      std::memcpy(out, rows[i], bytes);
    }
  }
}

void Table::pool_with(const Kernels& kernels, const Bags& bags, float* out, size_t stride) const {
  require_floats();
  check_offsets(bags);
  const auto width = static_cast<size_t>(dim());
  const int64_t end = bags.offsets[bags.segments];
  Addresses rows(*this);
  for_groups(bags, [&](size_t first, size_t last, size_t count) {
    const int64_t start = bags.offsets[first];
    const RowList group = rows.next(bags.ids + start, count, static_cast<size_t>(end - start));
    const Segments segments = segments_of(bags, first, last);
    if (bags.max_norm > 0) {
      Scratch<float> decoded(count * width);
      kernels.gather(group, {decoded.data(), width});
      pool_clipped(kernels, decoded.data(), count, width, segments, bags.max_norm, out + first * stride, stride);
    } else {
      kernels.pool(group, segments, out + first * stride, stride);
    }
  });
}

void pool_rows(const float* rows, size_t dim, const Bags& bags, float* out, size_t stride) {
  check_offsets(bags);
  const Kernels& best = *kernels().front();
  for_groups(bags, [&](size_t first, size_t last, size_t count) {
    const float* const begin = rows + static_cast<size_t>(bags.offsets[first]) * dim;
    Scratch<float> copied(count * dim);
    std::memcpy(copied.data(), begin, count * dim * sizeof(float));
    pool_clipped(best, copied.data(), count, dim, segments_of(bags, first, last), bags.max_norm, out + first * stride, stride);
  });
}

}  // namespace jaxrank::tables
