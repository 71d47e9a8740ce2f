// Sparse tensors as TensorFlow holds them: `indices [nnz, rank]` int64, `values [nnz]`, `dense_shape [rank]` int64.
#pragma once

#include "indices.h"
#include "layout.h"

namespace jaxrank::host {

// Checked to belong together.
struct Sparse {
  std::span<const int64_t> indices;
  const Tensor* values;
  std::span<const int64_t> shape;
  int64_t count() const { return values->count; }
  int64_t rank() const { return static_cast<int64_t>(shape.size()); }
  std::span<const int64_t> index(int64_t i) const { return indices.subspan(i * rank(), rank()); }
};

Sparse sparse_of(Call& call, const Tensor& indices, const Tensor& values, const Tensor& shape);

void check_inside(const Sparse& sparse);

// Row-major position of an index; wraps where the shape is larger than int64.
int64_t flat_position(std::span<const int64_t> index, std::span<const int64_t> shape);

// The indices, or the values, at these positions; as output.
void give_indices(Call& call, int output, const Sparse& sparse, std::span<const int64_t> positions);
void give_values(Call& call, int output, const Tensor& values, std::span<const int64_t> positions);
// A vector of int64; as output.
void give_vector(Call& call, int output, std::span<const int64_t> values);

}  // namespace jaxrank::host
