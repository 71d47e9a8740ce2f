// Rows of embedding tables: looked up, refused in the program's words, and written where they belong in a feature block.
#pragma once

#include <cmath>

#include "../tables/errors.h"
#include "../tables/lookups.h"
#include "operator.h"

namespace jaxrank::host {

[[noreturn]] inline void refuse_id(const TableSlot& slot, const tables::Table& table, int64_t id, int64_t lowest) {
  refuse("id ", id < 0 ? id + lowest : id, " is outside of table '", slot.name, "', which has rows [", lowest, ", ", table.rows(), ")");
}

// Runs a lookup, on idle threads too where that pays. An id below 0 was counted from `lowest` on.
inline void look_up(Call& call, const TableSlot& slot, const tables::Lookup& lookup, int64_t lowest = 0) {
  try {
    tables::run_lookups({&lookup, 1}, call.request().pool);
  } catch (const tables::RowNotFound& missing) {
    refuse_id(slot, *lookup.table, missing.id, lowest);
  }
}

// Rows as they are stored, beside each other: for those that do not decode to float32.
inline void take_rows(const TableSlot& slot, const tables::Table& table, std::span<const int64_t> ids, void* out, int64_t lowest = 0) {
  try {
    table.take(ids.data(), ids.size(), static_cast<std::byte*>(out), static_cast<size_t>(table.row_bytes()));
  } catch (const tables::RowNotFound& missing) {
    refuse_id(slot, table, missing.id, lowest);
  }
}

inline std::optional<double> max_norm_of(const Attributes& attributes) {
  if (attributes["max_norm"].none()) return std::nullopt;
  const double found = attributes["max_norm"].number();
  if (!(found > 0) || !std::isfinite(found)) refuse<Unsupported>("a max_norm of ", found, "; it must be above 0 and finite");
  return found;
}

// Scales rows to the norm, in place, where they are longer; as tf.clip_by_norm. float32 rows are scaled as they are read.
template <typename T>
void clip_rows(T* rows, int64_t count, int64_t dim, T limit) {
  for (T* row = rows; row != rows + count * dim; row += dim) {
    T squares{};
    for (int64_t i = 0; i < dim; ++i) squares += row[i] * row[i];
    const T norm = std::max(std::sqrt(squares), limit);
    for (int64_t i = 0; i < dim; ++i) row[i] = row[i] * limit / norm;
  }
}

// The sink, if `count` rows of `dim` values fill its columns exactly.
inline const Sink* usable_sink(const Sink* sink, const TableSlot& slot, int64_t dim, int64_t count) {
  const bool fits = sink != nullptr && slot.type == Type::kFloat32 && dim > 0 && sink->rows > 0 &&
                    count * dim == sink->rows * sink->width && count % sink->rows == 0;
  return fits ? sink : nullptr;
}

// The output: in the sink, or with memory of its own.
inline Tensor& give_rows(Call& call, Type type, const Shape& shape, const Sink* sink) {
  if (sink == nullptr) return call.make(0, type, shape);
  return call.share(0, Tensor{type, shape, 0, sink->base, sink->stride}, shape);
}

}  // namespace jaxrank::host
