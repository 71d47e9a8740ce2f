// Matches compiled regular expressions in time linear in the text (serving/host/regex_program.py writes the programs).
#pragma once

#include "operator.h"

namespace jaxrank::host {

class Regex {
 public:
  // Attributes `instructions`, `ranges` and `groups`. Throws `Unsupported` for a program that is not one.
  explicit Regex(const Attributes& attributes);

  // A text as characters. Bytes that are not UTF-8 are lone surrogates, as in Python.
  struct Subject {
    const char32_t* characters;
    const int32_t* offsets;  // of each character's first byte, and of the end
    int32_t size;
    Bytes text;
    Bytes part(int32_t from, int32_t to) const { return text.substr(offsets[from], offsets[to] - offsets[from]); }
  };
  static Subject decode(Call& call, Bytes text);

  // Memory that searches share.
  struct Scratch;
  Scratch* make_scratch(Call& call) const;

  // The first match from `from` on, of several the one that comes first in the pattern: `found[2 i]` and `found[2 i + 1]` are
  // where group i begins and ends, or -1. Group 0 is the match.
  bool search(Scratch& scratch, const Subject& subject, int32_t from, int32_t* found) const;
  bool full_match(Scratch& scratch, const Subject& subject) const;

  int places() const { return places_; }

 private:
  enum Opcode : int32_t { kMatch, kCharacters, kSplit, kJump, kSave, kAssert, kOpcodes };
  enum Place : int32_t { kBegin, kEnd, kWordBoundary, kNoWordBoundary, kPlaces };
  struct Instruction {
    int32_t opcode, a, b;
    uint64_t ascii[2];  // of kCharacters: which of the first 128
  };
  struct Threads;

  bool takes(const Instruction& instruction, char32_t c) const;
  bool holds(int32_t place, const Subject& subject, int32_t at) const;
  void follow(Threads& threads, Scratch& scratch, int32_t start, const Subject& subject, int32_t at, int32_t* places) const;
  bool run(Scratch& scratch, const Subject& subject, int32_t from, int32_t* found, bool whole) const;

  std::vector<Instruction> code_;
  std::vector<std::pair<char32_t, char32_t>> ranges_;
  int places_;
};

}  // namespace jaxrank::host
