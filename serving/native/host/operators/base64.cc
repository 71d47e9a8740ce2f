// Web-safe base64.

#include <array>

#include "../layout.h"

namespace jaxrank::host {

namespace {

constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

constexpr std::array<int8_t, 256> kValues = [] {
  std::array<int8_t, 256> values{};
  values.fill(-1);
  for (int i = 0; i < 64; ++i) values[static_cast<uint8_t>(kDigits[i])] = static_cast<int8_t>(i);
  return values;
}();

// Three bytes are four digits; fewer are one digit more than bytes.
Bytes encode(Call& call, Bytes text, bool pad) {
  const size_t rest = text.size() % 3, whole = text.size() / 3 * 4;
  const size_t size = whole + (rest == 0 ? 0 : pad ? 4 : rest + 1);
  char* const out = call.scratch<char>(static_cast<int64_t>(size));
  char* to = out;
  for (size_t i = 0; i < text.size(); i += 3) {
    const auto byte = [&](size_t j) { return j < text.size() ? uint32_t{static_cast<uint8_t>(text[j])} : 0u; };
    const uint32_t group = byte(i) << 16 | byte(i + 1) << 8 | byte(i + 2);
    for (int digit = 0; digit < 4 && to < out + size; ++digit) *to++ = kDigits[group >> (18 - 6 * digit) & 63];
  }
  if (pad && rest) std::fill_n(out + whole + rest + 1, 3 - rest, '=');
  return {out, size};
}

Kernel encode_base64(const Attributes& attributes, const Resources&) {
  return [pad = attributes.flag("pad")](Call& call) {
    Bytes* out = call.make<Bytes>(0, call.in(0).shape);
    for (const Bytes text : call.in(0).values<Bytes>()) *out++ = encode(call, text, pad);
  };
}

Bytes decode(Call& call, Bytes text) {
  Bytes digits = text;
  while (!digits.empty() && digits.back() == '=') digits.remove_suffix(1);
  const size_t padding = text.size() - digits.size();
  bool fits = (padding == 0 || (padding <= 2 && text.size() % 4 == 0)) && digits.size() % 4 != 1;
  for (const char digit : digits) fits &= kValues[static_cast<uint8_t>(digit)] >= 0;
  check(fits, Repr{text}, " is not web-safe base64");
  const size_t size = digits.size() * 3 / 4;
  char* const out = call.scratch<char>(static_cast<int64_t>(size));
  uint32_t group = 0;
  int bits = 0;
  char* to = out;
  for (const char digit : digits) {
    group = group << 6 | static_cast<uint32_t>(kValues[static_cast<uint8_t>(digit)]);
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    *to++ = static_cast<char>(group >> bits & 255);
  }
  return {out, size};
}

void decode_base64(Call& call) {
  Bytes* out = call.make<Bytes>(0, call.in(0).shape);
  for (const Bytes text : call.in(0).values<Bytes>()) *out++ = decode(call, text);
}

}  // namespace

OperatorTable base64_operators() {
  return {
      {"encode_base64", encode_base64},
      {"decode_base64", plain<decode_base64>},
  };
}

}  // namespace jaxrank::host
