// Casts between numbers, as TensorFlow's kernel makes them on x86-64.

#include <limits>

#include "../layout.h"

namespace jaxrank::host {

namespace {

// What the conversion instructions make of a float: the lowest integer where there is no other.
template <typename Integer, typename Float>
Integer truncated(Float x) {
  constexpr auto kLow = static_cast<Float>(std::numeric_limits<Integer>::min());
  return x >= kLow && x < -kLow ? static_cast<Integer>(x) : std::numeric_limits<Integer>::min();
}

// C++ leaves floats beyond the range of an unsigned type undefined; TensorFlow converts with the signed instruction.
template <typename Unsigned, typename Float>
Unsigned truncated_unsigned(Float x) {
  using Signed = std::make_signed_t<Unsigned>;
  constexpr auto kHalf = -static_cast<Float>(std::numeric_limits<Signed>::min());
  if (!(x > -kHalf - 1 && x < kHalf * 2)) return Unsigned{1} << (8 * sizeof(Unsigned) - 1);
  return x >= 0 ? static_cast<Unsigned>(x) : static_cast<Unsigned>(truncated<Signed>(x));
}

template <typename To, typename From>
To converted(From x) {
  if constexpr (std::is_same_v<To, bool>) return x != From{};
  else if constexpr (!std::is_floating_point_v<From> || std::is_floating_point_v<To>) return static_cast<To>(x);
  else if constexpr (std::is_same_v<To, uint32_t> || std::is_same_v<To, uint64_t>) return truncated_unsigned<To>(x);
  else if constexpr (sizeof(To) == 8) return truncated<int64_t>(x);
  else return static_cast<To>(truncated<int32_t>(x));  // narrower ones are cut from 32 bits
}

Kernel cast(const Attributes& attributes, const Resources&) {
  return [to = attributes.type("DstT")](Call& call) {
    const Tensor& x = call.in(0);
    if (x.type == to) {
      call.share(0, x, x.shape);
      return;
    }
    for_plain(to, [&]<typename To>(std::type_identity<To>) {
      To* out = call.make<To>(0, x.shape);
      for_plain(x.type, [&]<typename From>(std::type_identity<From>) {
        const From* from = static_cast<const From*>(x.data);
        for (int64_t i = 0; i < x.count; ++i) out[i] = converted<To>(from[i]);
      });
    });
  };
}

}  // namespace

OperatorTable cast_operators() { return {{"cast", cast}}; }

}  // namespace jaxrank::host
