// Upper and lower case, of ASCII letters or of all letters of UTF-8. The letters come from Python's Unicode tables at load, so
// that both ways to run a program agree.

#include "../layout.h"

namespace jaxrank::host {

namespace {

constexpr char32_t kReplacement = 0xfffd, kSigma = 0x3a3, kFinalSigma = 0x3c2;

// Reads the character at `at` and moves behind it. Of what is not UTF-8, the longest beginning of a character is replaced.
char32_t next_character(Bytes text, size_t& at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const uint8_t first = byte(at++);
  if (first < 0x80) return first;
  const int more = first >= 0xc2 && first < 0xe0 ? 1 : first >= 0xe0 && first < 0xf0 ? 2 : first >= 0xf0 && first < 0xf5 ? 3 : 0;
  if (!more) return kReplacement;
  char32_t found = first & (0x3f >> more);
  for (int i = 0; i < more; ++i) {
    uint8_t low = 0x80, high = 0xbf;
    if (i == 0) {  // no overlong forms, no surrogates, nothing beyond Unicode
      if (first == 0xe0) low = 0xa0;
      if (first == 0xed) high = 0x9f;
      if (first == 0xf0) low = 0x90;
      if (first == 0xf4) high = 0x8f;
    }
    const uint8_t next = byte(at);
    if (next < low || next > high) return kReplacement;
    found = found << 6 | (next & 0x3f);
    ++at;
  }
  return found;
}

char* write_character(char32_t c, char* to) {
  if (c < 0x80) {
    *to++ = static_cast<char>(c);
  } else if (c < 0x800) {
    *to++ = static_cast<char>(0xc0 | c >> 6);
    *to++ = static_cast<char>(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    *to++ = static_cast<char>(0xe0 | c >> 12);
    *to++ = static_cast<char>(0x80 | (c >> 6 & 0x3f));
    *to++ = static_cast<char>(0x80 | (c & 0x3f));
  } else {
    *to++ = static_cast<char>(0xf0 | c >> 18);
    *to++ = static_cast<char>(0x80 | (c >> 12 & 0x3f));
    *to++ = static_cast<char>(0x80 | (c >> 6 & 0x3f));
    *to++ = static_cast<char>(0x80 | (c & 0x3f));
  }
  return to;
}

// Inclusive ranges of characters, in order: first, last, first, last, ...
struct Ranges {
  std::vector<int64_t> ends;
  bool hold(char32_t c) const {
    const auto above = std::upper_bound(ends.begin(), ends.end(), static_cast<int64_t>(c));
    return (above - ends.begin()) % 2 == 1 || (above != ends.begin() && *(above - 1) == static_cast<int64_t>(c));
  }
};

struct Letters {
  std::vector<int64_t> from;                 // characters that change, in order
  std::vector<std::vector<int64_t>> to;      // what each becomes: one to three characters
  Ranges cased, ignorable;                   // only for lower case: where a sigma ends a word
  bool lower;

  // What a character becomes, or null where it stays.
  const std::vector<int64_t>* find(char32_t c) const {
    const auto place = std::lower_bound(from.begin(), from.end(), static_cast<int64_t>(c));
    return place == from.end() || *place != static_cast<int64_t>(c) ? nullptr : &to[place - from.begin()];
  }

  // Whether the sigma at `i` comes after a letter and not before one; characters such as an apostrophe do not count.
  bool final_sigma(std::span<const char32_t> text, size_t i) const {
    size_t j = i;
    while (j > 0 && ignorable.hold(text[j - 1])) --j;
    if (j == 0 || !cased.hold(text[j - 1])) return false;
    for (j = i + 1; j < text.size() && ignorable.hold(text[j]);) ++j;
    return j == text.size() || !cased.hold(text[j]);
  }
};

Bytes changed(Call& call, Bytes text, const Letters& letters) {
  // TensorFlow hands a C string to ICU: what follows a NUL is lost.
  text = text.substr(0, text.find('\0'));
  auto* characters = call.scratch<char32_t>(static_cast<int64_t>(text.size()));
  size_t count = 0;
  for (size_t at = 0; at < text.size();) characters[count++] = next_character(text, at);
  constexpr int kMostBytes = 12;  // three characters of four bytes
  char* const out = call.scratch<char>(static_cast<int64_t>(count * kMostBytes));
  char* to = out;
  for (size_t i = 0; i < count; ++i) {
    if (letters.lower && characters[i] == kSigma && letters.final_sigma({characters, count}, i)) {
      to = write_character(kFinalSigma, to);
    } else if (const std::vector<int64_t>* becomes = letters.find(characters[i])) {
      for (const int64_t c : *becomes) to = write_character(static_cast<char32_t>(c), to);
    } else {
      to = write_character(characters[i], to);
    }
  }
  return {out, static_cast<size_t>(to - out)};
}

template <bool kLower>
Bytes changed_ascii(Call& call, Bytes text) {
  char* const out = call.scratch<char>(static_cast<int64_t>(text.size()));
  std::transform(text.begin(), text.end(), out, [](char c) -> char {
    constexpr char kFirst = kLower ? 'A' : 'a';
    return static_cast<uint8_t>(c - kFirst) < 26 ? static_cast<char>(c ^ 0x20) : c;
  });
  return {out, text.size()};
}

template <bool kLower>
Kernel change_case(const Attributes& attributes, const Resources&) {
  if (attributes.text("encoding").empty()) {
    return [](Call& call) {
      Bytes* out = call.make<Bytes>(0, call.in(0).shape);
      for (const Bytes text : call.in(0).values<Bytes>()) *out++ = changed_ascii<kLower>(call, text);
    };
  }
  Letters letters{attributes["case_from"].integers(), {}, {}, {}, kLower};
  for (const Attribute& becomes : attributes["case_to"].list()) letters.to.push_back(becomes.integers());
  if (kLower) {
    letters.cased.ends = attributes["cased"].integers();
    letters.ignorable.ends = attributes["ignorable"].integers();
  }
  return [letters = std::make_shared<const Letters>(std::move(letters))](Call& call) {
    Bytes* out = call.make<Bytes>(0, call.in(0).shape);
    for (const Bytes text : call.in(0).values<Bytes>()) *out++ = changed(call, text, *letters);
  };
}

}  // namespace

OperatorTable unicode_operators() {
  return {
      {"string_lower", change_case<true>},
      {"string_upper", change_case<false>},
  };
}

}  // namespace jaxrank::host
