// Regular expressions that are constants of the program.

#include "../regex.h"

namespace jaxrank::host {

namespace {

// Text, or the number of a group.
struct Part {
  std::string text;
  int64_t group;  // -1 for text
};

Bytes replaced(Call& call, const Regex& regex, Regex::Scratch& scratch, int32_t* found, Bytes text,
               const std::vector<Part>& parts, bool everywhere) {
  const Regex::Subject subject = Regex::decode(call, text);
  const auto group = [&](int64_t number) {
    const int32_t from = found[2 * number], to = found[2 * number + 1];
    return from < 0 || to < 0 ? Bytes() : subject.part(from, to);
  };
  // Twice the same walk: to measure, and to write.
  const auto walk = [&](auto give) {
    int32_t at = 0, last_end = -1;
    while (at <= subject.size && regex.search(scratch, subject, at, found)) {
      const int32_t from = found[0], to = found[1];
      // RE2 takes no empty match right after a match.
      if (from == to && to == last_end) {
        if (at < subject.size) give(subject.part(at, at + 1));
        ++at;
        last_end = -1;
        continue;
      }
      give(subject.part(at, from));
      for (const Part& part : parts) give(part.group < 0 ? Bytes(part.text) : group(part.group));
      at = last_end = to;
      if (!everywhere) break;
    }
    if (at < subject.size) give(subject.part(at, subject.size));
  };
  size_t size = 0;
  walk([&](Bytes piece) { size += piece.size(); });
  char* const out = call.scratch<char>(static_cast<int64_t>(size));
  char* to = out;
  walk([&](Bytes piece) { to = std::copy(piece.begin(), piece.end(), to); });
  return {out, size};
}

Kernel regex_replace(const Attributes& attributes, const Resources&) {
  std::vector<Part> parts;
  const auto regex = std::make_shared<const Regex>(attributes);
  for (const Attribute& part : attributes["parts"].list()) {
    const bool is_group = std::holds_alternative<int64_t>(part.value);
    parts.push_back({is_group ? "" : part.text(), is_group ? part.integer() : -1});
    if (is_group && (parts.back().group < 0 || 2 * parts.back().group >= regex->places())) {
      refuse<Unsupported>("a rewrite with group ", parts.back().group);
    }
  }
  return [regex, parts, everywhere = attributes.flag("replace_global")](Call& call) {
    Bytes* out = call.make<Bytes>(0, call.in(0).shape);
    Regex::Scratch* scratch = regex->make_scratch(call);
    int32_t* found = call.scratch<int32_t>(regex->places());
    for (const Bytes text : call.in(0).values<Bytes>()) {
      *out++ = replaced(call, *regex, *scratch, found, text, parts, everywhere);
    }
  };
}

Kernel regex_full_match(const Attributes& attributes, const Resources&) {
  const auto regex = std::make_shared<const Regex>(attributes);
  return [regex](Call& call) {
    bool* out = call.make<bool>(0, call.in(0).shape);
    Regex::Scratch* scratch = regex->make_scratch(call);
    for (const Bytes text : call.in(0).values<Bytes>()) *out++ = regex->full_match(*scratch, Regex::decode(call, text));
  };
}

}  // namespace

// `regex_replace` and `regex_full_match` are these, with constants for their patterns.
OperatorTable regex_operators() {
  return {
      {"static_regex_replace", regex_replace},
      {"static_regex_full_match", regex_full_match},
  };
}

}  // namespace jaxrank::host
