// What is done with rows once their addresses are known: decode them, or combine them by segments. Compiled once for each
// instruction set; the best that this CPU has is taken when the program runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "format.h"

namespace jaxrank::tables {

enum class Combiner : uint8_t { kSum = 0, kMean = 1, kSqrtN = 2 };

// Row addresses end with this many more that may be fetched, so that no loop asks where its list ends: `pad_rows`.
inline constexpr size_t kAhead = 64;

inline void pad_rows(const std::byte** rows, size_t count) {
  for (size_t i = 0; i < kAhead; ++i) rows[count + i] = count == 0 ? nullptr : rows[count - 1];
}

struct RowList {
  const std::byte* const* rows;
  size_t count;
  size_t row_bytes;
  size_t dim;
  RowFormat format;  // of the four that decode to float32
};

struct Segments {
  const int64_t* offsets;  // count + 1; the first row of segment s is rows.rows[offsets[s] - offsets[0]]
  size_t count;
  const float* weights;  // one for each row, or none
  Combiner combiner;
};

// Where rows are written: row i begins at out + i / together * stride + i % together * dim. Several together are the ids of one
// row of a feature block.
struct Output {
  float* out;
  size_t stride;
  size_t together = 1;
};

// Rows of a table without keys that changed: row r did where bit r % 64 of word r / 64 is set, and its new row stands behind as
// many others as changed before it.
struct ChangedRows {
  struct Word {
    uint64_t bits, before;
  };
  const Word* words;
  const std::byte* rows;
};

// How many rows changed before `row`, by its word. Always inline: each instruction set counts bits in its own way.
__attribute__((always_inline)) inline uint64_t rank_of(const ChangedRows::Word& word, uint64_t row) {
  return word.before + static_cast<uint64_t>(__builtin_popcountll(word.bits & ((uint64_t{1} << row % 64) - 1)));
}

struct Kernels {
  const char* name;
  // out[i] = the row of number ids[i] of `rows` that begin at `first`; of a number that is none, row number `rows`. Returns
  // whether there was none of those.
  bool (*locate)(const int64_t* ids, size_t n, const std::byte* first, uint64_t rows, uint64_t row_bytes, const std::byte** out);
  // The same where some rows changed; `missing` is what a number that is none gives.
  bool (*locate_changed)(const int64_t* ids, size_t n, const std::byte* first, uint64_t rows, uint64_t row_bytes,
                         const ChangedRows& changed, const std::byte* missing, const std::byte** out);
  void (*gather)(const RowList& rows, const Output& output);
  // out[s * stride + c]: the rows of segment s combined; 0 for a segment without rows.
  void (*pool)(const RowList& rows, const Segments& segments, float* out, size_t stride);
  // Scales each of `count` float32 rows to `max_norm` as tf.clip_by_norm does.
  void (*clip)(float* rows, size_t count, size_t dim, size_t stride, float max_norm);
};

// Those that this CPU can run, the best one first.
std::span<const Kernels* const> kernels();

}  // namespace jaxrank::tables
