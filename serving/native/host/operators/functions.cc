// Functions of one variable.

#include <cmath>

#include "../elementwise.h"

namespace jaxrank::host {

namespace {

template <typename F>
MakeKernel of_numbers(F) {
  return [](const Attributes&, const Resources&) -> Kernel {
    return [](Call& call) {
      const Tensor& x = call.in(0);
      for_number(x.type, [&]<typename T>(std::type_identity<T>) { apply_unary<T>(x, call.make<T>(0, x.shape), F{}); });
    };
  };
}

template <typename F>
MakeKernel of_floats(F) {
  return [](const Attributes&, const Resources&) -> Kernel {
    return [](Call& call) {
      const Tensor& x = call.in(0);
      for_float(x.type, [&]<typename T>(std::type_identity<T>) { apply_unary<T>(x, call.make<T>(0, x.shape), F{}); });
    };
  };
}

template <typename F>
MakeKernel float_test(F) {
  return [](const Attributes&, const Resources&) -> Kernel {
    return [](Call& call) {
      const Tensor& x = call.in(0);
      for_float(x.type, [&]<typename T>(std::type_identity<T>) { apply_unary<T>(x, call.make<bool>(0, x.shape), F{}); });
    };
  };
}

void invert(Call& call) {
  const Tensor& x = call.in(0);
  for_integer(x.type, [&]<typename T>(std::type_identity<T>) {
    apply_unary<T>(x, call.make<T>(0, x.shape), [](T v) { return static_cast<T>(~v); });
  });
}

Kernel leaky_relu(const Attributes& attributes, const Resources&) {
  return [alpha = static_cast<float>(attributes["alpha"].number())](Call& call) {
    const Tensor& x = call.in(0);
    for_float(x.type, [&]<typename T>(std::type_identity<T>) {
      apply_unary<T>(x, call.make<T>(0, x.shape), [&](T v) { return v > 0 ? v : v * static_cast<T>(alpha); });
    });
  };
}

constexpr auto kReciprocal = []<typename T>(T x) {
  if constexpr (std::is_integral_v<T>) check(x != 0, "integer division by zero");
  return truncated_quotient(T{1}, x);
};

// log(1 + exp(x)) without overflow.
constexpr auto kSoftplus = []<typename T>(T x) {
  if (x != x) return x;
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
};

constexpr auto kSelu = []<typename T>(T x) {
  // Klambauer et al. 2017, as TensorFlow rounds the two constants.
  constexpr auto kScale = static_cast<T>(1.0507009873554805), kScaleAlpha = static_cast<T>(1.7580993408473768);
  return x < 0 ? kScaleAlpha * std::expm1(x) : kScale * x;
};

constexpr auto kSign = []<typename T>(T x) {
  if constexpr (std::is_floating_point_v<T>) {
    if (x != x) return x;
  }
  return static_cast<T>((x > T{0}) - (x < T{0}));
};

constexpr auto kAbs = []<typename T>(T x) {
  if constexpr (std::is_floating_point_v<T>) return std::fabs(x);
  else return x < T{0} ? wrap_sub(T{0}, x) : x;
};

constexpr auto kNeg = []<typename T>(T x) {
  if constexpr (std::is_floating_point_v<T>) return -x;
  else return wrap_sub(T{0}, x);
};

// Half to even. TensorFlow's kernel gives 0 for every integer: nobody can want that.
void round_half_to_even(Call& call) {
  const Tensor& x = call.in(0);
  check(is_float(x.type), "round of ", name_of(x.type));
  for_float(x.type, [&]<typename T>(std::type_identity<T>) {
    apply_unary<T>(x, call.make<T>(0, x.shape), [](T v) { return std::nearbyint(v); });
  });
}

}  // namespace

OperatorTable function_operators() {
  return {
      {"invert", plain<invert>},
      {"abs", of_numbers(kAbs)},
      {"neg", of_numbers(kNeg)},
      {"sign", of_numbers(kSign)},
      {"square", of_numbers([]<typename T>(T x) { return wrap_mul(x, x); })},
      {"reciprocal", of_numbers(kReciprocal)},
      {"inv", of_numbers(kReciprocal)},
      {"sqrt", of_floats([]<typename T>(T x) { return std::sqrt(x); })},
      {"rsqrt", of_floats([]<typename T>(T x) { return 1 / std::sqrt(x); })},
      {"exp", of_floats([]<typename T>(T x) { return std::exp(x); })},
      {"expm1", of_floats([]<typename T>(T x) { return std::expm1(x); })},
      {"log", of_floats([]<typename T>(T x) { return std::log(x); })},
      {"log1p", of_floats([]<typename T>(T x) { return std::log1p(x); })},
      {"sin", of_floats([]<typename T>(T x) { return std::sin(x); })},
      {"cos", of_floats([]<typename T>(T x) { return std::cos(x); })},
      {"tan", of_floats([]<typename T>(T x) { return std::tan(x); })},
      {"asin", of_floats([]<typename T>(T x) { return std::asin(x); })},
      {"acos", of_floats([]<typename T>(T x) { return std::acos(x); })},
      {"atan", of_floats([]<typename T>(T x) { return std::atan(x); })},
      {"sinh", of_floats([]<typename T>(T x) { return std::sinh(x); })},
      {"cosh", of_floats([]<typename T>(T x) { return std::cosh(x); })},
      {"tanh", of_floats([]<typename T>(T x) { return std::tanh(x); })},
      {"sigmoid", of_floats([]<typename T>(T x) { return 1 / (1 + std::exp(-x)); })},
      {"softplus", of_floats(kSoftplus)},
      {"softsign", of_floats([]<typename T>(T x) { return x / (1 + std::fabs(x)); })},
      {"relu", of_numbers([]<typename T>(T x) { return maximum(x, T{0}); })},
      {"relu6", of_numbers([]<typename T>(T x) { return minimum(maximum(x, T{0}), T{6}); })},
      {"elu", of_floats([]<typename T>(T x) { return x < 0 ? std::expm1(x) : x; })},
      {"selu", of_floats(kSelu)},
      {"leaky_relu", leaky_relu},
      {"floor", of_floats([]<typename T>(T x) { return std::floor(x); })},
      {"ceil", of_floats([]<typename T>(T x) { return std::ceil(x); })},
      {"round", plain<round_half_to_even>},
      {"rint", of_floats([]<typename T>(T x) { return std::nearbyint(x); })},
      {"is_nan", float_test([]<typename T>(T x) { return std::isnan(x); })},
      {"is_inf", float_test([]<typename T>(T x) { return std::isinf(x); })},
      {"is_finite", float_test([]<typename T>(T x) { return std::isfinite(x); })},
  };
}

}  // namespace jaxrank::host
