#include "sparse.h"

namespace jaxrank::host {

Sparse sparse_of(Call& call, const Tensor& indices, const Tensor& values, const Tensor& shape) {
  check(indices.rank() == 2 && values.rank() == 1 && shape.rank() == 1, "not the three parts of a sparse tensor");
  check(indices.shape[0] == values.count && indices.shape[1] == shape.count, "indices ", indices.shape, ", ", values.count,
        " values and a shape of ", shape.count, " dimensions do not fit");
  return {as_int64(call, indices), &values, as_int64(call, shape)};
}

void check_inside(const Sparse& sparse) {
  for (int64_t i = 0; i < sparse.count(); ++i) {
    const std::span<const int64_t> index = sparse.index(i);
    for (int64_t d = 0; d < sparse.rank(); ++d) {
      check(0 <= index[d] && index[d] < sparse.shape[d], "sparse index ", Listed{index}, " is outside of the shape ",
            Listed{sparse.shape});
    }
  }
}

int64_t flat_position(std::span<const int64_t> index, std::span<const int64_t> shape) {
  uint64_t position = 0;
  for (size_t d = 0; d < shape.size(); ++d) {
    position = position * static_cast<uint64_t>(shape[d]) + static_cast<uint64_t>(index[d]);
  }
  return static_cast<int64_t>(position);
}

void give_indices(Call& call, int output, const Sparse& sparse, std::span<const int64_t> positions) {
  int64_t* to = call.make<int64_t>(output, {static_cast<int64_t>(positions.size()), sparse.rank()});
  for (const int64_t at : positions) to = std::copy_n(sparse.indices.data() + at * sparse.rank(), sparse.rank(), to);
}

void give_vector(Call& call, int output, std::span<const int64_t> values) {
  std::copy(values.begin(), values.end(), call.make<int64_t>(output, {static_cast<int64_t>(values.size())}));
}

void give_values(Call& call, int output, const Tensor& values, std::span<const int64_t> positions) {
  Tensor& out = call.make(output, values.type, {static_cast<int64_t>(positions.size())});
  for_size(values.type, [&]<typename T>(std::type_identity<T>) {
    T* to = static_cast<T*>(out.data);
    for (const int64_t at : positions) *to++ = static_cast<const T*>(values.data)[at];
  });
}

}  // namespace jaxrank::host
