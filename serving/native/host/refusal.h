// How the host program refuses a request, and how it says that a program cannot run here.
#pragma once

#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace jaxrank::host {

// The request's data is what TensorFlow would refuse, too. Becomes `InvalidRequestError` in Python.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A program that this executor does not run: the message says which part of it and why. Thrown at load only.
class Unsupported : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Bytes as Python writes them: b'ab\x00'.
struct Repr {
  std::string_view bytes;
};
std::ostream& operator<<(std::ostream& out, const Repr& repr);

// Numbers as Python writes a list: [1, 2].
struct Listed {
  std::span<const int64_t> values;
};
std::ostream& operator<<(std::ostream& out, const Listed& list);

template <typename Error = Refusal, typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  throw Error(out.str());
}

template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    refuse(parts...);
}

}  // namespace jaxrank::host
