// Numbers as text and back, as C's printf writes them and TensorFlow's parser reads them.

#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "../layout.h"

namespace jaxrank::host {

namespace {

bool is_space(char c) { return c == ' ' || ('\t' <= c && c <= '\r'); }

Bytes stripped(Bytes text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

struct Format {
  int64_t precision, width;
  bool scientific, shortest;
  std::string fill;
  std::string number(const char* flag, const char* digits, const char* kind) const {
    return std::string("%") + flag + (width > 0 ? std::to_string(width) : "") + digits + kind;
  }
};

// A value by printf's format.
template <typename T>
Bytes printed(Call& call, const char* format, T value) {
  char few[64];
  const int size = std::snprintf(few, sizeof few, format, value);
  check(size >= 0, "a number that cannot be written by ", format);
  char* out = call.scratch<char>(int64_t{size} + 1);
  if (size < static_cast<int>(sizeof few)) std::memcpy(out, few, size);
  else std::snprintf(out, size + 1, format, value);
  return {out, static_cast<size_t>(size)};
}

// Spaces before the text, or after it.
Bytes aligned(Call& call, Bytes text, const Format& format) {
  const auto width = static_cast<size_t>(std::max<int64_t>(format.width, 0));
  if (text.size() >= width) return text;
  char* out = call.scratch<char>(static_cast<int64_t>(width));
  const size_t before = format.fill == "-" ? 0 : width - text.size();
  std::fill_n(out, width, ' ');
  std::copy(text.begin(), text.end(), out + before);
  return {out, width};
}

Bytes not_finite(Call& call, double value, const Format& format) {
  const bool negative = std::signbit(value), flagged = format.fill == "+" || format.fill == " ";
  char* text = call.scratch<char>(4);
  char* to = text;
  if (negative || flagged) *to++ = negative ? '-' : format.fill[0];
  to = std::copy_n(std::isnan(value) ? "nan" : "inf", 3, to);
  return aligned(call, {text, static_cast<size_t>(to - text)}, format);
}

template <typename T>
void write_integers(Call& call, const Tensor& values, const Format& format, Bytes* out) {
  using Printed = std::conditional_t<std::is_signed_v<T>, long long, unsigned long long>;
  // `+` and ` ` mean nothing to an unsigned format, `#` nothing to a decimal one.
  const bool means_nothing = format.fill == "#" || (!std::is_signed_v<T> && (format.fill == "+" || format.fill == " "));
  const bool plain = format.width <= 0 && (means_nothing || format.fill.empty() || format.fill == "-" || format.fill == "0");
  const std::string pattern = format.number(means_nothing ? "" : format.fill.c_str(), "", std::is_signed_v<T> ? "lld" : "llu");
  for (const T value : values.values<T>()) {
    if (plain) {
      char* text = call.scratch<char>(20);
      *out++ = {text, static_cast<size_t>(std::to_chars(text, text + 20, value).ptr - text)};
    } else {
      *out++ = printed(call, pattern.c_str(), static_cast<Printed>(value));
    }
  }
}

template <typename T>
void write_floats(Call& call, const Tensor& values, const Format& format, Bytes* out) {
  const std::string digits = format.precision >= 0 ? "." + std::to_string(format.precision) : "";
  const char* kind = format.shortest ? "g" : format.scientific ? "e" : "f";
  const std::string pattern = format.number(format.fill.c_str(), digits.c_str(), kind);
  for (T value : values.values<T>()) {
    if (!std::isfinite(value)) {
      *out++ = not_finite(call, value, format);
      continue;
    }
    if constexpr (std::is_same_v<T, float>) {  // TensorFlow's threads flush denormal numbers to zero
      if (std::fabs(value) < std::numeric_limits<float>::min()) value = std::copysign(0.0f, value);
    }
    *out++ = printed(call, pattern.c_str(), static_cast<double>(value));
  }
}

void as_string(Call& call, const Format& format) {
  const Tensor& values = call.in(0);
  const bool is_plain = !(format.scientific || format.shortest || format.precision >= 0);
  check(!(format.scientific && format.shortest), "scientific and shortest exclude each other");
  check(is_float(values.type) || values.type == Type::kString || is_plain, "a float format for ", name_of(values.type));
  const bool known = format.fill.empty() || (format.fill.size() == 1 && std::strchr(" +-0#", format.fill[0]) != nullptr);
  check(known, "fill '", format.fill, "' is not supported");
  check(format.width < (1 << 20) && format.precision < (1 << 20), "a number of ", std::max(format.width, format.precision),
        " characters");
  Bytes* out = call.make<Bytes>(0, values.shape);
  for_any(values.type, [&]<typename T>(std::type_identity<T>) {
    if constexpr (std::is_same_v<T, bool>) {
      for (const bool value : values.values<bool>()) *out++ = value ? "true" : "false";
    } else if constexpr (std::is_same_v<T, Bytes>) {
      for (const Bytes text : values.values<Bytes>()) *out++ = aligned(call, text, format);
    } else if constexpr (std::is_floating_point_v<T>) {
      write_floats<T>(call, values, format, out);
    } else {
      write_integers<T>(call, values, format, out);
    }
  });
}

Kernel make_as_string(const Attributes& attributes, const Resources&) {
  const Format format{attributes.integer("precision"), attributes.integer("width"), attributes.flag("scientific"),
                      attributes.flag("shortest"), attributes.text("fill")};
  return [format](Call& call) { as_string(call, format); };
}

template <typename T>
T read_integer(Bytes text) {
  const Bytes digits = stripped(text);
  const bool plus = !digits.empty() && digits.front() == '+';
  const char *begin = digits.data() + plus, *end = digits.data() + digits.size();
  T value{};
  // from_chars takes a minus: not after a plus.
  const bool sign_twice = plus && begin < end && *begin == '-';
  const auto [stop, error] = sign_twice ? std::from_chars_result{begin, std::errc::invalid_argument}
                                        : std::from_chars(begin, end, value);
  check(error == std::errc() && stop == end, Repr{text}, " is not an ", name_of(type_of<T>()), " number");
  return value;
}

bool same_letters(Bytes text, Bytes lower) {
  return std::equal(text.begin(), text.end(), lower.begin(), lower.end(), [](char a, char b) {
    return ('A' <= a && a <= 'Z' ? static_cast<char>(a + 32) : a) == b;
  });
}

// nan, or nan(letters, digits and _).
bool is_nan(Bytes text) {
  if (text.size() < 3 || !same_letters(text.substr(0, 3), "nan")) return false;
  if (text.size() == 3) return true;
  if (text[3] != '(' || text.back() != ')') return false;
  const Bytes inside = text.substr(4, text.size() - 5);
  return text.size() >= 5 && std::all_of(inside.begin(), inside.end(), [](char c) {
           return ('0' <= c && c <= '9') || ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || c == '_';
         });
}

bool is_hex_digit(char c) { return ('0' <= c && c <= '9') || ('a' <= c && c <= 'f') || ('A' <= c && c <= 'F'); }

// What from_chars could not hold: infinity, or a number near zero.
template <typename T>
T read_extreme(Call& call, Bytes text) {
  char* copy = call.scratch<char>(static_cast<int64_t>(text.size()) + 1);
  *std::copy(text.begin(), text.end(), copy) = '\0';
  if constexpr (std::is_same_v<T, float>) return std::strtof(copy, nullptr);
  else return std::strtod(copy, nullptr);
}

template <typename T>
T read_float(Call& call, Bytes text) {
  const Bytes whole = stripped(text);
  Bytes digits = whole;
  const bool negative = !digits.empty() && digits.front() == '-';
  if (negative || (!digits.empty() && digits.front() == '+')) digits.remove_prefix(1);
  const auto with_sign = [&](T value) { return negative ? -value : value; };
  if (same_letters(digits, "inf") || same_letters(digits, "infinity")) return with_sign(std::numeric_limits<T>::infinity());
  if (is_nan(digits)) return with_sign(std::numeric_limits<T>::quiet_NaN());
  auto format = std::chars_format::general;
  if (digits.size() > 2 && digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X')) {
    format = std::chars_format::hex;
    digits.remove_prefix(2);
  }
  const bool hex = format == std::chars_format::hex;
  // from_chars would take a sign, "inf" and "nan" here.
  const char first = digits.empty() ? '\0' : digits.front();
  const bool begins = first == '.' || (hex ? is_hex_digit(first) : '0' <= first && first <= '9');
  T value{};
  const char *begin = digits.data(), *end = begin + digits.size();
  const auto [stop, error] = begins ? std::from_chars(begin, end, value, format)
                                    : std::from_chars_result{begin, std::errc::invalid_argument};
  check(error != std::errc::invalid_argument && stop == end, Repr{text}, " is not a number");
  if (error == std::errc::result_out_of_range || std::isinf(value)) return read_extreme<T>(call, whole);
  return with_sign(value);
}

Kernel string_to_number(const Attributes& attributes, const Resources&) {
  return [type = attributes.type("out_type")](Call& call) {
    const Tensor& texts = call.in(0);
    for_number(type, [&]<typename T>(std::type_identity<T>) {
      T* out = call.make<T>(0, texts.shape);
      for (const Bytes text : texts.values<Bytes>()) {
        if constexpr (std::is_floating_point_v<T>) *out++ = read_float<T>(call, text);
        else *out++ = read_integer<T>(text);
      }
    });
  };
}

}  // namespace

OperatorTable number_operators() {
  return {
      {"as_string", make_as_string},
      {"string_to_number", string_to_number},
  };
}

}  // namespace jaxrank::host
