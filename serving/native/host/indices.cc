#include "indices.h"

namespace jaxrank::host {

Places places_of(Call& call, const Tensor& indices, const Shape& shape) {
  check(indices.rank() >= 1, "coordinates must have at least one dimension");
  const int64_t depth = indices.shape[indices.rank() - 1];
  check(depth <= shape.rank(), "coordinates of ", depth, " dimensions in a tensor of ", shape.rank());
  const int64_t count = indices.shape.product(0, indices.rank() - 1);
  auto* at = call.scratch<int64_t>(count);
  const std::span<const int64_t> all = as_int64(call, indices);
  for (int64_t i = 0; i < count; ++i) {
    const std::span<const int64_t> place = all.subspan(i * depth, depth);
    int64_t position = 0;
    for (int64_t d = 0; d < depth; ++d) {
      check(0 <= place[d] && place[d] < shape[d], "coordinates ", Listed{place}, " are outside of a tensor of shape ", shape);
      position = position * shape[d] + place[d];
    }
    at[i] = position;
  }
  return {{at, static_cast<size_t>(count)}, static_cast<int>(depth), shape.product(static_cast<int>(depth), shape.rank())};
}

void check_bad_indices_policy(const Attributes& attributes) {
  const std::string& policy = attributes.text("bad_indices_policy");
  if (policy != "" && policy != "DEFAULT" && policy != "ERROR") {
    refuse<Unsupported>("bad_indices_policy '", policy, "' is not supported");
  }
}

}  // namespace jaxrank::host
