#include "regex.h"

#include <new>

namespace jaxrank::host {

namespace {

bool is_word(char32_t c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_'; }

// Length of the character that begins here, or 0 for a byte that begins none.
int character_length(Bytes text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const uint8_t first = byte(at);
  if (first < 0x80) return 1;
  const int length = first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
  for (int i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  const uint8_t second = byte(at + 1);  // no overlong forms, no surrogates, nothing beyond Unicode
  const bool wrong = (first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) || (first == 0xf0 && second < 0x90) ||
                     (first == 0xf4 && second > 0x8f);
  return wrong ? 0 : length;
}

}  // namespace

// The instructions that wait for the next character, in the order of their right to match, with the places of their groups.
struct Regex::Threads {
  int32_t* order;
  int32_t count;
  uint32_t* seen;  // the step in which an instruction was last followed
  int32_t* places;
};

struct Regex::Scratch {
  Threads now, next;
  uint32_t step = 0;
  struct Pending {
    int32_t instruction;  // below 0: restore place `-instruction - 1`
    int32_t old;
  };
  Pending* stack;
  int32_t* places;  // of the thread that is followed
};

Regex::Regex(const Attributes& attributes) : places_(static_cast<int>(2 * (attributes.integer("groups") + 1))) {
  const std::vector<int64_t> code = attributes["instructions"].integers(), ranges = attributes["ranges"].integers();
  for (size_t i = 0; i + 1 < ranges.size(); i += 2) {
    ranges_.emplace_back(static_cast<char32_t>(ranges[i]), static_cast<char32_t>(ranges[i + 1]));
  }
  const auto size = static_cast<int64_t>(code.size() / 3), known = static_cast<int64_t>(ranges_.size());
  const auto within = [](int64_t value, int64_t limit) { return 0 <= value && value < limit; };
  for (int64_t i = 0; i < size; ++i) {
    const int64_t opcode = code[3 * i], a = code[3 * i + 1], b = code[3 * i + 2];
    bool fits = within(opcode, kOpcodes);
    if (opcode == kCharacters) fits = within(a, known + 1) && within(b, known + 1);
    if (opcode == kSplit) fits = within(a, size) && within(b, size);
    if (opcode == kJump) fits = within(a, size);
    if (opcode == kSave) fits = within(a, places_);
    if (opcode == kAssert) fits = within(a, kPlaces);
    if (!fits || code.size() % 3) refuse<Unsupported>("a damaged program of a regular expression");
    Instruction instruction{static_cast<int32_t>(opcode), static_cast<int32_t>(a), static_cast<int32_t>(b), {}};
    if (opcode == kCharacters) {
      for (int64_t r = a; r < b; ++r) {
        for (char32_t c = ranges_[r].first; c <= ranges_[r].second && c < 128; ++c) {
          instruction.ascii[c / 64] |= uint64_t{1} << (c % 64);
        }
      }
    }
    code_.push_back(instruction);
  }
  if (code_.empty() || code_.back().opcode != kMatch) refuse<Unsupported>("a program of a regular expression without an end");
}

Regex::Subject Regex::decode(Call& call, Bytes text) {
  check(text.size() < (size_t{1} << 31), "a string of ", text.size(), " bytes to match");
  auto* characters = call.scratch<char32_t>(static_cast<int64_t>(text.size()));
  auto* offsets = call.scratch<int32_t>(static_cast<int64_t>(text.size()) + 1);
  int32_t count = 0;
  for (size_t at = 0; at < text.size();) {
    const int length = character_length(text, at);
    const auto first = static_cast<uint8_t>(text[at]);
    char32_t c = length == 0 ? 0xdc00 + first : length == 1 ? first : first & (0x7f >> length);
    for (int i = 1; i < length; ++i) c = c << 6 | (static_cast<uint8_t>(text[at + i]) & 0x3f);
    characters[count] = c;
    offsets[count++] = static_cast<int32_t>(at);
    at += std::max(length, 1);
  }
  offsets[count] = static_cast<int32_t>(text.size());
  return {characters, offsets, count, text};
}

Regex::Scratch* Regex::make_scratch(Call& call) const {
  const auto size = static_cast<int64_t>(code_.size());
  auto* scratch = new (call.scratch<Scratch>(1)) Scratch();
  for (Threads* threads : {&scratch->now, &scratch->next}) {
    threads->order = call.scratch<int32_t>(size);
    threads->count = 0;
    threads->seen = call.scratch<uint32_t>(size);
    std::fill_n(threads->seen, size, 0);
    threads->places = call.scratch<int32_t>(size * places_);
  }
  // A split adds two and takes one, a save adds two and takes one, each at most once in a step.
  scratch->stack = call.scratch<Scratch::Pending>(2 * size + 2);
  scratch->places = call.scratch<int32_t>(places_);
  return scratch;
}

bool Regex::takes(const Instruction& instruction, char32_t c) const {
  if (c < 128) return instruction.ascii[c / 64] >> (c % 64) & 1;
  const auto begin = ranges_.begin() + instruction.a, end = ranges_.begin() + instruction.b;
  const auto above = std::upper_bound(begin, end, c, [](char32_t value, const auto& range) { return value < range.first; });
  return above != begin && c <= (above - 1)->second;
}

bool Regex::holds(int32_t place, const Subject& subject, int32_t at) const {
  switch (place) {
    case kBegin: return at == 0;
    case kEnd: return at == subject.size;
    default: {
      const bool before = at > 0 && is_word(subject.characters[at - 1]);
      const bool after = at < subject.size && is_word(subject.characters[at]);
      return (before != after) == (place == kWordBoundary);
    }
  }
}

// Adds the instructions that can be reached from `start` without taking a character.
void Regex::follow(Threads& threads, Scratch& scratch, int32_t start, const Subject& subject, int32_t at, int32_t* places) const {
  int32_t depth = 0;
  scratch.stack[depth++] = {start, 0};
  while (depth > 0) {
    const auto [i, old] = scratch.stack[--depth];
    if (i < 0) {
      places[-i - 1] = old;
      continue;
    }
    if (threads.seen[i] == scratch.step) continue;
    threads.seen[i] = scratch.step;
    const Instruction& instruction = code_[i];
    switch (instruction.opcode) {
      case kJump: scratch.stack[depth++] = {instruction.a, 0}; break;
      case kSplit:
        scratch.stack[depth++] = {instruction.b, 0};
        scratch.stack[depth++] = {instruction.a, 0};
        break;
      case kSave:
        scratch.stack[depth++] = {-instruction.a - 1, places[instruction.a]};
        scratch.stack[depth++] = {i + 1, 0};
        places[instruction.a] = at;
        break;
      case kAssert:
        if (holds(instruction.a, subject, at)) scratch.stack[depth++] = {i + 1, 0};
        break;
      default:
        std::copy_n(places, places_, threads.places + int64_t{i} * places_);
        threads.order[threads.count++] = i;
    }
  }
}

bool Regex::run(Scratch& scratch, const Subject& subject, int32_t from, int32_t* found, bool whole) const {
  bool matched = false;
  Threads *now = &scratch.now, *next = &scratch.next;
  now->count = 0;
  int32_t* places = scratch.places;
  for (int32_t at = from;; ++at) {
    // `now` was filled in the step before; a search also begins here, after all that began before.
    if ((at == from || !whole) && !matched) {
      std::fill_n(places, places_, -1);
      if (at == from) ++scratch.step;
      follow(*now, scratch, 0, subject, at, places);
    }
    if (now->count == 0 && (matched || whole)) break;
    ++scratch.step;
    next->count = 0;
    for (int32_t t = 0; t < now->count; ++t) {
      const int32_t i = now->order[t];
      const Instruction& instruction = code_[i];
      if (instruction.opcode == kMatch) {
        if (whole && at != subject.size) continue;
        if (found != nullptr) std::copy_n(now->places + int64_t{i} * places_, places_, found);
        matched = true;
        break;  // what comes after it has less right to match
      }
      if (at < subject.size && takes(instruction, subject.characters[at])) {
        std::copy_n(now->places + int64_t{i} * places_, places_, places);
        follow(*next, scratch, i + 1, subject, at + 1, places);
      }
    }
    if (at == subject.size) break;
    std::swap(now, next);
  }
  return matched;
}

bool Regex::search(Scratch& scratch, const Subject& subject, int32_t from, int32_t* found) const {
  return run(scratch, subject, from, found, false);
}

bool Regex::full_match(Scratch& scratch, const Subject& subject) const { return run(scratch, subject, 0, nullptr, true); }

}  // namespace jaxrank::host
