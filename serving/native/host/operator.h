// What an operator is: attributes at load give a kernel, which a request calls.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "../tables/table.h"
#include "../threads/worker_pool.h"
#include "arena.h"
#include "tensor.h"

namespace jaxrank::host {

// The JSON value of an attribute.
struct Attribute {
  using List = std::vector<Attribute>;
  std::variant<std::monostate, bool, int64_t, double, std::string, List> value;

  bool none() const { return std::holds_alternative<std::monostate>(value); }
  int64_t integer() const;
  double number() const;
  const std::string& text() const;
  const List& list() const;
  std::vector<int64_t> integers() const;
  std::vector<std::string> texts() const;
};

// Attributes by name, defaults included. A missing or wrong one is `Unsupported`.
class Attributes {
 public:
  explicit Attributes(std::map<std::string, Attribute, std::less<>> values) : values_(std::move(values)) {}
  const Attribute& operator[](std::string_view name) const;
  int64_t integer(std::string_view name) const { return (*this)[name].integer(); }
  bool flag(std::string_view name) const { return (*this)[name].integer() != 0; }
  const std::string& text(std::string_view name) const { return (*this)[name].text(); }
  Type type(std::string_view name) const;

 private:
  std::map<std::string, Attribute, std::less<>> values_;
};

// A table that operators read. Its rows are those of the request: `Request::tables[at]`.
struct TableSlot {
  std::string name;
  size_t at;
  Type type;  // of the values that lookups give
};

class Vocabulary;

// What operators may read besides their inputs.
struct Resources {
  std::map<std::string, TableSlot, std::less<>> tables;
  std::map<std::string, std::shared_ptr<const Vocabulary>, std::less<>> vocabularies;

  const TableSlot& table(const std::string& name) const;
  std::shared_ptr<const Vocabulary> vocabulary(const std::string& name) const;
};

// Where the rows of an output lie in a feature block, if nothing else reads them.
struct Sink {
  float* base = nullptr;
  int64_t rows = 0;
  int64_t width = 0;   // float32 values of a row
  int64_t stride = 0;  // of the block
};

// What all operators of a request see.
struct Request {
  int64_t candidates;
  std::span<const std::shared_ptr<const tables::Table>> tables;  // one epoch of all of them
  WorkerPool* pool;                                              // null without one
};

// One run of an operator.
class Call {
 public:
  Call(const Tensor* slots, std::span<const int> inputs, std::span<Tensor* const> outputs, Arena& arena,
       const Request& request, const Sink* sink)
      : slots_(slots), inputs_(inputs), outputs_(outputs), arena_(arena), request_(request), sink_(sink) {}

  int inputs() const { return static_cast<int>(inputs_.size()); }
  int outputs() const { return static_cast<int>(outputs_.size()); }
  const Tensor& in(int i) const {
    check(i < inputs(), "an operand is missing");
    return slots_[inputs_[i]];
  }
  const Request& request() const { return request_; }
  int64_t candidates() const { return request_.candidates; }
  const tables::Table& table(const TableSlot& slot) const { return *request_.tables[slot.at]; }
  const Sink* sink() const { return sink_; }

  // An output with memory of its own.
  Tensor& make(int output, Type type, const Shape& shape) {
    Tensor& made = place(output);
    made = {type, shape, shape.count(), nullptr, 0};
    made.data = arena_.take(made.count * item_size(type));
    return made;
  }
  template <typename T>
  T* make(int output, const Shape& shape) {
    return static_cast<T*>(make(output, type_of<T>(), shape).data);
  }
  // An output that is (a part of) an existing tensor.
  Tensor& share(int output, const Tensor& tensor, const Shape& shape) {
    Tensor& made = place(output);
    made = tensor;
    made.shape = shape;
    made.count = shape.count();
    return made;
  }
  // Memory until the end of the request.
  template <typename T>
  T* scratch(int64_t count) {
    check(count >= 0 && count <= (int64_t{1} << 46), "a tensor of ", count, " elements is too large");
    return static_cast<T*>(arena_.take(count * sizeof(T)));
  }


  // Calls `body(first, last)` for parts of [0, count), on idle threads too where `nanoseconds` for each of them are worth
  // waking one. `body` takes no memory of the request. Of several refusals the first one is thrown.
  template <typename F>
  void split(int64_t count, int64_t nanoseconds, F body) {
    WorkerPool* const pool = request_.pool;
    const int64_t total = count * nanoseconds;
    if (pool == nullptr || pool->threads() < 2 || total < WorkerPool::kWorthWaking) return body(int64_t{0}, count);
    const auto most = static_cast<int64_t>(pool->threads()) * WorkerPool::kPiecesOfThread;
    const int64_t pieces = std::min({most, total / WorkerPool::kSmallestPiece, count});
    pool->run(static_cast<size_t>(pieces), [&](size_t i) {
      const auto piece = static_cast<int64_t>(i);
      body(count * piece / pieces, count * (piece + 1) / pieces);
    });
  }

 private:
  Tensor& place(int output) {
    check(output < outputs(), "an operator makes more tensors than the program has names for");
    return *outputs_[output];
  }

  const Tensor* slots_;
  std::span<const int> inputs_;
  std::span<Tensor* const> outputs_;
  Arena& arena_;
  const Request& request_;
  const Sink* sink_;
};

using Kernel = std::function<void(Call&)>;
using MakeKernel = Kernel (*)(const Attributes& attributes, const Resources& resources);
using OperatorTable = std::vector<std::pair<std::string_view, MakeKernel>>;

// Each family's operators, in its file below operators/.
OperatorTable array_operators();
OperatorTable layout_operators();
OperatorTable cast_operators();
OperatorTable comparison_operators();
OperatorTable arithmetic_operators();
OperatorTable function_operators();
OperatorTable reduction_operators();
OperatorTable histogram_operators();
OperatorTable gather_operators();
OperatorTable scatter_operators();
OperatorTable search_operators();
OperatorTable segment_operators();
OperatorTable sparse_operators();
OperatorTable sparse_arithmetic_operators();
OperatorTable ragged_operators();
OperatorTable cross_operators();
OperatorTable string_operators();
OperatorTable string_list_operators();
OperatorTable base64_operators();
OperatorTable number_operators();
OperatorTable example_operators();
OperatorTable lookup_operators();
OperatorTable bag_operators();
OperatorTable unicode_operators();
OperatorTable regex_operators();

// The operator of that name, or null.
MakeKernel find_operator(std::string_view name);
std::vector<std::string> operator_names();

}  // namespace jaxrank::host
