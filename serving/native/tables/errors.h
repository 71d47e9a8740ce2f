// What a table refuses. serving/tables/errors.py has the same family; bind_tables.cc maps one to the other.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace jaxrank::tables {

struct TableError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The file is truncated, garbled, or of no table at all.
struct DamagedTable : TableError {
  using TableError::TableError;
};

// The file is of a version that this reader does not know.
struct TableVersion : TableError {
  using TableError::TableError;
};

// The call does not fit the table: dimension, strides, offsets, row format.
struct TableMismatch : TableError {
  using TableError::TableError;
};

// An id without a row, in a table whose default row is an error.
struct RowNotFound : TableError {
  RowNotFound(const std::string& message, int64_t id) : TableError(message), id(id) {}
  int64_t id;
};

}  // namespace jaxrank::tables
