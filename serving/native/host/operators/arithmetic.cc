// Arithmetic of two operands.

#include <cmath>

#include "../elementwise.h"

namespace jaxrank::host {

namespace {

enum class Takes { kNumbers, kIntegers, kFloats, kNumbersOrStrings };

// Strings are added by writing one after the other.
void add_strings(Call& call, const Tensor& x, const Tensor& y, const Shape& shape) {
  apply_binary<Bytes>(x, y, shape, call.make<Bytes>(0, shape), [&](Bytes a, Bytes b) {
    char* text = call.scratch<char>(static_cast<int64_t>(a.size() + b.size()));
    std::copy(b.begin(), b.end(), std::copy(a.begin(), a.end(), text));
    return Bytes(text, a.size() + b.size());
  });
}

template <Takes kTakes, typename F>
void run(Call& call) {
  const Tensor &x = call.in(0), &y = call.in(1);
  check_same_type(x, y);
  const Shape shape = broadcast_shape(x, y);
  const auto apply = [&]<typename T>(std::type_identity<T>) { apply_binary<T>(x, y, shape, call.make<T>(0, shape), F{}); };
  if constexpr (kTakes == Takes::kNumbersOrStrings) {
    if (x.type == Type::kString) return add_strings(call, x, y, shape);
  }
  if constexpr (kTakes == Takes::kIntegers) for_integer(x.type, apply);
  else if constexpr (kTakes == Takes::kFloats) for_float(x.type, apply);
  else for_number(x.type, apply);
}

template <Takes kTakes = Takes::kNumbers, typename F>
MakeKernel binary(F) {
  return [](const Attributes&, const Resources&) -> Kernel { return run<kTakes, F>; };
}

template <typename T>
void check_divisor(T b) {
  if constexpr (std::is_integral_v<T>) check(b != 0, "integer division by zero");
}

void add_n(Call& call) {
  const Tensor& first = call.in(0);
  for (int i = 1; i < call.inputs(); ++i) {
    check_same_type(first, call.in(i));
    check(call.in(i).shape == first.shape, "cannot add ", call.in(i).shape, " to ", first.shape);
  }
  for_number(first.type, [&]<typename T>(std::type_identity<T>) {
    T* out = call.make<T>(0, first.shape);
    std::copy_n(first.as<T>(), first.count, out);
    for (int i = 1; i < call.inputs(); ++i) {
      const T* more = call.in(i).as<T>();
      for (int64_t j = 0; j < first.count; ++j) out[j] = wrap_add(out[j], more[j]);
    }
  });
}

template <typename T>
T power(T x, T y) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::pow(x, y);
  } else {
    if constexpr (std::is_signed_v<T>) check(y >= 0, "an integer to a negative integer power");
    T result = 1;
    for (; y > 0; y = static_cast<T>(y >> 1), x = wrap_mul(x, x)) {
      if (y & 1) result = wrap_mul(result, x);
    }
    return result;
  }
}

// TensorFlow clamps the shift to [0, bits - 1].
template <typename T>
int shift_of(T y) {
  return static_cast<int>(std::clamp<T>(y, 0, 8 * sizeof(T) - 1));
}

constexpr auto kMultiply = []<typename T>(T a, T b) { return wrap_mul(a, b); };
constexpr auto kAdd = []<typename T>(T a, T b) { return wrap_add(a, b); };

constexpr auto kDivide = []<typename T>(T a, T b) {
  check_divisor(b);
  return truncated_quotient(a, b);
};

constexpr auto kTruncateDivide = []<typename T>(T a, T b) {
  check_divisor(b);
  if constexpr (std::is_floating_point_v<T>) return std::trunc(a / b);
  else return truncated_quotient(a, b);
};

constexpr auto kFloorDivide = []<typename T>(T a, T b) {
  check_divisor(b);
  if constexpr (std::is_floating_point_v<T>) {
    return std::floor(a / b);
  } else {
    const T quotient = truncated_quotient(a, b);
    return static_cast<T>(quotient - ((a < 0) != (b < 0) && wrap_mul(quotient, b) != a));
  }
};

template <typename T>
T remainder(T a, T b) {
  check_divisor(b);
  if constexpr (std::is_floating_point_v<T>) return std::fmod(a, b);
  else if constexpr (std::is_signed_v<T>) return b == -1 ? T{0} : static_cast<T>(a % b);
  else return static_cast<T>(a % b);
}

constexpr auto kRemainder = []<typename T>(T a, T b) { return remainder(a, b); };

// Of the divisor's sign.
constexpr auto kFloorMod = []<typename T>(T a, T b) {
  const T found = remainder(a, b);
  return found != 0 && (b < 0) != (found < 0) ? wrap_add(found, b) : found;
};

constexpr auto kRightShift = []<typename T>(T a, T b) { return static_cast<T>(a >> shift_of(b)); };
constexpr auto kLeftShift = []<typename T>(T a, T b) {
  return static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) << shift_of(b));
};

}  // namespace

OperatorTable arithmetic_operators() {
  constexpr auto kFloats = Takes::kFloats;
  constexpr auto kIntegers = Takes::kIntegers;
  return {
      {"add", binary<Takes::kNumbersOrStrings>(kAdd)},
      {"add_v2", binary<Takes::kNumbersOrStrings>(kAdd)},
      {"add_n", plain<add_n>},
      {"sub", binary([]<typename T>(T a, T b) { return wrap_sub(a, b); })},
      {"mul", binary(kMultiply)},
      {"div", binary(kDivide)},
      {"real_div", binary(kDivide)},
      {"truncate_div", binary(kTruncateDivide)},
      {"floor_div", binary(kFloorDivide)},
      {"mod", binary(kRemainder)},
      {"truncate_mod", binary(kRemainder)},
      {"floor_mod", binary(kFloorMod)},
      {"div_no_nan", binary<kFloats>([]<typename T>(T a, T b) { return b == 0 ? T{0} : a / b; })},
      {"mul_no_nan", binary<kFloats>([]<typename T>(T a, T b) { return b == 0 ? T{0} : a * b; })},
      {"xdivy", binary<kFloats>([]<typename T>(T a, T b) { return a == 0 ? T{0} : a / b; })},
      {"xlogy", binary<kFloats>([]<typename T>(T a, T b) { return a == 0 ? T{0} : a * std::log(b); })},
      {"xlog1py", binary<kFloats>([]<typename T>(T a, T b) { return a == 0 ? T{0} : a * std::log1p(b); })},
      {"squared_difference", binary([]<typename T>(T a, T b) { return wrap_mul(wrap_sub(a, b), wrap_sub(a, b)); })},
      {"pow", binary([]<typename T>(T a, T b) { return power(a, b); })},
      {"maximum", binary([]<typename T>(T a, T b) { return maximum(a, b); })},
      {"minimum", binary([]<typename T>(T a, T b) { return minimum(a, b); })},
      {"atan2", binary<kFloats>([]<typename T>(T a, T b) { return std::atan2(a, b); })},
      {"bitwise_and", binary<kIntegers>([]<typename T>(T a, T b) { return static_cast<T>(a & b); })},
      {"bitwise_or", binary<kIntegers>([]<typename T>(T a, T b) { return static_cast<T>(a | b); })},
      {"bitwise_xor", binary<kIntegers>([]<typename T>(T a, T b) { return static_cast<T>(a ^ b); })},
      {"left_shift", binary<kIntegers>(kLeftShift)},
      {"right_shift", binary<kIntegers>(kRightShift)},
  };
}

}  // namespace jaxrank::host
